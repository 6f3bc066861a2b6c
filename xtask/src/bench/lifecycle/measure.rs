//! The measurements: a burst of lives, and lives one after the other.
//!
//! Each begins and ends with an idle operator, and leaves no object behind, except the operator's records, which stay for 30 days.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{DeleteParams, DynamicObject, PostParams};

use super::contender::{Contender, Kind};
use super::deadline;
use super::figures::{Burst, Singles};
use super::usage::Meter;
use super::watch::{Goal, Watch};
use crate::bench::stage::Stage;

/// Requests of the client in flight.
const FLIGHT: usize = 32;

/// The running system with its meter.
pub struct Bench<'a> {
    client: kube::Client,
    meter: Meter<'a>,
}

/// The watches of a contender: of the objects that become ready, and of those that disappear last.
struct Watches {
    begins: Watch,
    ends: Option<Watch>,
}

impl Watches {
    async fn start(client: &kube::Client, contender: Contender) -> Result<Self> {
        let (begins, ends) = (contender.begins(), contender.ends());
        let ends = if begins == ends { None } else { Some(Watch::start(client, ends).await?) };
        Ok(Self { begins: Watch::start(client, begins).await?, ends })
    }

    async fn ready(&mut self, lives: &[String]) -> Result<()> {
        self.begins.wait(lives, Goal::Ready, deadline(lives.len())).await
    }

    async fn gone(&mut self, lives: &[String]) -> Result<()> {
        self.begins.wait(lives, Goal::Gone, deadline(lives.len())).await?;
        match &mut self.ends {
            Some(ends) => ends.wait(lives, Goal::Gone, deadline(lives.len())).await,
            None => Ok(()),
        }
    }
}

impl<'a> Bench<'a> {
    /// Connects to a running system, and waits until its operator is idle. Each measurement ends with an idle operator, so the next one need not wait.
    pub async fn new(stage: &'a Stage) -> Result<Self> {
        let meter = Meter::new(stage)?;
        meter.settled().await?;
        Ok(Self { client: stage.client().await?, meter })
    }

    /// Creates that many lives at once, waits until all are ready, deletes them at once, and waits until all are gone.
    pub async fn burst(&self, contender: Contender, prefix: &str, count: usize) -> Result<Burst> {
        let lives: Vec<String> = (0..count).map(|number| format!("{prefix}-{number}")).collect();
        let what = || format!("a burst of {count}, {}", contender.name());
        let mut watches = Watches::start(&self.client, contender).await?;
        let before = self.meter.now().await?;
        let began = Instant::now();
        self.create(contender, &lives).await.with_context(what)?;
        watches.ready(&lives).await.with_context(what)?;
        let created = began.elapsed();
        let began = Instant::now();
        self.delete(contender, &lives).await.with_context(what)?;
        watches.gone(&lives).await.with_context(what)?;
        let deleted = began.elapsed();
        let used = self.meter.settled().await?.since(&before);
        Ok(Burst { count, created, deleted, used })
    }

    /// The same with one life after the other.
    pub async fn one_at_a_time(&self, contender: Contender, prefix: &str, count: usize) -> Result<Singles> {
        let what = || format!("one at a time, {}", contender.name());
        let mut watches = Watches::start(&self.client, contender).await?;
        let before = self.meter.now().await?;
        let (mut created, mut deleted) = (Vec::new(), Vec::new());
        for number in 0..count {
            let lives = [format!("{prefix}-{number}")];
            created.push(
                timed(async {
                    self.create(contender, &lives).await?;
                    watches.ready(&lives).await
                })
                .await
                .with_context(what)?,
            );
            deleted.push(
                timed(async {
                    self.delete(contender, &lives).await?;
                    watches.gone(&lives).await
                })
                .await
                .with_context(what)?,
            );
        }
        let used = self.meter.settled().await?.since(&before);
        Ok(Singles { created, deleted, used })
    }

    async fn create(&self, contender: Contender, lives: &[String]) -> Result<()> {
        let one = |life: String| async move {
            for (kind, object) in contender.objects(&life) {
                let object: DynamicObject = serde_json::from_value(object)?;
                kind.api(&self.client).create(&PostParams::default(), &object).await.with_context(|| format!("create {kind:?} {life}"))?;
            }
            anyhow::Ok(())
        };
        stream::iter(lives.to_vec()).map(one).buffer_unordered(FLIGHT).try_collect().await
    }

    async fn delete(&self, contender: Contender, lives: &[String]) -> Result<()> {
        let one = |life: String| async move {
            let kinds: Vec<Kind> = contender.objects(&life).into_iter().map(|(kind, _)| kind).rev().collect();
            for kind in kinds {
                let api = kind.api(&self.client);
                api.delete(&life, &DeleteParams::background()).await.with_context(|| format!("delete {kind:?} {life}"))?;
            }
            anyhow::Ok(())
        };
        stream::iter(lives.to_vec()).map(one).buffer_unordered(FLIGHT).try_collect().await
    }
}

/// How long it takes to complete.
async fn timed(work: impl Future<Output = Result<()>>) -> Result<Duration> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed())
}
