//! The operator's clock is wrong, or is changed while it runs: by an hour or by ten years, forward and back. No computer is deleted
//! because of it, no archive is given up, and no deletion waits forever. The whole process sees the changed clock (libfaketime); the
//! monotonic clock is unchanged, as on a real machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use xtask::node::packages;

use crate::crowd::{Crowd, seconds};
use crate::harness::{Bench, StoreDown};
use crate::operators::{Operator, Start};
use crate::{Scenario, moments};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![clock_changes_during_deletions, a_clock_ahead_gives_up_no_archive, a_clock_behind_delays_no_archive]
}

const PORT: u16 = 9643;
const HOUR: i64 = 3600;
const TEN_YEARS: i64 = 10 * 365 * 24 * HOUR;

/// libfaketime, installed if necessary.
pub fn library() -> Result<PathBuf> {
    let path = PathBuf::from(format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH));
    if !path.exists() {
        packages::install(&["libfaketime"], &|line| eprintln!("{line}"))?;
    }
    ensure!(path.exists(), "{} does not exist", path.display());
    Ok(path)
}

/// An adjustable clock for the operators that are started with it.
struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    fn new(folder: &Path) -> Result<Self> {
        let clock = Self { file: folder.join("clock"), library: library()? };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets the clock to this many seconds from the real time, at once for every operator that uses it.
    fn set(&self, seconds: i64) -> Result<()> {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}"))?;
        std::fs::rename(next, &self.file)?;
        let date = std::process::Command::new("date").arg("+%s").envs(self.environment()).output()?;
        let shown = Timestamp::from_second(String::from_utf8(date.stdout)?.trim().parse()?)?;
        let off = shown.duration_since(Timestamp::now()) - SignedDuration::from_secs(seconds);
        ensure!(off.abs() < SignedDuration::from_secs(10), "the clock shows {shown}");
        Ok(())
    }

    fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    async fn operator(&self, bench: &Bench) -> Result<Operator> {
        bench.start(&Start { environment: self.environment(), ..Start::usual(PORT) }).await
    }
}

/// The clock changes during deletions; then the operator is killed and starts with the changed clock; then the clock is right again.
async fn clock_changes_during_deletions(bench: Arc<Bench>) -> Result<()> {
    let mut random = moments("clock changed");
    let clock = Clock::new(bench.folder.path())?;
    let mut operator = clock.operator(&bench).await?;
    let stays = bench.namespace("clock-stays").await?;
    for (name, spec) in [("stays", json!({"provider": "BYOM"})), ("half-an-hour", json!({"provider": "BYOM", "timeToLiveSeconds": 1800}))] {
        bench.ready(&stays, name, spec).await?;
    }
    let (start, shifts) = (Instant::now(), [HOUR, -HOUR, TEN_YEARS, -TEN_YEARS]);
    for shift in shifts {
        let crowd = Crowd::born(&bench, "clock", 3, 1).await?;
        let mut order = random.clone();
        let deletes = crowd.delete(&bench, &mut order, Duration::from_millis(600));
        let moved = async {
            tokio::time::sleep(Duration::from_millis(rand::Rng::random_range(&mut random, 300..1500))).await;
            clock.set(shift)?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            operator.kill();
            operator = clock.operator(&bench).await?;
            anyhow::Ok(())
        };
        tokio::try_join!(deletes, moved)?;
        if shift == -TEN_YEARS {
            // No certificate is valid yet: a new process cannot connect, exits, and is restarted until the clock is right.
            operator.ends().await?;
            clock.set(0)?;
            operator = clock.operator(&bench).await?;
        }
        crowd.ended(&bench).await.with_context(|| format!("the clock {shift} s off"))?;
        // The new computers get a key, and all others keep theirs.
        bench.ready(&stays, &format!("new-{}", shift.unsigned_abs() + u64::from(shift < 0)), json!({"provider": "BYOM"})).await?;
        clock.set(0)?;
    }
    for computer in bench.computers(&stays).list(&kube::api::ListParams::default()).await?.items {
        let name = computer.metadata.name.unwrap_or_default();
        ensure!(computer.metadata.deletion_timestamp.is_none(), "a wrong clock deleted {name}");
        ensure!(
            bench.authenticates(&bench.token_of(&computer.metadata.uid.context("a UID")?)?).await?,
            "a wrong clock revoked the key of {name}"
        );
    }
    ensure!(
        bench.computers(&stays).get_opt("half-an-hour").await?.is_some(),
        "a wrong clock deleted a computer with a time to live of half an hour"
    );
    println!("    16 deletions, the clock changed by {shifts:?} s meanwhile; finished after {}", seconds(start));
    Ok(())
}

/// `BestEffort` gives up after its deadline. A clock that is set forward is not a passed deadline (S1).
async fn a_clock_ahead_gives_up_no_archive(bench: Arc<Bench>) -> Result<()> {
    let clock = Clock::new(bench.folder.path())?;
    let _operator = clock.operator(&bench).await?;
    bench.class("half-an-hour", json!({"archive": {"policy": "BestEffort"}, "deadlines": {"archiveSessionsSeconds": 1800}})).await?;
    let namespace = bench.namespace("clock-ahead").await?;
    let uid = bench.active(&namespace, "box", "half-an-hour").await?;
    bench.work(&namespace, &uid).await?;
    let down = StoreDown::new(&bench)?;
    bench.delete(&namespace, "box", "background").await?;
    bench.blocked(&namespace, "box", "StoreUnavailable").await?;
    clock.set(HOUR)?;
    // The computer is reconciled again, and computers created after it were reconciled later.
    bench.kubectl(&["annotate", "computer", "box", "-n", &namespace, "seen=later"], "").await?;
    bench.ready(&namespace, "after", json!({"provider": "BYOM"})).await?;
    drop(down);
    bench.archived(&uid, 3).await.map(drop)
}

/// The backoff before a retry keeps its length, whatever the clock says meanwhile (L1).
async fn a_clock_behind_delays_no_archive(bench: Arc<Bench>) -> Result<()> {
    let clock = Clock::new(bench.folder.path())?;
    let mut operator = clock.operator(&bench).await?;
    bench.class("block", json!({"archive": {"unreadableFiles": "Block"}})).await?;
    let namespace = bench.namespace("clock-behind").await?;
    let uid = bench.active(&namespace, "box", "block").await?;
    bench.work(&namespace, &uid).await?;
    bench
        .shell(&namespace, &uid, "echo secret > $HOME/.factory/sessions/locked.jsonl; chmod 000 $HOME/.factory/sessions/locked.jsonl")
        .await?;
    bench.delete(&namespace, "box", "background").await?;
    bench.blocked(&namespace, "box", "UnreadableFiles").await?;
    clock.set(-HOUR)?;
    operator.kill();
    let _operator = clock.operator(&bench).await?;
    let decided = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "DeletionOverride", "metadata": {"name": format!("give-up-{uid}")},
        "spec": {"computer": {"namespace": namespace, "name": "box", "uid": uid}, "skip": ["unreadable-files"], "reason": "no user can read it"}});
    bench.kubectl(&["apply", "-f", "-"], &decided.to_string()).await?;
    bench.archived(&uid, 3).await.map(drop)
}
