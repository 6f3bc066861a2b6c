//! The section "Moving archives to another store" of docs/store.md: its commands run here from its text, with the real rclone, Helm, S3 server and operator. Only
//! the cluster is missing: `moving/kubectl` runs what the document runs in a pod.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use computer_operator::archive::{Manifest, later_manifest_key, receipt_key};
use serde::Deserialize as _;
use serde_yaml_ng::Value;
use xtask::chart;

use super::fair::archive;
use super::*;

/// The section of the document.
fn section() -> &'static str {
    let (_, section) = include_str!("../../docs/store.md").split_once("\n## Moving archives to another store\n").unwrap();
    section.split("\n## ").next().unwrap()
}

fn block(language: &str) -> &'static str {
    section().split_once(&format!("```{language}\n")).unwrap().1.split_once("```").unwrap().0
}

/// A command in the text, from these words to the end of its code.
fn in_text(begins: &str) -> &'static str {
    let text = section().split_once("**The way back**").unwrap().1;
    let at = text.find(begins).unwrap();
    text[at..].split('`').next().unwrap()
}

/// What an admin has: the commands, the file of the pod, and a `Local` store in a volume.
struct Admin {
    folder: tempfile::TempDir,
    port: u16,
    tools: tools::Bins,
}

impl Admin {
    fn new(port: u16) -> Self {
        let admin = Self { folder: tempfile::tempdir().unwrap(), port, tools: tools::ensure(&[Tool::Helm, Tool::Rclone]).unwrap() };
        symlink(chart::folder().parent().unwrap(), admin.at("charts")).unwrap();
        for (key, value) in [("secret/AWS_ACCESS_KEY_ID", "tester"), ("secret/AWS_SECRET_ACCESS_KEY", "tester-secret"), ("values", "")] {
            fs::create_dir_all(admin.at(key).parent().unwrap()).unwrap();
            fs::write(admin.at(key), value).unwrap();
        }
        fs::create_dir(admin.at("store")).unwrap();
        fs::write(admin.at("copy.yaml"), admin.filled_in(block("yaml"))).unwrap();
        fs::write(admin.at("pod.env"), admin.environment()).unwrap();
        admin
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The text with the admin's own bucket. The document says that an endpoint without TLS needs a value more.
    fn filled_in(&self, text: &str) -> String {
        let mut text = text.replace("archive.s3.endpoint=ENDPOINT", "archive.s3.allowHttp=true,archive.s3.endpoint=ENDPOINT");
        let endpoint = self.endpoint();
        let values = [("BUCKET", "archives"), ("PREFIX", "of-a-cluster"), ("REGION", "us-east-1"), ("ENDPOINT", &endpoint), ("TAG", "1")];
        for (placeholder, value) in values {
            for before in ["=", ":", "/", "value: "] {
                text = text.replace(&format!("{before}{placeholder}"), &format!("{before}{value}"));
            }
        }
        text
    }

    /// The environment of the pod's container, with its Secret.
    fn environment(&self) -> String {
        let pod: Value = serde_yaml_ng::from_str(&fs::read_to_string(self.at("copy.yaml")).unwrap()).unwrap();
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["envFrom"][0]["secretRef"]["name"], "archive-store");
        assert_eq!(container["volumeMounts"][0]["mountPath"], "/var/lib/computer-operator", "the store is in it");
        let set = container["env"].as_sequence().unwrap().iter();
        let set = set.map(|variable| format!("{}={}", variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap()));
        let secret = fs::read_dir(self.at("secret")).unwrap().map(|key| {
            let key = key.unwrap().path();
            format!("{}={}", key.file_name().unwrap().to_string_lossy(), fs::read_to_string(&key).unwrap())
        });
        let mut lines: Vec<_> = set.chain(secret).collect();
        // Its own folder, as in the pod.
        lines.retain(|line| !line.starts_with("HOME="));
        lines.push(format!("HOME={}", self.at("tmp").display()));
        lines.join("\n") + "\n"
    }

    /// Runs commands as the document says: until the first one that fails.
    fn run(&self, commands: &str) -> Output {
        let programs = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/s3/moving");
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
        Command::new("bash")
            .args(["-euc", commands])
            .current_dir(self.folder.path())
            .env("PATH", path)
            .env("WORLD", self.folder.path())
            .env("OPERATOR", env!("CARGO_BIN_EXE_computer-operator"))
            .env("RCLONE", self.tools.path(Tool::Rclone))
            .env("HELM", self.tools.path(Tool::Helm))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs all of them, and checks that the new store lists these computers.
    fn moves(&self, commands: &str, uids: &[&str]) {
        let run = self.run(&self.filled_in(commands));
        let (out, notes) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success(), "{commands}\n{out}\n{notes}");
        assert!(uids.iter().all(|uid| out.lines().any(|line| line.starts_with(uid))), "{out}\n{notes}");
        let listed = format!("output: {} bytes, sha256 {}", run.stdout.len(), hex::encode(Sha256::digest(&run.stdout)));
        assert!(notes.trim_end().ends_with(&listed), "nothing but the list is on standard output: {notes}");
    }

