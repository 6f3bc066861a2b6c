//! A whole release of a small stand-in workspace, with the real cargo, `cargo auditable` and mdBook. Ignored, because it builds these programs once:
//! `cargo test -p xtask --lib -- --ignored release`.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;

use super::tests::private_pem;
use super::*;

const OPERATOR_MAIN: &str = "fn main() {\n    println!(\"{} {}\", hex::encode(\"a\"), std::panic::Location::caller());\n}\n";
const PLUGIN_MAIN: &str = "fn main() {\n    let folder = std::env::args().nth(2).expect(\"man FOLDER\");\n    \
                           std::fs::write(format!(\"{folder}/kubectl-computer.1\"), \".TH\\n\").expect(\"write\");\n}\n";
const CHART_YAML: &str = "apiVersion: v2\nname: computer-operator\ndescription: x\n";

fn command(folder: &Path, line: &str) {
    let output = Command::new("sh").args(["-c", line]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn package(name: &str, more: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2024\"\nlicense = \"Apache-2.0\"\n{more}")
}

/// A repository with two programs, a chart and a book.
fn stand_in(root: &Path) {
    let version = env!("CARGO_PKG_VERSION");
    let files = [
        ("Cargo.toml", "[workspace]\nmembers = [\"operator\", \"plugin\"]\nresolver = \"3\"\n".to_owned()),
        ("operator/Cargo.toml", package("computer-operator", "[dependencies]\nhex = \"0.4\"\n[dev-dependencies]\nbase64 = \"0.22\"\n")),
        ("operator/src/main.rs", OPERATOR_MAIN.to_owned()),
        ("plugin/Cargo.toml", package("kubectl-computer", "")),
        ("plugin/src/main.rs", PLUGIN_MAIN.to_owned()),
        ("charts/computer-operator/Chart.yaml", format!("{CHART_YAML}version: {version}\nappVersion: {version}\n")),
        ("charts/computer-operator/values.yaml", "a: 1\n".to_owned()),
        ("docs/book/book.toml", "[book]\ntitle = \"x\"\n".to_owned()),
        ("docs/book/src/SUMMARY.md", "# Summary\n\n[A](a.md)\n".to_owned()),
        ("docs/book/src/a.md", "# A\n".to_owned()),
        ("LICENSE", "license\n".to_owned()),
        (".gitignore", "/target\n".to_owned()),
    ];
    for (name, text) in files {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), text).unwrap();
    }
    command(root, "cargo generate-lockfile && git init --quiet && git add .");
    command(root, "git -c user.name=a -c user.email=a@b -c commit.gpgsign=false commit --quiet --message x");
}

fn release(workspace: &Path, key: &Path, out: &Path) {
    let options = Options {
        key: Some(key.to_owned()),
        out: Some(out.to_owned()),
        allow_dirty: false,
        download_url: plugin::PLACEHOLDER.to_owned(),
        verify: None,
        public_key: None,
    };
    run(workspace, &options).unwrap();
}

#[test]
#[ignore = "builds cargo-auditable and mdBook the first time"]
fn two_checkouts_of_one_commit_give_the_same_release() {
    let root = tempfile::tempdir().unwrap();
    let (one, two, key) = (root.path().join("one"), root.path().join("another/place"), root.path().join("key.pem"));
    stand_in(&one);
    fs::create_dir(root.path().join("another")).unwrap();
    command(root.path(), "git clone --quiet one another/place");
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key).unwrap();
    std::io::Write::write_all(&mut file, private_pem().as_bytes()).unwrap();

    let (first, second) = (root.path().join("first"), root.path().join("second"));
    release(&one, &key, &first);
    release(&two, &key, &second);
    let sums = |out: &Path| fs::read_to_string(out.join(sums::SUMS)).unwrap();
    assert_eq!(sums(&first), sums(&second));
    let binary = fs::read(first.join(format!("computer-operator-{}-linux-{}", env!("CARGO_PKG_VERSION"), architecture()))).unwrap();
    let embedded = programs::embedded(&binary).unwrap();
    assert!(embedded.iter().any(|(name, _)| name == "hex") && !embedded.iter().any(|(name, _)| name == "base64"), "{embedded:?}");
    let names = fs::read_dir(&first).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.map(|name| name.replace(env!("CARGO_PKG_VERSION"), "V").replace(architecture(), "A")).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "SHA256SUMS",
            "SHA256SUMS.sig",
            "chart",
            "computer-operator-V-linux-A",
            "computer-operator-V-linux-A.cdx.json",
            "computer-operator-V.tgz",
            "computer-operator-book-V.tar.gz",
            "image",
            "krew-computer.yaml",
            "kubectl-computer-V-linux-A.cdx.json",
            "kubectl-computer-V-linux-A.tar.gz",
            "kubectl-computer-man-V.tar.gz",
            "release-key.pub.pem",
            "release.json",
        ]
    );
}
