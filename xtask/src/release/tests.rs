//! Layouts, charts and whole small releases from stand-in files: equal when packed twice, refused when one byte changes. And what the repository
//! says about releases: the annotations of the chart and the workflow that would publish.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::PKCS_ED25519;
use serde_json::{Value, json};

use super::pack::Entry;
use super::*;
use crate::image::{Image, Layer};

pub fn source() -> Source {
    Source { version: "1.2.3".into(), commit: "abc".into(), seconds: 1_700_000_000 }
}

/// A private key in PEM.
pub fn private_pem() -> String {
    rcgen::KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem()
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(name: &str) -> String {
    fs::read_to_string(workspace().join(name)).unwrap()
}

fn small_image(folder: &Path) -> String {
    let mut layer = Layer::at(1);
    layer.file("program", b"program", 0o755, 0).unwrap();
    let image = Image { entrypoint: vec!["/program".into()], ..Image::default() };
    image::pack(image, layer, &source(), folder).unwrap()
}

fn small_chart() -> Chart {
    let metadata = "apiVersion: v2\nname: computer-operator\ndescription: x\nversion: 1.2.3\nappVersion: 1.2.3\n";
    chart::pack(vec![Entry::new("values.yaml", "a: 1\n"), Entry::new("Chart.yaml", metadata)], &source()).unwrap()
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    pack::folder(folder, "").unwrap().into_iter().map(|entry| (entry.path, entry.bytes)).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(folder: &Path, descriptor: &Value) -> PathBuf {
    folder.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

#[test]
fn an_image_packed_twice_is_equal_and_verifies() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, two] = [small_image(folders[0].path()), small_image(folders[1].path())];
    assert_eq!(one, two);
    assert_eq!(files(folders[0].path()), files(folders[1].path()));
    assert_eq!(layout::verify(folders[0].path()).unwrap(), [one]);
    let root = folders[0].path();
    let entry = json(&root.join("index.json"))["manifests"][0].clone();
    assert_eq!(entry["annotations"], json!({"org.opencontainers.image.ref.name": "1.2.3"}));
    let index = json(&blob(root, &entry));
    assert_eq!(index["manifests"][0]["platform"], json!({"architecture": architecture(), "os": "linux"}));
    assert_eq!(index["annotations"]["org.opencontainers.image.created"], "2023-11-14T22:13:20Z");
    let manifest = json(&blob(root, &index["manifests"][0]));
    assert_eq!(manifest["annotations"]["org.opencontainers.image.revision"], "abc");
    let config = json(&blob(root, &manifest["config"]));
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "1.2.3");
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
}

