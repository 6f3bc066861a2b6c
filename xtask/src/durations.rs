//! How long steps took on this machine: builds of programs and steps of the demo, in a file in the cache folder. A remaining time is the sum
//! of what the remaining steps took in earlier runs.
//!
//! It must never be guessed: when one of the steps has no record on this machine, the remaining time is unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::tools;

/// How many durations of one step are kept.
const KEPT: usize = 5;

/// How many steps without a record are named.
const NAMED: usize = 2;

/// The recorded durations of each step, in milliseconds, the latest last.
type Records = BTreeMap<String, Vec<u64>>;

/// The records of this machine.
#[derive(Debug)]
pub struct Durations {
    file: Option<PathBuf>,
    records: Records,
}

impl Durations {
    /// The records in the cache folder. A file that cannot be read counts as no records.
    pub fn open() -> Self {
        match tools::cache_folder() {
            Ok(folder) => Self::at(&folder.join("durations.json")),
            Err(_) => Self { file: None, records: Records::new() },
        }
    }

    /// The records in this file.
    pub fn at(file: &Path) -> Self {
        Self { records: read(file), file: Some(file.to_owned()) }
    }

    /// Records that a step was completed in this time. A record that cannot be written is reported, and lost.
    pub fn record(&mut self, step: &str, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let kept = self.file.clone().map_or_else(|| Ok(Records::new()), |file| append(&file, step, millis));
        match kept {
            Ok(records) => self.records = records,
            Err(error) => eprintln!("the duration of {step} is not recorded: {error:#}"),
        }
    }

    /// What these steps took together in earlier runs.
    pub fn estimate<'a>(&self, steps: impl IntoIterator<Item = &'a str>) -> Estimate {
        let (mut least, mut most, mut runs, mut missing) = (0, 0, KEPT, Vec::new());
        for step in steps {
            match self.records.get(step).map(Vec::as_slice) {
                None | Some([]) => missing.push(step.to_owned()),
                Some(taken) => {
                    least += taken.iter().min().copied().unwrap_or_default();
                    most += taken.iter().max().copied().unwrap_or_default();
                    runs = runs.min(taken.len());
                }
            }
        }
        if missing.is_empty() { Estimate::Known { least: seconds(least), most: seconds(most), runs } } else { Estimate::Unknown(missing) }
    }
}

/// What is known about a time, from records only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Estimate {
    /// Every step has a record.
    Known {
        /// The sum of the shortest durations, in seconds.
        least: u64,
        /// The sum of the longest ones.
        most: u64,
        /// From how many runs, at least.
        runs: usize,
    },
    /// These steps have no record.
    Unknown(Vec<String>),
}

impl fmt::Display for Estimate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(steps) => {
                let more = if steps.len() > NAMED { format!(" and {} more", steps.len() - NAMED) } else { String::new() };
                let named = steps.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
                write!(formatter, "unknown (no run on this machine has recorded: {named}{more})")
            }
            Self::Known { least, most, runs } => {
                let runs = if *runs == 1 { "the last run".to_owned() } else { format!("the last {runs} runs") };
                let range = if least == most { clock(*most) } else { format!("{} to {}", clock(*least), clock(*most)) };
                write!(formatter, "{range} (from {runs} on this machine)")
            }
        }
    }
}

/// Whole seconds, rounded up.
fn seconds(millis: u64) -> u64 {
    millis.div_ceil(1000)
}

/// Seconds for people.
pub fn clock(seconds: u64) -> String {
    if seconds < 100 { format!("{seconds} s") } else { format!("{} min {} s", seconds / 60, seconds % 60) }
}

fn read(file: &Path) -> Records {
    fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Adds one duration and returns what the file now contains. Two commands may record at the same time.
fn append(file: &Path, step: &str, millis: u64) -> Result<Records> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let lock = File::create(file.with_extension("lock"))?;
    lock.lock()?;
    let mut records = read(file);
    let taken = records.entry(step.to_owned()).or_default();
    taken.push(millis);
    taken.drain(..taken.len().saturating_sub(KEPT));
    let temporary = file.with_extension("new");
    fs::write(&temporary, serde_json::to_vec_pretty(&records)?)?;
    fs::rename(&temporary, file)?;
    Ok(records)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(durations: &Durations, steps: &[&str]) -> String {
        durations.estimate(steps.iter().copied()).to_string()
    }

    #[test]
    fn a_time_is_unknown_until_every_step_has_a_record() {
        let folder = tempfile::tempdir().unwrap();
        let mut durations = Durations::at(&folder.path().join("durations.json"));
        assert_eq!(text(&durations, &["a", "b"]), "unknown (no run on this machine has recorded: a, b)");
        durations.record("a", Duration::from_millis(1500));
        assert_eq!(text(&durations, &["a", "b"]), "unknown (no run on this machine has recorded: b)");
        assert_eq!(text(&durations, &["a"]), "2 s (from the last run on this machine)");
    }

    #[test]
    fn a_time_is_the_range_of_the_last_runs_and_survives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cache").join("durations.json");
        let mut durations = Durations::at(&file);
        for seconds in [900, 10, 20, 30, 40, 90] {
            durations.record("a", Duration::from_secs(seconds));
        }
        durations.record("b", Duration::from_secs(20));
        let durations = Durations::at(&file);
        assert_eq!(text(&durations, &["a", "a"]), "20 s to 3 min 0 s (from the last 5 runs on this machine)");
        assert_eq!(text(&durations, &["a", "b"]), "30 s to 1 min 50 s (from the last run on this machine)");
    }

    #[test]
    fn many_steps_without_a_record_are_counted() {
        let unknown = |steps: &[&str]| Estimate::Unknown(steps.iter().map(|step| (*step).to_owned()).collect()).to_string();
        assert_eq!(unknown(&["a", "b"]), "unknown (no run on this machine has recorded: a, b)");
        assert_eq!(unknown(&["a", "b", "c", "d"]), "unknown (no run on this machine has recorded: a, b and 2 more)");
    }

    #[test]
    fn a_damaged_file_counts_as_no_records() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("durations.json");
        fs::write(&file, "{").unwrap();
        let mut durations = Durations::at(&file);
        assert!(matches!(durations.estimate(["a"]), Estimate::Unknown(_)));
        durations.record("a", Duration::from_secs(1));
        assert_eq!(text(&Durations::at(&file), &["a"]), "1 s (from the last run on this machine)");
    }
}
