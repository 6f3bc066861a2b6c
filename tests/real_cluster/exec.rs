//! What arrives through a real `kubectl exec` from the operator's program, when its reader is slow: everything, or the reader can see that it is not.
//! kubectl loses the end of such an output and exits with 0 (one of two exports of 200 MB to a reader of 12 MB/s).

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use computer_operator::archive::chunks::Sizes;
use computer_operator::archive::manifest::{Manifest, ManifestComputer};
use computer_operator::archive::pack::{self, Request};
use computer_operator::archive::{Unreadable, chunk_key, manifest_key};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use xtask::image;

use crate::Scenario;
use crate::harness::{Bench, LONG, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![a_slow_reader_of_kubectl_exec_gets_everything_or_sees_that_it_does_not]
}

const NAMESPACE: &str = "store-reader";
const POD: &str = "operator";
const UID: &str = "6f1f0000-0000-4000-8000-00000000e8ec";
/// Bytes of its large session: more than what is in flight between the program and kubectl.
const LARGE: usize = 24 << 20;
/// Its small sessions, so that the list of them is larger than what a pipe and a socket hold.
const SMALL: usize = 5000;

/// What a reader got.
struct Delivered {
    bytes: Vec<u8>,
    notes: String,
    success: bool,
}

async fn a_slow_reader_of_kubectl_exec_gets_everything_or_sees_that_it_does_not(bench: Arc<Bench>) -> Result<()> {
    store_an_archive(&bench).await?;
    operator_pod(&bench).await?;
    // 56 MiB with the zeros that follow.
    export(&slowly(&bench, &["archives", "export", UID], 8_000_000).await?)?;
    for arguments in [&["archives", "show", UID][..], &["archives", "show", UID, "--json"]] {
        let whole = here(&bench, arguments).await?;
        compared(&arguments.join(" "), &whole, &slowly(&bench, arguments, 400_000).await?)?;
    }
    bench.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"], "").await.map(drop)
}

/// An export that exits with 0 and prints its digest has its whole tar before the zeros: only zeros may be lost. kubectl loses the end of standard error,
/// too (seen): without the digest the reader cannot compare, so the export does not count as complete.
fn export(got: &Delivered) -> Result<()> {
    println!("export: {} of at least {} bytes, exit code 0: {}", got.bytes.len(), LARGE + (32 << 20), got.success);
    if !got.success {
        return Ok(());
    }
    let Some(said) = got.notes.lines().find_map(|line| line.strip_prefix("tar: ")) else { return Ok(()) };
    let (bytes, digest) = said.split_once(" bytes, sha256 ").context("no digest on standard error")?;
    let tar = got.bytes.get(..bytes.parse()?).context("silently short: the export ended before its tar, with exit code 0")?;
    ensure!(hex::encode(Sha256::digest(tar)) == digest, "the export is damaged, with exit code 0");
    ensure!(tar.len() > LARGE && got.bytes[tar.len()..].iter().all(|byte| *byte == 0), "it is another archive");
    Ok(())
}

/// The comparison that the book describes never calls an output complete that is not.
fn compared(name: &str, whole: &[u8], got: &Delivered) -> Result<()> {
    let said = got.notes.lines().find_map(|line| line.strip_prefix("output: ")?.split_once(" bytes, sha256 "));
    let complete = said.is_some_and(|(_, digest)| digest == hex::encode(Sha256::digest(&got.bytes)));
    println!("{name}: {} of {} bytes, exit code 0: {}, complete: {complete}", got.bytes.len(), whole.len(), got.success);
    ensure!(!complete || got.bytes == whole, "it counts as complete and is not: {}", got.notes);
    // A number or a string has no end of its own, an object has.
    ensure!(
        !whole.starts_with(b"{") || got.bytes.len() + 1 >= whole.len() || serde_json::from_slice::<serde_json::Value>(&got.bytes).is_err()
    );
    Ok(())
}

