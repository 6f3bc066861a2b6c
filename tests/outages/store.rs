//! The archive store is down: first it hangs, then it refuses connections, then it recovers. Deletions that need it wait and report it, all
//! others continue (L2, L3), and at the end nothing is missing (S1, L1). It is a real S3 server, so that it can hang.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use computer_operator::archive::{Store, chunk_key, manifest_key, receipt_key};
use computer_operator::resources::{Phase, RecordPhase};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use xtask::isolation;
use xtask::tools::{self, Tool};

use crate::crowd::{Crowd, seconds};
use crate::harness::{Bench, LONG, eventually};
use crate::operators::Start;
use crate::{Scenario, moments, setting};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![store_out, a_full_store_keeps_its_reserve, a_full_store_blocks_only_archives]
}

/// Archives fill a volume except for its reserve, which manifests and receipts use: a deletion without an archive completes.
async fn a_full_store_keeps_its_reserve(_bench: Arc<Bench>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path().display().to_string();
    ensure!(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none", &at]).status()?.success(), "mounting a volume of 4 MiB");
    let store = Store::open(&format!("file://{at}"))?;
    let mut chunks = 0;
    let refusal = loop {
        match store.create(&chunk_key("u", &format!("{chunks:064}")), vec![7; 256 * 1024].into()).await {
            Ok(_) => chunks += 1,
            Err(error) => break error.to_string(),
        }
    };
    let kept =
        (store.create(&manifest_key("u"), vec![7; 512 * 1024].into()).await, store.create(&receipt_key("u"), vec![7; 4096].into()).await);
    ensure!(Command::new("umount").arg(&at).status()?.success(), "unmounting the volume");
    ensure!((8..16).contains(&chunks) && refusal.contains("except for the reserve"), "{chunks} chunks, then: {refusal}");
    ensure!(matches!(kept, (Ok(true), Ok(true))), "{kept:?}");
    Ok(())
}

/// L2, L3: only the deletion that needs an archive waits for room, and it continues once there is some. The others have the reserve.
async fn a_full_store_blocks_only_archives(bench: Arc<Bench>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path().display().to_string();
    inside(&bench, &format!("mount -t tmpfs -o size=16m none {at}"))?;
    let _operator = bench.start(&Start { store: Some(format!("file://{at}")), ..Start::usual(9643) }).await?;
    bench.class("nothing-archived", json!({"archive": {"policy": "None"}})).await?;
    let namespace = bench.namespace("full").await?;
    let waits = bench.active(&namespace, "waits", "standard").await?;
    bench.work(&namespace, &waits).await?;
    bench.shell(&namespace, &waits, "head -c 3000000 /dev/urandom > $HOME/.codex/sessions/2026/11/large.jsonl").await?;
    let others = [
        ("none", bench.active(&namespace, "none", "nothing-archived").await?),
        ("byom", bench.ready(&namespace, "byom", json!({"provider": "BYOM"})).await?),
    ];
    inside(&bench, &format!("dd if=/dev/zero of={at}/filler bs=1M count=14"))?;
    bench.delete(&namespace, "waits", "background").await?;
    let message = bench.blocked(&namespace, "waits", "StoreUnavailable").await?;
    ensure!(message.contains("full") && message.contains("free space"), "{message}");
    for (name, uid) in &others {
        bench.delete(&namespace, name, "background").await?;
        released(&bench, uid).await?;
    }
    ensure!(
        bench.record(&waits).await?.context("a record")?.spec.state.phase != RecordPhase::Released,
        "S1: there is no room for its archive"
    );
    inside(&bench, &format!("rm {at}/filler"))?;
    released(&bench, &waits).await?;
    // The volume is mounted in the cluster only, and the checks read the usual folder.
    inside(&bench, &format!("mkdir -p {0} && cp -a {at}/. {0}", bench.store_path().display()))?;
    for (_, uid) in &others {
        bench.clean(uid).await?;
    }
    bench.archived(&waits, 4).await?;
    println!("    while the store was full: {message}");
    Ok(())
}

/// Runs a shell command where the cluster's programs run.
fn inside(bench: &Bench, script: &str) -> Result<()> {
    let cluster = bench.cluster.dir().context("a cluster with a folder")?;
    isolation::run_inside(cluster, Path::new("/bin/sh"), &["-c", script]).map(drop)
}

async fn released(bench: &Bench, uid: &str) -> Result<()> {
    eventually(&format!("{uid} is released"), LONG, || async {
        let record = bench.record(uid).await?.context("no record")?;
        Ok((record.spec.state.phase == RecordPhase::Released).then_some(()))
    })
    .await
}

/// More deletions wait for the store than an operator works on at a time (32).
const BYOM: usize = 70;
const MANAGED: usize = 3;

async fn store_out(bench: Arc<Bench>) -> Result<()> {
    let mut random = moments("store down");
    let out = Duration::from_secs(setting("OUTAGES_STORE_SECONDS", 30));
    let mut server = Server::start(&bench)?;
    let credentials = [("AWS_ACCESS_KEY_ID", "tester"), ("AWS_SECRET_ACCESS_KEY", "tester-secret")];
    let environment = credentials.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let _operator = bench.start(&Start { store: Some(Server::url()), environment, ..Start::usual(9643) }).await?;
    bench.class("hand-off-s3", json!({"archive": {"policy": "Required", "onNamespaceDeletion": "HandOff"}})).await?;
    let before = Crowd::born(&bench, "store-before", 4, 1).await?;
    before.delete(&bench, &mut random, Duration::from_millis(100)).await?;
    before.ended(&bench).await?;
    let crowd = Crowd::born(&bench, "store-out", BYOM, MANAGED).await?;
    let leaving = bench.namespace("store-leaving").await?;
    let handed = bench.active(&leaving, "box", "hand-off-s3").await?;
    bench.work(&leaving, &handed).await?;

    let start = Instant::now();
    server.pause()?;
    crowd.delete(&bench, &mut random, Duration::from_millis(40)).await?;
    let hung = others_go_on(&bench, &crowd, "hangs").await?;
    bench.kubectl(&["delete", "namespace", &leaving, "--wait=false"], "").await?;
    tokio::time::sleep((out / 2).saturating_sub(start.elapsed())).await;
    server.kill();
    let refused = others_go_on(&bench, &crowd, "refuses").await?;
    let spaces: Api<Namespace> = Api::all(bench.client.clone());
    eventually("L7: the namespace is handed off", LONG, || async { Ok(spaces.get_opt(&leaving).await?.is_none().then_some(())) }).await?;
    tokio::time::sleep(out.saturating_sub(start.elapsed())).await;
    ensure!(crowd.released(&bench).await? == 0, "S3: released without a receipt in the store");
    let was_out = seconds(start);
    server = Server::start(&bench)?;
    let back = Instant::now();
    crowd.ended(&bench).await?;
    bench.archived(&handed, 3).await?;
    println!(
        "    {} deletions, the store down for {was_out}; meanwhile others took {hung} and {refused}; finished {} after it recovered",
        BYOM + MANAGED + 1,
        seconds(back)
    );
    drop(server);
    Ok(())
}

/// While deletions wait for the store and report it: another computer is created, and one whose receipt is skipped is deleted. Returns
/// how long that took.
async fn others_go_on(bench: &Bench, waiting: &Crowd, how: &str) -> Result<String> {
    let start = Instant::now();
    let namespace = bench.namespace("store-others").await?;
    let uid = bench.create(&namespace, "other", json!({"provider": "BYOM"})).await?;
    bench.phase(&namespace, "other", Phase::Active).await?;
    let active = start.elapsed();
    let allowed = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "DeletionOverride", "metadata": {"name": format!("no-receipt-{uid}")},
        "spec": {"computer": {"namespace": namespace, "name": "other", "uid": uid}, "skip": ["write-receipt"], "reason": "the store is out"}});
    bench.kubectl(&["apply", "-f", "-"], &allowed.to_string()).await?;
    let deleted = Instant::now();
    bench.delete(&namespace, "other", "background").await?;
    bench.clean(&uid).await?;
    let gone = deleted.elapsed();
    // Generous for a busy machine with two cores; a worker that waits for the store would take 20 s.
    ensure!(
        active < Duration::from_secs(15) && gone < Duration::from_secs(15),
        "L3: while the store {how}, another computer took {active:.1?} to be active, {gone:.1?} to be gone"
    );
    let member = waiting.members.iter().find(|m| !m.managed).context("a member")?;
    bench.blocked(&waiting.namespace, &member.name, "StoreUnavailable").await?;
    Ok(format!("{:.1} s to be active, {:.1} s to be gone", active.as_secs_f64(), gone.as_secs_f64()))
}

/// A real S3 server inside the cluster's namespaces. Its bucket is the folder that [`Bench::store`] reads.
struct Server(Child);

impl Server {
    const PORT: u16 = 9900;

    fn start(bench: &Bench) -> Result<Self> {
        let program = tools::ensure(&[Tool::VersityGw])?;
        std::fs::create_dir_all(bench.store_path())?;
        let mut command = Command::new(program.path(Tool::VersityGw));
        command
            .args(["--access", "tester", "--secret", "tester-secret", "--port", &format!("127.0.0.1:{}", Self::PORT), "posix"])
            .arg(bench.store_path().parent().context("a folder")?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(isolation::spawn_inside(bench.cluster.dir().context("a cluster with a folder")?, command)?))
    }

    fn url() -> String {
        format!("s3://store?endpoint=http://127.0.0.1:{}&region=us-east-1&allow_http=true", Self::PORT)
    }

    /// It accepts connections and never answers.
    fn pause(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.0), Signal::STOP)?)
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