#[test]
fn a_layout_with_a_wrong_byte_size_or_blob_is_refused() {
    let fails = |change: &dyn Fn(&Path), what: &str| {
        let folder = tempfile::tempdir().unwrap();
        small_image(folder.path());
        change(folder.path());
        let error = format!("{:#}", layout::verify(folder.path()).unwrap_err());
        assert!(error.contains(what), "{error}");
    };
    let index = |root: &Path| blob(root, &json(&root.join("index.json"))["manifests"][0]);
    let manifest = |root: &Path| blob(root, &json(&index(root))["manifests"][0]);
    let layer = |root: &Path| blob(root, &json(&manifest(root))["layers"][0]);
    let flip = |path: PathBuf| {
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    fails(&|root| flip(layer(root)), "has the digest sha256:");
    fails(&|root| flip(manifest(root)), "has the digest sha256:");
    fails(&|root| fs::write(layer(root), b"short").unwrap(), "has 5 bytes, not");
    fails(&|root| fs::remove_file(layer(root)).unwrap(), "read the blob");
    fails(&|root| fs::write(root.join("blobs/sha256/x"), b"").unwrap(), "no document refers to the blob x");
    fails(&|root| fs::write(root.join("index.json"), r#"{"manifests":[]}"#).unwrap(), "lists nothing");
    fails(&|root| fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"2"}"#).unwrap(), "another version");
}

#[test]
fn a_layer_that_is_not_the_one_of_the_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut layer = Layer::new();
    layer.file("a", b"1", 0o644, 0).unwrap();
    let mut parts = Image::default().parts(layer, true).unwrap();
    parts.layer.bytes = crate::image::gzip(b"another").unwrap();
    let manifest = crate::image::oci::Blob::manifest(&parts.config, &[&parts.layer], &std::collections::BTreeMap::new()).unwrap();
    layout::write(folder.path(), manifest.descriptor(), "1", &[&manifest, &parts.config, &parts.layer]).unwrap();
    let error = layout::verify(folder.path()).unwrap_err().to_string();
    assert!(error.contains("of the configuration"), "{error}");
}

#[test]
fn a_chart_packed_twice_is_equal_and_its_artifact_has_helms_media_types() {
    let (one, two) = (small_chart(), small_chart());
    assert_eq!((&one.bytes, one.file.as_str()), (&two.bytes, "computer-operator-1.2.3.tgz"));
    assert_eq!(pack::extract(&one.bytes, "computer-operator/values.yaml").unwrap(), b"a: 1\n");
    let folder = tempfile::tempdir().unwrap();
    let digest = one.write_artifact(&source(), folder.path()).unwrap();
    assert_eq!(layout::verify(folder.path()).unwrap(), [digest]);
    let manifest = json(&blob(folder.path(), &json(&folder.path().join("index.json"))["manifests"][0]));
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.cncf.helm.config.v1+json");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.cncf.helm.chart.content.v1.tar+gzip");
    assert_eq!(json(&blob(folder.path(), &manifest["config"]))["name"], "computer-operator");
    assert_eq!(fs::read(blob(folder.path(), &manifest["layers"][0])).unwrap(), one.bytes);
    let other = Source { version: "1.2.4".into(), ..source() };
    assert!(chart::pack(vec![Entry::new("Chart.yaml", "name: a\nversion: 1.2.3\n")], &other).is_err(), "another version");
}

#[test]
fn a_release_with_one_changed_byte_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    small_image(&root.join(IMAGE));
    fs::write(root.join("chart.tgz"), small_chart().bytes).unwrap();
    let key = Key::parse(&private_pem()).unwrap();
    let other = Key::parse(&private_pem()).unwrap();
    sign(root, &key).unwrap();
    verify::signed(root, &key.public_pem()).unwrap();
    assert!(verify::signed(root, &other.public_pem()).is_err(), "a key that did not sign");
    for (name, bytes) in files(root) {
        let mut changed = bytes.clone();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        fs::write(root.join(&name), changed).unwrap();
        assert!(verify::signed(root, &key.public_pem()).is_err(), "{name}");
        fs::write(root.join(&name), bytes).unwrap();
    }
    fs::write(root.join("more"), "").unwrap();
    assert!(verify::signed(root, &key.public_pem()).is_err(), "a file that is not listed");
}

#[test]
fn a_manifest_of_krew_for_another_archive_is_refused() {
    let (name, archive) = plugin::package(b"program".to_vec(), b"license".to_vec(), &source()).unwrap();
    let manifest = plugin::manifest(&name, &archive, plugin::PLACEHOLDER, &source()).unwrap();
    verify::krew(manifest.as_bytes(), &name, &archive).unwrap();
    assert!(verify::krew(manifest.as_bytes(), &name, b"another").is_err());
    assert!(verify::krew(manifest.as_bytes(), "another.tar.gz", &archive).is_err());
}

#[test]
fn a_release_that_fails_leaves_nothing_and_an_existing_folder_is_not_replaced() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("releases/1.2.3");
    let fill = |folder: &Path| fs::write(folder.join("a"), "1").map_err(Into::into);
    let failed = atomically(&out, |folder| fill(folder).and_then(|()| anyhow::bail!("no space")));
    assert_eq!(failed.unwrap_err().to_string(), "no space");
    assert_eq!(fs::read_dir(root.path().join("releases")).unwrap().count(), 0, "the temporary folder is removed");
    atomically(&out, fill).unwrap();
    assert_eq!(files(&out), [("a".to_owned(), b"1".to_vec())]);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(atomically(&out, fill).unwrap_err().to_string().contains("exists already"));
    assert_eq!(fs::read_dir(root.path().join("releases")).unwrap().count(), 1);
}

#[test]
fn the_arguments_are_a_key_and_a_folder_or_a_folder_to_check() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }
    let parse = |line: &str| <Cli as clap::Parser>::try_parse_from(line.split(' ')).map(|cli| cli.options);
    let made = parse("release --key k --out o").unwrap();
    assert!(made.key.is_some() && made.out.is_some() && !made.allow_dirty);
    assert!(parse("release --verify o --public-key p").unwrap().verify.is_some());
    for wrong in ["release", "release --key k", "release --out o", "release --verify o", "release --verify o --public-key p --key k"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    assert!(format!("{:?}", <Cli as clap::CommandFactory>::command()).contains(signature::MAKE_KEY), "--help shows how to make a key");
}