/// Runs the program in its pod, and reads its output at this rate.
async fn slowly(bench: &Bench, arguments: &[&str], rate: u64) -> Result<Delivered> {
    let mut child = tokio::process::Command::new(&bench.kubectl)
        .args(["exec", "-n", NAMESPACE, POD, "--", "/computer-operator"])
        .args(arguments)
        .env("KUBECONFIG", bench.cluster.kubeconfig())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (mut out, mut bytes, mut buffer) = (child.stdout.take().context("stdout")?, Vec::new(), vec![0; 64 * 1024]);
    let began = Instant::now();
    loop {
        let read = tokio::time::timeout(LONG, out.read(&mut buffer)).await.context("kubectl exec hangs")??;
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..read]);
        tokio::time::sleep(Duration::from_nanos(bytes.len() as u64 * 1_000_000_000 / rate).saturating_sub(began.elapsed())).await;
    }
    let ended = child.wait_with_output().await?;
    Ok(Delivered { bytes, notes: String::from_utf8_lossy(&ended.stderr).into_owned(), success: ended.status.success() })
}

/// What the program writes without `kubectl exec`.
async fn here(bench: &Bench, arguments: &[&str]) -> Result<Vec<u8>> {
    let store = format!("file://{}", bench.store_path().display());
    let program = env!("CARGO_BIN_EXE_computer-operator");
    let ended = tokio::process::Command::new(program).args(arguments).args(["--store", &store]).stdin(Stdio::null()).output().await?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    Ok(ended.stdout)
}

/// Stores an archive of one large and many small sessions.
async fn store_an_archive(bench: &Bench) -> Result<()> {
    let home = tempfile::tempdir()?;
    let sessions = home.path().join("s");
    std::fs::create_dir(&sessions)?;
    let mut noise = vec![0; LARGE];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut noise)?;
    std::fs::write(sessions.join("large.jsonl"), noise)?;
    for n in 0..SMALL {
        std::fs::write(sessions.join(format!("small-{n}.jsonl")), b"one")?;
    }
    let computer = ManifestComputer { namespace: NAMESPACE.into(), namespace_uid: None, name: "box".into(), uid: UID.into() };
    let (mut manifest, mut blobs) = (Manifest::empty(computer, 1), Vec::new());
    let (paths, progress, tally) = (["s".to_owned()], Arc::default(), Arc::default());
    let request =
        Request { home: home.path(), session_paths: &paths, unreadable: Unreadable::Block, sizes: Sizes::default(), progress, tally };
    let mut take = |blob| {
        blobs.push(blob);
        Ok(())
    };
    pack::pack(&request, &mut manifest, &mut take)?;
    let store = bench.store()?;
    for blob in blobs {
        store.put_once(&chunk_key(UID, &blob.chunk.digest), blob.bytes).await?;
    }
    store.put_once(&manifest_key(UID), serde_json::to_vec(&manifest)?).await?;
    Ok(())
}

/// A pod with the operator's image and the store, in which nothing runs but a program that waits for its input.
async fn operator_pod(bench: &Bench) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE,
        "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
    let container = json!({"name": "operator", "image": image::OPERATOR, "imagePullPolicy": "Never", "args": ["keys", "verify"], "stdin": true,
        "securityContext": {"runAsUser": 0}, "volumeMounts": [{"name": "store", "mountPath": "/var/lib/computer-operator/store", "readOnly": true}]});
    let volume = json!({"name": "store", "hostPath": {"path": bench.store_path(), "type": "Directory"}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "namespace": NAMESPACE}, "spec": {
        "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0, "containers": [container], "volumes": [volume]}});
    for object in [namespace, pod] {
        bench.kubectl(&["create", "-f", "-"], &object.to_string()).await?;
    }
    eventually("the pod of the operator's program runs", LONG, || async {
        let pod = bench.pods(NAMESPACE).get(POD).await?;
        let status = pod.status.unwrap_or_default();
        let ready = status.container_statuses.iter().flatten().any(|container| container.ready);
        if ready { Ok(Some(())) } else { bail!("{:?}", status.phase) }
    })
    .await
}
