//! The document with the figures.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::contenders::Contender;
use super::usage::Usage;

/// All measurements of one contender with one home.
#[derive(Debug)]
pub struct Line {
    /// Its home, as in the table.
    pub home: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Who was measured.
    pub contender: Contender,
    /// One for each round.
    pub walls: Vec<Duration>,
    /// The processes of all rounds.
    pub used: Vec<Usage>,
    /// The S3 server of each round.
    pub server: Vec<Usage>,
    /// Bytes in the bucket afterwards, in the last round.
    pub stored: u64,
}

impl Line {
    /// The first one of a contender.
    pub fn new(home: (&str, u64), contender: Contender) -> Self {
        let (home, bytes) = (home.0.to_owned(), home.1);
        Self { home, bytes, contender, walls: Vec::new(), used: Vec::new(), server: Vec::new(), stored: 0 }
    }

    /// MB/s of all rounds together.
    pub fn speed(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)] // A few rounds.
        let rounds = self.walls.len() as f64;
        megabytes(self.bytes) * rounds / self.walls.iter().sum::<Duration>().as_secs_f64()
    }

    fn each(&self) -> String {
        let each: Vec<_> = self.walls.iter().map(|wall| format!("{:.0}", megabytes(self.bytes) / wall.as_secs_f64())).collect();
        each.join(", ")
    }

    /// CPU seconds for each GB of the home.
    fn cpu(&self, used: &[Usage]) -> f64 {
        #[allow(clippy::cast_precision_loss)] // A few rounds.
        let rounds = self.walls.len().max(1) as f64;
        used.iter().map(|usage| usage.cpu.as_secs_f64()).sum::<f64>() / rounds / (megabytes(self.bytes) / 1e3)
    }

    /// CPU and peak of each program: of several rounds, the mean and the largest.
    fn programs(&self) -> String {
        let mut programs: BTreeMap<&str, (Vec<Usage>, u64)> = BTreeMap::new();
        let mut order = Vec::new();
        for usage in &self.used {
            let (all, peak) = programs.entry(usage.name).or_default();
            if all.is_empty() {
                order.push(usage.name);
            }
            *peak = usage.peak.max(*peak);
            all.push(usage.clone());
        }
        let one = |name: &&str| {
            let (all, peak) = &programs[*name];
            format!("{name} {:.1} s, {} MiB", self.cpu(all), peak >> 20)
        };
        order.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}

#[allow(clippy::cast_precision_loss)] // For reading.
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The figures, a row for each line.
pub fn table(lines: &[Line]) -> String {
    let mut text = String::from(
        "| home | contender | MB/s (each round) | of the pipe | CPU s/GB | of the pipe | stored MB | server: CPU s/GB, peak | processes: CPU s/GB, peak |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for line in lines {
        let pipe = lines.iter().find(|other| other.home == line.home && other.contender == Contender::Pipe);
        let of = |share: f64| if share.is_finite() { format!("{share:.2}") } else { String::new() };
        let (cpu, server) = (line.cpu(&line.used), line.server.iter().map(|usage| usage.peak).max().unwrap_or_default());
        let faster = pipe.map_or_else(String::new, |pipe| of(line.speed() / pipe.speed()));
        let work = pipe.map_or_else(String::new, |pipe| of(cpu / pipe.cpu(&pipe.used)));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {:.0} ({}) | {faster} | {cpu:.1} | {work} | {:.0} | {:.1} s, {} MiB | {} |",
            line.home,
            line.contender.name(),
            line.speed(),
            line.each(),
            megabytes(line.stored),
            line.cpu(&line.server),
            server >> 20,
            line.programs(),
        );
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_means_and_shares_of_the_pipe() {
        let usage = |name, seconds, peak: u64| Usage { name, cpu: Duration::from_secs(seconds), peak: peak << 20 };
        let line = |contender, walls: [u64; 2], used: Vec<Usage>| Line {
            walls: walls.map(Duration::from_secs).to_vec(),
            server: vec![usage("server", 2, 30), usage("server", 4, 40)],
            stored: 500_000_000,
            used,
            ..Line::new(("h", 2_000_000_000), contender)
        };
        let ours = line(Contender::Operator, [20, 20], vec![usage("pod", 12, 50), usage("pod", 8, 60), usage("x", 4, 1), usage("x", 4, 1)]);
        let pipe = line(Contender::Pipe, [10, 10], vec![usage("tar", 7, 3), usage("tar", 7, 3)]);
        let text = table(&[ours, pipe]);
        let rows: Vec<_> = text.lines().skip(2).collect();
        let begin = "| h | computer-operator | 100 (100, 100) | 0.50 | 7.0 | 2.00 | 500 | 1.5 s, 40 MiB |";
        assert_eq!(rows[0], format!("{begin} pod 5.0 s, 60 MiB; x 2.0 s, 1 MiB |"));
        assert!(rows[1].starts_with("| h | pipe | 200 (200, 200) | 1.00 | 3.5 | 1.00 |"), "{}", rows[1]);
    }
}
