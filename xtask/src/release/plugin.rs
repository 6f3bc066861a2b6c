//! The plugin as `kubectl krew` installs it: an archive with the program, and a manifest with its digest.

use anyhow::Result;
use serde_json::json;

use super::pack::{self, Entry};
use super::source::Source;
use crate::image::{architecture, oci::sha256};

/// The plugin's program.
pub const PROGRAM: &str = "kubectl-computer";
/// Where a release would be downloaded. Nothing is there.
pub const PLACEHOLDER: &str = "https://computer-operator.dev/releases";

/// Packs the program and the license. Returns the file name too.
///
/// # Errors
/// When it cannot be packed.
pub fn package(binary: Vec<u8>, license: Vec<u8>, source: &Source) -> Result<(String, Vec<u8>)> {
    let program = Entry { executable: true, ..Entry::new(PROGRAM, binary) };
    let bytes = pack::archive(vec![program, Entry::new("LICENSE", license)], source.seconds)?;
    Ok((format!("{PROGRAM}-{}-linux-{}.tar.gz", source.version, architecture()), bytes))
}

/// The manifest for an index of krew.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn manifest(file: &str, archive: &[u8], download: &str, source: &Source) -> Result<String> {
    let manifest = json!({
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": { "name": "computer" },
        "spec": {
            "version": format!("v{}", source.version),
            "homepage": download,
            "shortDescription": "What a computer is doing, and why it waits",
            "description": "For clusters with computer-operator: lists computers, explains what a blocked one waits for with the command to \
                            copy,\ncreates and deletes with live steps, opens a shell, and reads archives. It uses only the rights of its caller.\n",
            "platforms": [{
                "selector": { "matchLabels": { "os": "linux", "arch": architecture() } },
                "uri": format!("{}/v{}/{file}", download.trim_end_matches('/'), source.version),
                "sha256": sha256(archive),
                "files": [{ "from": PROGRAM, "to": "." }, { "from": "LICENSE", "to": "." }],
                "bin": PROGRAM,
            }],
        },
    });
    let note = if download == PLACEHOLDER {
        "# PLACEHOLDER: nothing is published at the address in `homepage` and `uri`. Replace it before you use this manifest.\n"
    } else {
        ""
    };
    Ok(format!("{note}{}", serde_yaml_ng::to_string(&manifest)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_manifest_has_the_digest_of_the_archive_and_says_that_the_address_is_a_placeholder() {
        let source = super::super::tests::source();
        let (file, archive) = package(b"program".to_vec(), b"license".to_vec(), &source).unwrap();
        assert_eq!(archive, package(b"program".to_vec(), b"license".to_vec(), &source).unwrap().1);
        assert_eq!(pack::extract(&archive, PROGRAM).unwrap(), b"program");
        let text = manifest(&file, &archive, PLACEHOLDER, &source).unwrap();
        assert!(text.starts_with("# PLACEHOLDER: "), "{text}");
        let document: Value = serde_yaml_ng::from_str(&text).unwrap();
        let platform = &document["spec"]["platforms"][0];
        assert_eq!(platform["sha256"], sha256(&archive));
        assert_eq!(platform["uri"], format!("{PLACEHOLDER}/v1.2.3/{file}"));
        assert_eq!(document["spec"]["version"], "v1.2.3");
        let own = manifest(&file, &archive, "https://downloads.example/", &source).unwrap();
        assert!(own.starts_with("apiVersion") && own.contains("https://downloads.example/v1.2.3/kubectl-computer-1.2.3-linux-"), "{own}");
    }
}
