//! The operator's clock is wrong, or is set anew while it works: by an hour or by ten years, forward and back. Nobody is deleted for
//! it, nothing is given up unarchived, nothing waits for ever. The whole process sees the moved clock (libfaketime); what measures
//! durations goes on as it did, as it does on a real machine.

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
    xtask::scenarios![clock_moved_in_the_midst, clock_ahead_gives_no_archive_up, clock_behind_holds_no_archive_up]
}

const PORT: u16 = 9643;
const HOUR: i64 = 3600;
const TEN_YEARS: i64 = 10 * 365 * 24 * HOUR;

/// libfaketime, installed if need be.
pub fn library() -> Result<PathBuf> {
    let path = PathBuf::from(format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH));
    if !path.exists() {
        packages::install(&["libfaketime"], &|line| eprintln!("{line}"))?;
    }
    ensure!(path.exists(), "there is no {}", path.display());
    Ok(path)
}

/// A clock that can be moved, of the operators that are started with it.
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

    /// Moves it to so many seconds beside the real one, at once and for everybody who runs with it.
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

/// Moved while deletions are under way; then the operator is killed and starts with the moved clock; then the clock is right again.
async fn clock_moved_in_the_midst(bench: Arc<Bench>) -> Result<()> {
    let mut random = moments("the clock moved");
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
            // No certificate is valid yet: a new process reaches nobody, ends, and is started again until the clock is right.
            operator.ends().await?;
            clock.set(0)?;
            operator = clock.operator(&bench).await?;
        }
        crowd.ended(&bench).await.with_context(|| format!("the clock {shift} s off"))?;
        // Whoever is new gets a key, and nobody else lost theirs.
        bench.ready(&stays, &format!("new-{}", shift.unsigned_abs() + u64::from(shift < 0)), json!({"provider": "BYOM"})).await?;
        clock.set(0)?;
    }
    for computer in bench.computers(&stays).list(&kube::api::ListParams::default()).await?.items {
        let name = computer.metadata.name.unwrap_or_default();
        ensure!(computer.metadata.deletion_timestamp.is_none(), "a wrong clock deleted {name}");
        ensure!(
            bench.authenticates(&bench.token_of(&computer.metadata.uid.context("a UID")?)?).await?,
            "a wrong clock killed the key of {name}"
        );
    }
    ensure!(bench.computers(&stays).get_opt("half-an-hour").await?.is_some(), "a wrong clock deleted a computer that lives half an hour");
    println!("    16 deletions, the clock moved by {shifts:?} s in their midst; ended after {}", seconds(start));
    Ok(())
}

/// `BestEffort` gives up when its deadline has passed: that a clock is set forward is no passed deadline (S1).
async fn clock_ahead_gives_no_archive_up(bench: Arc<Bench>) -> Result<()> {
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
    // It is looked at again; and whoever comes after it was looked at later.
    bench.kubectl(&["annotate", "computer", "box", "-n", &namespace, "seen=later"], "").await?;
    bench.ready(&namespace, "after", json!({"provider": "BYOM"})).await?;
    drop(down);
    bench.archived(&uid, 3).await.map(drop)
}

/// A pause before another attempt is as long as it is, whatever the clock says meanwhile (L1).
async fn clock_behind_holds_no_archive_up(bench: Arc<Bench>) -> Result<()> {
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
        "spec": {"computer": {"namespace": namespace, "name": "box", "uid": uid}, "skip": ["unreadable-files"], "reason": "nobody can read it"}});
    bench.kubectl(&["apply", "-f", "-"], &decided.to_string()).await?;
    bench.archived(&uid, 3).await.map(drop)
}
