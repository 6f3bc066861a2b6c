//! The archive pod's program: the real code packs a home and sends it to the real ingest endpoint of a replica that answers.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use bytes::Bytes;
use computer_operator::archive::Unreadable;
use computer_operator::archive::chunks::{Blob, Sizes};
use computer_operator::archive::manifest::{Chunk, Manifest, ManifestComputer};
use computer_operator::archive::pack::{self, Request as Packing};
use futures::FutureExt;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::kubelet;
use crate::api::value::{at, name, namespace, text, uid};
use crate::moves::TEAM;
use crate::world::World;

/// A packed home.
pub struct Packed {
    /// What the manifest says of it.
    pub manifest: Manifest,
    /// Its chunks and its index.
    pub blobs: Vec<Blob>,
}

impl Packed {
    /// Digests of its chunks, without the index.
    pub fn digests(&self) -> Vec<String> {
        let index: Vec<&Chunk> = self.manifest.pieces().collect();
        self.blobs.iter().map(|blob| &blob.chunk).filter(|chunk| !index.contains(chunk)).map(|chunk| chunk.digest.clone()).collect()
    }

    /// The manifest of this home as that of a computer.
    pub fn manifest_of(&self, computer: ManifestComputer, created_at: i64, custody_claim: String) -> Bytes {
        let manifest = Manifest { computer, created_at, custody_claim, ..self.manifest.clone() };
        serde_json::to_vec(&manifest).expect("a manifest").into()
    }
}

static PACKED: LazyLock<Mutex<HashMap<u64, Arc<Packed>>>> = LazyLock::new(Mutex::default);

/// The home after this many writes, packed by the real code.
pub fn packed(version: u64) -> Arc<Packed> {
    let mut all = PACKED.lock().unwrap();
    Arc::clone(all.entry(version).or_insert_with(|| Arc::new(pack_home(version))))
}

fn pack_home(version: u64) -> Packed {
    let folder = tempfile::tempdir().expect("a folder");
    let sessions = folder.path().join(".claude/projects");
    std::fs::create_dir_all(&sessions).expect("a folder");
    std::fs::write(sessions.join("session.jsonl"), format!("{{\"write\": {version}}}\n")).expect("a file");
    // The archive has the times, and the digests of its chunks are in the journal.
    for path in [&sessions.join("session.jsonl"), &sessions] {
        std::fs::File::open(path).and_then(|file| file.set_modified(std::time::SystemTime::UNIX_EPOCH)).expect("a time");
    }
    let (mut manifest, mut blobs) = (empty(), Vec::new());
    let mut take = |blob| {
        blobs.push(blob);
        Ok(())
    };
    let paths = [".claude/projects".to_owned()];
    let packing = Packing {
        home: folder.path(),
        session_paths: &paths,
        unreadable: Unreadable::Block,
        sizes: Sizes::default(),
        progress: Arc::default(),
        tally: Arc::default(),
    };
    pack::pack(&packing, &mut manifest, &mut take).expect("packed");
    Packed { manifest, blobs }
}

/// That of another computer of the same namespace: only its UID is wrong.
fn empty() -> Manifest {
    Manifest::empty(
        ManifestComputer { namespace: TEAM.to_owned(), namespace_uid: None, name: "other".to_owned(), uid: "another-computer".to_owned() },
        0,
    )
}

/// Longer than the deadline of any class in the simulator.
const SLOW: Duration = Duration::from_secs(1500);
/// Attempts of one request. The real program repeats it for ten minutes.
const TRIES: u32 = 6;

pub async fn run(world: World, pod: Arc<Value>) {
    let result = send(&world, &pod).await;
    let (code, message) = match &result {
        Ok(()) => (0, ""),
        Err(message) => (1, message.as_str()),
    };
    world.note(format!("        -- {} ended: {code} {message}", name(&pod)));
    world.with(|s| {
        if s.kubelet.running.remove(uid(&pod)).is_some() {
            kubelet::ended(s, namespace(&pod), name(&pod), uid(&pod), code, message);
        }
    });
    world.notify();
}

