//! The figures of the measurements. Pure, except for the reading of the operator's memory.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Limits;
use super::contender::Contender;
use super::requests::Request;
use super::usage::{Program, Usage};
use crate::bench::proc;

/// One burst.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Burst {
    /// Its lives.
    pub count: usize,
    /// From the first creation until all were ready.
    pub created: Duration,
    /// From the first deletion until all were gone.
    pub deleted: Duration,
    /// What it has cost.
    pub used: Usage,
}

/// Lives one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Singles {
    /// From the creation until it was ready, of each life.
    pub created: Vec<Duration>,
    /// From the deletion until it was gone.
    pub deleted: Vec<Duration>,
    /// What all have cost.
    pub used: Usage,
}

/// All measurements of one contender under the same limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Who was measured.
    pub contender: Contender,
    /// One for each round.
    pub bursts: Vec<Burst>,
    /// One for each round.
    pub singles: Vec<Singles>,
}

/// The operator's memory, bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// Most at one time.
    pub peak: u64,
    /// At the end.
    pub resident: u64,
}

impl Memory {
    /// The memory now, in millions of bytes.
    pub fn megabytes(&self) -> f64 {
        millions(self.resident)
    }

    /// The most at one time, in millions of bytes.
    pub fn peak_megabytes(&self) -> f64 {
        millions(self.peak)
    }

    /// That of a running process.
    pub fn of(pid: i32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the operator has ended")?;
        let field = |name| proc::memory(&status, name).with_context(|| format!("no {name}"));
        Ok(Self { peak: field(proc::PEAK)?, resident: field(proc::RESIDENT)? })
    }
}

/// Everything under the same limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pass {
    /// The limits of the controller manager.
    pub limits: Limits,
    /// A line for each contender.
    pub lines: Vec<Line>,
    /// The operator's memory.
    pub memory: Memory,
    /// The load average before and after.
    pub load: (String, String),
}

impl Pass {
    /// The line of a contender.
    pub fn line(&self, contender: Contender) -> Option<&Line> {
        self.lines.iter().find(|line| line.contender == contender)
    }
}

/// How the lives of a figure were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// In bursts.
    Burst,
    /// One after the other.
    Single,
}

impl Line {
    /// Lives that became ready in a second of each burst.
    pub fn created(&self) -> Vec<f64> {
        self.bursts.iter().map(|burst| rate(burst.count, burst.created)).collect()
    }

    /// Lives that were gone in a second of each burst.
    pub fn deleted(&self) -> Vec<f64> {
        self.bursts.iter().map(|burst| rate(burst.count, burst.deleted)).collect()
    }

    /// Median milliseconds until one alone was ready.
    pub fn alone_created(&self) -> Option<f64> {
        median(self.singles.iter().flat_map(|some| &some.created).map(milliseconds).collect())
    }

    /// Median milliseconds until one alone was gone.
    pub fn alone_deleted(&self) -> Option<f64> {
        median(self.singles.iter().flat_map(|some| &some.deleted).map(milliseconds).collect())
    }

    /// What all rounds have used, and their lives.
    fn used(&self, how: How) -> (Usage, usize) {
        let (mut all, mut lives) = (Usage::default(), 0);
        let each: Vec<(&Usage, usize)> = match how {
            How::Burst => self.bursts.iter().map(|burst| (&burst.used, burst.count)).collect(),
            How::Single => self.singles.iter().map(|some| (&some.used, some.created.len())).collect(),
        };
        for (used, count) in each {
            all.add(used);
            lives += count;
        }
        (all, lives)
    }

    /// Milliseconds of processor time for each life.
    pub fn cpu(&self, how: How, program: Program) -> Option<f64> {
        let (used, lives) = self.used(how);
        (lives > 0).then(|| used.cpu.get(&program).map(|used| milliseconds(used) / float(lives)))?
    }

    /// Requests of the operator for each life.
    pub fn requests(&self, how: How) -> BTreeMap<Request, f64> {
        let (used, lives) = self.used(how);
        let each = |(request, count): (Request, u64)| (request, float(usize::try_from(count).unwrap_or(usize::MAX)) / float(lives.max(1)));
        used.requests.0.into_iter().map(each).collect()
    }
}

