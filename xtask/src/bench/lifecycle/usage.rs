//! What the programs of the cluster, the operator and this client have used: processor time from `/proc`, and the operator's requests.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::requests::Requests;
use crate::bench::proc;
use crate::bench::stage::Stage;
use crate::tools::Tool;

/// A program whose processor time is measured, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Program {
    /// The API server.
    ApiServer,
    /// Its database.
    Etcd,
    /// The built-in controllers.
    ControllerManager,
    /// The operator.
    Operator,
    /// The client of this measurement.
    Client,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::ApiServer, Self::Etcd, Self::ControllerManager, Self::Operator, Self::Client];

    /// Its name in the tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "API server",
            Self::Etcd => "etcd",
            Self::ControllerManager => "controller manager",
            Self::Operator => "operator",
            Self::Client => "client",
        }
    }

    fn pid(self, stage: &Stage) -> Result<i32> {
        match self {
            Self::ApiServer => stage.pid(Tool::Apiserver),
            Self::Etcd => stage.pid(Tool::Etcd),
            Self::ControllerManager => stage.pid(Tool::ControllerManager),
            Self::Operator => stage.operator(),
            Self::Client => Ok(std::process::id().try_into()?),
        }
    }
}

/// Processor time of each program, and the operator's requests: since they were started, or of one measurement.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// User and system time.
    pub cpu: BTreeMap<Program, Duration>,
    /// Requests of the operator.
    pub requests: Requests,
}

impl Usage {
    /// What has been used since.
    pub fn since(&self, before: &Self) -> Self {
        let used = |program: &Program, now: &Duration| now.saturating_sub(before.cpu.get(program).copied().unwrap_or_default());
        let cpu = self.cpu.iter().map(|(program, now)| (*program, used(program, now))).collect();
        Self { cpu, requests: self.requests.since(&before.requests) }
    }

    /// Adds another measurement.
    pub fn add(&mut self, other: &Self) {
        for (program, used) in &other.cpu {
            *self.cpu.entry(*program).or_default() += *used;
        }
        self.requests.add(&other.requests);
    }
}

/// Reads the figures of a running system.
pub struct Meter<'a> {
    pids: Vec<(Program, i32)>,
    metrics: String,
    http: reqwest::Client,
    _stage: &'a Stage,
}

/// How long the operator must send no request to be idle.
const QUIET: Duration = Duration::from_secs(2);
/// How long it may take to be idle.
const SETTLED: Duration = Duration::from_secs(120);

impl<'a> Meter<'a> {
    /// Finds the processes.
    pub fn new(stage: &'a Stage) -> Result<Self> {
        let pids = Program::ALL.into_iter().map(|program| Ok((program, program.pid(stage)?))).collect::<Result<_>>()?;
        Ok(Self { pids, metrics: format!("{}/metrics", stage.metrics), http: reqwest::Client::new(), _stage: stage })
    }

    async fn requests(&self) -> Result<Requests> {
        let answer = self.http.get(&self.metrics).timeout(Duration::from_secs(30)).send().await?.error_for_status()?;
        Requests::parse(&answer.text().await?)
    }

    /// The figures now, for an operator that is idle already.
    pub async fn now(&self) -> Result<Usage> {
        self.read(self.requests().await?).await
    }

    async fn read(&self, requests: Requests) -> Result<Usage> {
        let mut cpu = BTreeMap::new();
        for (program, pid) in &self.pids {
            let stat = tokio::fs::read_to_string(format!("/proc/{pid}/stat")).await;
            let stat = stat.with_context(|| format!("{} has ended", program.name()))?;
            cpu.insert(*program, proc::cpu(&stat).with_context(|| format!("the times of {}", program.name()))?);
        }
        Ok(Usage { cpu, requests })
    }

    /// The figures once the operator has sent no request for two seconds: what a life causes after its end belongs to it.
    pub async fn settled(&self) -> Result<Usage> {
        let deadline = Instant::now() + SETTLED;
        let mut last = self.requests().await?;
        loop {
            tokio::time::sleep(QUIET).await;
            let now = self.requests().await?;
            if now == last {
                return self.read(now).await;
            }
            if Instant::now() > deadline {
                let added: Vec<String> = now.since(&last).0.iter().map(|(request, count)| format!("{count} {request}")).collect();
                bail!("the operator still sends requests after {} s: {}", SETTLED.as_secs(), added.join(", "));
            }
            last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_the_difference_of_two_readings() {
        let at = |ms| Usage { cpu: [(Program::Etcd, Duration::from_millis(ms))].into(), requests: Requests::default() };
        let mut used = at(700).since(&at(200));
        assert_eq!(used.cpu[&Program::Etcd], Duration::from_millis(500));
        used.add(&at(100));
        assert_eq!(used.cpu[&Program::Etcd], Duration::from_millis(600));
    }
}
