//! The archive pod's program: the real code packs a home and sends it to the real ingest endpoint of a replica that answers.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use bytes::Bytes;
use computer_operator::archive::SessionEntry;
use computer_operator::archive::Unreadable;
use computer_operator::archive::manifest::{Manifest, ManifestComputer, VERSION};
use computer_operator::archive::pack;
use computer_operator::archive::problems::Problems;
use futures::FutureExt;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::kubelet;
use crate::api::value::{name, namespace, text, uid};
use crate::world::World;

/// A packed home: its one session.
pub struct Packed {
    pub entry: SessionEntry,
    pub object: Bytes,
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
    let found = pack::find(folder.path(), &[".claude/projects".to_owned()], Unreadable::Block).expect("a home");
    let (id, files) = found.sessions.iter().next().expect("a session");
    let packed = pack::pack(folder.path(), folder.path(), id, files, Unreadable::Block, &mut Problems::default());
    let packed = packed.expect("packed").expect("a session");
    let object = std::fs::read(packed.object.path()).expect("the object").into();
    Packed { entry: packed.entry, object }
}

/// Longer than the deadline of any class in the simulator.
const SLOW: Duration = Duration::from_secs(1500);
/// Attempts of one request, as in the real program.
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
        let all = pod.pointer("/spec/containers/0/env").and_then(Value::as_array);
        all.into_iter().flatten().find(|e| text(e, "/name") == Some(wanted)).and_then(|e| text(e, "/value")).unwrap_or_default().to_owned()
    };
    let volume = world.with(|s| s.kubelet.running.get(uid(pod)).and_then(|r| r.volumes.first().cloned())).ok_or("no volume")?;
    let version = world.with(|s| s.disks.get(&volume).map_or(0, |d| d.written));
    let home = packed(version);
    let computer =
        ManifestComputer { namespace: variable("COMPUTER_NAMESPACE"), name: variable("COMPUTER_NAME"), uid: variable("COMPUTER_UID") };
    let base = format!("/ingest/v1/{}", computer.uid);
    let token = format!("pod/{}/{}/{}", namespace(pod), name(pod), uid(pod));
    let object = format!("{base}/objects/{}", home.entry.digest);
    // First the requests of a broken or hostile pod: wrong bytes, another computer's archive. Both must be refused.
    let _ = put(world, pod, &object, &token, home.object.slice(1..)).await;
    let _ = put(world, pod, "/ingest/v1/another-computer/manifest", &token, foreign_manifest()).await;
    put(world, pod, &object, &token, home.object.clone()).await?;
    if world.with(|s| s.observer.slow_pods) {
        tokio::time::sleep(SLOW).await;
    }
    let manifest = Manifest {
        version: VERSION,
        computer,
        created_at: world.sources().now().as_second(),
        session_paths: Vec::new(),
        sessions: vec![home.entry.clone()],
        problems: Vec::new(),
        problem_count: 0,
        lost_count: 0,
        left_out_by: String::new(),
        custody_claim: variable("CUSTODY_CLAIM"),
    };
    let bytes = serde_json::to_vec_pretty(&manifest).map_err(|e| e.to_string())?;
    put(world, pod, &format!("{base}/manifest"), &token, bytes.into()).await
}

fn foreign_manifest() -> Bytes {
    let computer = ManifestComputer { namespace: "other".to_owned(), name: "other".to_owned(), uid: "another-computer".to_owned() };
    let (created_at, problem_count) = (0, 0);
    let manifest = Manifest {
        version: VERSION,
        computer,
        created_at,
        session_paths: vec![],
        sessions: vec![],
        problems: vec![],
        problem_count,
        lost_count: 0,
        left_out_by: String::new(),
        custody_claim: String::new(),
    };
    serde_json::to_vec(&manifest).expect("a manifest").into()
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