#[allow(clippy::cast_precision_loss)] // Some gigabytes.
fn millions(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[allow(clippy::cast_precision_loss)] // Some thousands.
pub fn float(count: usize) -> f64 {
    count as f64
}

pub fn milliseconds(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// All requests of a life. (The sum of no numbers would be a negative zero.)
pub fn total(requests: &BTreeMap<Request, f64>) -> f64 {
    requests.values().fold(0.0, |sum, count| sum + count)
}

/// That many in a second.
pub fn rate(count: usize, time: Duration) -> f64 {
    float(count) / time.as_secs_f64()
}

/// The middle value; of an even number, the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// A made-up pass, for the tests of what is written about it.
#[cfg(test)]
pub mod sample {
    use super::super::requests::Requests;
    use super::*;

    /// Usage with these milliseconds of the API server and requests.
    pub fn usage(api_server: u64, requests: &[(&str, &str, &str, u64)]) -> Usage {
        let one = |(verb, resource, refused, count): &(&str, &str, &str, u64)| {
            (Request { verb: (*verb).into(), resource: (*resource).into(), refused: (*refused).into() }, *count)
        };
        let cpu = Program::ALL.into_iter().map(|program| (program, Duration::from_millis(10)));
        let mut cpu: BTreeMap<Program, Duration> = cpu.collect();
        cpu.insert(Program::ApiServer, Duration::from_millis(api_server));
        Usage { cpu, requests: Requests(requests.iter().map(one).collect()) }
    }

    /// Two bursts of ten lives and three lives alone.
    pub fn line(contender: Contender, seconds: [u64; 2]) -> Line {
        let requests = [("create", "pods", "", 20), ("get", "pods", "404", 5)];
        let burst = |created: u64| Burst {
            count: 10,
            created: Duration::from_secs(created),
            deleted: Duration::from_secs(2 * created),
            used: usage(1000 * created, if contender.is_ours() { &requests } else { &[] }),
        };
        let alone = [30, 10, 20].map(Duration::from_millis).to_vec();
        let singles = Singles { created: alone.clone(), deleted: alone, used: usage(90, &[]) };
        Line { contender, bursts: seconds.map(burst).to_vec(), singles: vec![singles] }
    }

    /// All contenders.
    pub fn pass(limits: Limits) -> Pass {
        let lines = Contender::ALL.into_iter().zip([[1, 1], [2, 2], [1, 4], [2, 2]]).map(|(who, seconds)| line(who, seconds));
        let memory = Memory { peak: 50 << 20, resident: 40 << 20 };
        Pass { limits, lines: lines.collect(), memory, load: ("0.50".into(), "2.00".into()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn about(value: Option<f64>, expected: f64) {
        assert!(value.is_some_and(|value| (value - expected).abs() < 1e-9), "{value:?} instead of {expected}");
    }

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median(Vec::new()), None);
        about(median(vec![9.0, 1.0, 2.0]), 2.0);
        about(median(vec![9.0, 1.0, 2.0, 4.0]), 3.0);
        about(Some(rate(30, Duration::from_secs(4))), 7.5);
    }

    #[test]
    fn figures_are_for_each_life() {
        let line = sample::line(Contender::Managed, [1, 4]);
        about(median(line.created()), 6.25);
        about(median(line.deleted()), 3.125);
        about(line.cpu(How::Burst, Program::ApiServer), 250.0);
        about(line.cpu(How::Single, Program::ApiServer), 30.0);
        about(line.alone_created(), 20.0);
        about(line.alone_deleted(), 20.0);
        let requests: Vec<String> = line.requests(How::Burst).iter().map(|(request, count)| format!("{count} {request}")).collect();
        assert_eq!(requests, ["2 create pods", "0.5 get pods → 404"]);
        let none = Line { bursts: Vec::new(), ..line };
        assert_eq!(none.cpu(How::Burst, Program::ApiServer), None);
    }

    #[test]
    fn the_memory_of_a_process_is_read() {
        let memory = Memory::of(std::process::id().try_into().unwrap()).unwrap();
        assert!(memory.resident > 100_000 && memory.peak >= memory.resident, "{memory:?}");
    }
}