    /// The objects of the chart, as it was rendered last.
    fn rendered(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.at("rendered.yaml")).unwrap();
        serde_yaml_ng::Deserializer::from_str(&text).map(|object| Value::deserialize(object).unwrap()).collect()
    }

    /// Everything that the document names in the cluster is in the chart, under this name.
    fn the_chart_has_what_the_document_names(&self, claim: bool) {
        let (objects, commands) = (self.rendered(), block("sh"));
        let named = |kind: &str, name: &str| objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        let deployment = named("Deployment", "computer-operator").expect("deployment/computer-operator");
        assert!(commands.contains("-l app.kubernetes.io/component=controller "));
        assert_eq!(deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"], "controller");
        assert!(block("yaml").contains("{claimName: computer-operator-store}"));
        assert!(!claim || named("PersistentVolumeClaim", "computer-operator-store").is_some(), "the claim of the store");
    }
}

/// Every object below a folder, by its key.
fn objects(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
    files.map(|file| (file.path().strip_prefix(folder).unwrap().to_owned(), fs::read(file.path()).unwrap())).collect()
}

/// An archive and its receipt.
async fn stored(store: &Store, uid: &str, bytes: usize) -> Manifest {
    let (manifest, blobs) = archive(uid, bytes, Sizes::default());
    for blob in &blobs {
        store.put_once(&chunk_key(uid, &blob.chunk.digest), blob.bytes.clone()).await.unwrap();
    }
    store.put_once(&manifest_key(uid), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
    store.put_once(&receipt_key(uid), format!("{{\"computer\": {{\"uid\": \"{uid}\"}}}}").into_bytes()).await.unwrap();
    manifest
}

async fn assert_valid(store: &Store, uids: &[&str]) {
    for uid in uids {
        let verified = verify::verify(store, uid).await;
        assert!(matches!(verified, Verification::Valid(_)), "{uid}: {verified:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_moved_to_a_bucket_and_back_by_the_commands_of_the_document() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let served = tempfile::tempdir().unwrap();
    let port = free_port();
    let _server = serve_with(served.path(), port, "tester-secret", &[]);
    let admin = Admin::new(port);
    let local = Store::open(&format!("file://{}", admin.at("store").display())).unwrap();
    assert_eq!(Checker::default().whole(&local).await, Ok(()));
    let mut manifest = stored(&local, "t--one", 12_000_000).await;
    stored(&local, "t--two", 1000).await;
    // A UID that was deleted three times: the newest archive is not the one whose key is last, or that is copied last.
    for (claim, created_at) in [("b", 30), ("a", 20), ("c", 10)] {
        (manifest.custody_claim, manifest.created_at) = (claim.to_owned(), created_at);
        local.put_once(&later_manifest_key("t--one", claim), serde_json::to_vec(&manifest).unwrap()).await.unwrap();
    }
    let before = objects(&admin.at("store"));
    fs::write(admin.at("store/archives/t--two/chunks/unfinished.zst#1"), "left by an interrupted write").unwrap();

    admin.moves(block("sh"), &["t--one", "t--two"]);
    admin.the_chart_has_what_the_document_names(false);
    let bucket = served.path().join("archives/of-a-cluster");
    assert!(objects(&bucket) == before, "the bucket has other objects");
    let credentials = format!("credentials_folder={}", admin.at("secret").display());
    let url = format!("s3://archives/of-a-cluster?endpoint={}&region=us-east-1&allow_http=true&{credentials}", admin.endpoint());
    let s3 = Store::open(&url).unwrap();
    assert_eq!(Checker::default().whole(&s3).await, Ok(()), "what was copied from the check of the old store");
    assert_valid(&s3, &["t--one", "t--two"]).await;
    assert_eq!(s3.newest_manifest("t--one").await.unwrap(), later_manifest_key("t--one", "b"));

    // The same commands again copy nothing, and what was archived meanwhile comes back as well.
    admin.moves(block("sh"), &["t--one", "t--two"]);
    stored(&s3, "t--three", 2_000_000).await;
    let (copy, values) = (in_text("rclone copy"), in_text("--set archive.type=Local"));
    let back: Vec<String> = block("sh").replace("\\\n  ", "").lines().map(|line| exchanged(line, copy, values)).collect();
    fs::remove_file(admin.at("store/archives/t--two/chunks/unfinished.zst#1")).unwrap();
    admin.moves(&back.join("\n"), &["t--one", "t--two", "t--three"]);
    admin.the_chart_has_what_the_document_names(true);
    assert!(objects(&admin.at("store")) == objects(&bucket), "the volume has other objects");
    assert_valid(&local, &["t--one", "t--two", "t--three"]).await;
    assert_eq!(local.newest_manifest("t--one").await.unwrap(), later_manifest_key("t--one", "b"));

    // S7: an object that differs in the new store is never replaced, and the operator is not switched to it.
    fs::write(bucket.join(receipt_key("t--two")), "another receipt").unwrap();
    fs::remove_file(admin.at("calls")).unwrap();
    let refused = admin.run(&admin.filled_in(block("sh")));
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("immutable"), "{refused:?}");
    assert!(!fs::read_to_string(admin.at("calls")).unwrap().contains("helm"), "the operator was switched to another store");
}

/// A line of the commands, for the way back.
fn exchanged(line: &str, copy: &str, values: &str) -> String {
    let values = values.split_whitespace().collect::<Vec<_>>().join(" ");
    match (line.split_once("rclone copy"), line.split_once("--set ")) {
        (Some((before, _)), _) => format!("{before}{copy}"),
        (_, Some((before, _))) => format!("{before}{values}"),
        _ => line.to_owned(),
    }
}