/// Artifact Hub reads these annotations as YAML: <https://artifacthub.io/docs/topics/annotations/helm>.
#[test]
fn the_annotations_of_the_chart_say_what_the_program_says() {
    let chart: Value = serde_yaml_ng::from_str(&read("charts/computer-operator/Chart.yaml")).unwrap();
    let annotation = |name: &str| chart["annotations"][format!("artifacthub.io/{name}")].as_str().unwrap().to_owned();
    let list = |name: &str| serde_yaml_ng::from_str::<Vec<Value>>(&annotation(name)).unwrap();
    assert_eq!(annotation("license"), env!("CARGO_PKG_LICENSE"));
    let values: Value = serde_yaml_ng::from_str(&read("charts/computer-operator/values.yaml")).unwrap();
    let image = format!(
        "{}/{}:{}",
        values["image"]["registry"].as_str().unwrap(),
        values["image"]["repository"].as_str().unwrap(),
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(list("images").iter().map(|entry| entry["image"].as_str().unwrap()).collect::<Vec<_>>(), [image]);
    let definitions = computer_operator::resources::crds::files().unwrap();
    let definitions: Vec<Value> = definitions.iter().map(|(_, yaml)| serde_yaml_ng::from_str(yaml).unwrap()).collect();
    let listed = list("crds");
    assert_eq!(listed.len(), definitions.len());
    for crd in &definitions {
        let (name, version) = (&crd["metadata"]["name"], &crd["spec"]["versions"][0]);
        let entry = listed.iter().find(|entry| entry["name"] == *name).unwrap_or_else(|| panic!("Chart.yaml does not list {name}"));
        assert_eq!((&entry["kind"], &entry["version"]), (&crd["spec"]["names"]["kind"], &version["name"]));
        let text = version["schema"]["openAPIV3Schema"]["description"].as_str().unwrap();
        assert!(text.starts_with(entry["description"].as_str().unwrap()) && entry["displayName"].is_string(), "{entry}: {text}");
    }
    for example in list("crdsExamples") {
        assert!(listed.iter().any(|crd| crd["kind"] == example["kind"]), "{example}");
    }
    let kinds = ["added", "changed", "deprecated", "removed", "fixed", "security"];
    for change in list("changes") {
        assert!(kinds.contains(&change["kind"].as_str().unwrap()) && change["description"].is_string(), "{change}");
    }
    assert!(list("links").iter().all(|link| link["name"].is_string() && link["url"].as_str().unwrap().starts_with("https://")));
}

#[test]
fn the_workflow_has_pinned_actions_and_few_permissions() {
    let text = read(".github/workflows/release.yaml");
    let workflow: Value = serde_yaml_ng::from_str(&text).unwrap();
    assert_eq!(workflow["permissions"], json!({}), "a job asks for what it needs");
    for (name, job) in workflow["jobs"].as_object().unwrap() {
        let permissions = job["permissions"].as_object().unwrap();
        let writes: Vec<&String> = permissions.iter().filter(|(_, right)| *right == "write").map(|(what, _)| what).collect();
        assert!(writes.is_empty() || name == "publish" && writes == ["contents"], "{name} may write {writes:?}");
        // The job with the signing key runs the source; the job that may write does not.
        let runs_source = job["steps"].to_string().contains("cargo xtask");
        assert_eq!(runs_source, name == "build", "{name}");
    }
    let uses: Vec<&str> = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: ")).collect();
    assert!(uses.len() > 3, "{uses:?}");
    for action in uses {
        let version = action.split('@').nth(1).and_then(|version| version.strip_prefix('v')).unwrap_or_default();
        assert_eq!(version.split('.').filter(|number| number.parse::<u32>().is_ok()).count(), 3, "{action} has no full version");
    }
}

/// A release is signed by a key that is nowhere in the repository. A PEM file begins with this line.
#[test]
fn no_private_key_is_in_the_repository() {
    let private = ["-----BEGIN ", "PRIVATE KEY-----"];
    for entry in fs::read_dir(workspace()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let files = match path.is_dir() {
            true if ["target", ".git"].contains(&name) => continue,
            true => pack::folder(&path, &format!("{name}/")).unwrap(),
            false => vec![Entry::new(name, fs::read(&path).unwrap())],
        };
        for Entry { path, bytes, .. } in files {
            let text = String::from_utf8_lossy(&bytes);
            let begins = |line: &str| line.trim().starts_with(private[0]) && line.trim().ends_with(private[1]);
            assert!(!text.lines().any(begins), "{path} contains a private key");
        }
    }
}