async fn send(world: &World, pod: &Value) -> Result<(), String> {
    let variable = |wanted: &str| {
        let all = at(pod, "/spec/containers/0/env").and_then(Value::as_array);
        all.into_iter().flatten().find(|e| text(e, "/name") == Some(wanted)).and_then(|e| text(e, "/value")).unwrap_or_default().to_owned()
    };
    let volume = world.with(|s| s.kubelet.running.get(uid(pod)).and_then(|r| r.volumes.first().cloned())).ok_or("no volume")?;
    let version = world.with(|s| s.disks.get(&volume).map_or(0, |d| d.written));
    let home = packed(version);
    let computer = ManifestComputer {
        namespace: variable("COMPUTER_NAMESPACE"),
        namespace_uid: Some(variable("COMPUTER_NAMESPACE_UID")).filter(|uid| !uid.is_empty()),
        name: variable("COMPUTER_NAME"),
        uid: variable("COMPUTER_UID"),
    };
    let base = format!("/ingest/v2/{}", computer.uid);
    let token = format!("pod/{}/{}/{}", namespace(pod), name(pod), uid(pod));
    // First the requests of a broken or hostile pod: wrong bytes, another computer's archive, an earlier version. All must be refused.
    let chunk = |blob: &Blob| format!("{base}/chunks/{}", blob.chunk.digest);
    let first = home.blobs.first().ok_or("nothing was packed")?;
    let _ = put(world, pod, &chunk(first), &token, first.bytes.slice(1..)).await;
    let _ = put(world, pod, "/ingest/v2/another-computer/manifest", &token, serde_json::to_vec(&empty()).expect("a manifest").into()).await;
    let old = format!("/ingest/v1/{}/objects/{}", computer.uid, first.chunk.digest);
    if put(world, pod, &old, &token, first.bytes.clone()).await.is_ok() {
        return Err("an archive pod of an earlier version was accepted".to_owned());
    }
    for blob in &home.blobs {
        put(world, pod, &chunk(blob), &token, blob.bytes.clone()).await?;
    }
    if world.with(|s| s.observer.slow_pods) {
        tokio::time::sleep(SLOW).await;
    }
    let manifest = home.manifest_of(computer, world.sources().now().as_second(), variable("CUSTODY_CLAIM"));
    put(world, pod, &format!("{base}/manifest"), &token, manifest).await
}

async fn put(world: &World, pod: &Value, path: &str, token: &str, body: Bytes) -> Result<(), String> {
    let mut last = "not tried".to_owned();
    for n in 0..TRIES {
        tokio::time::sleep(if n > 0 { Duration::from_secs(1 << n.min(4)) } else { Duration::from_millis(20) }).await;
        if !world.with(|s| s.kubelet.running.contains_key(uid(pod))) {
            return Err("killed".to_owned());
        }
        let Some(router) = world.endpoint() else {
            "no operator answers".clone_into(&mut last);
            continue;
        };
        let request = Request::builder().method(Method::PUT).uri(path).header("authorization", format!("Bearer {token}"));
        let request = request.body(Body::from(body.clone())).map_err(|e| e.to_string())?;
        // Like the real client: a missing answer is retried. A handler that panics breaks the connection, not the client.
        let answer = AssertUnwindSafe(tokio::time::timeout(Duration::from_secs(120), router.oneshot(request))).catch_unwind().await;
        let Ok(Ok(Ok(answer))) = answer else {
            "no answer".clone_into(&mut last);
            continue;
        };
        let status = answer.status();
        let said = answer.into_body().collect().await.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
        if status.is_success() {
            return Ok(());
        }
        last = format!("{status} {said}");
        if status.is_client_error() && status.as_u16() != 429 {
            break;
        }
    }
    Err(last)
}
