//! The lines of the table, and the document that contains it. Pure: measurements in, text out.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Deletes, Measured, Options};
use crate::bench::lifecycle::figures::milliseconds;

/// One line for each request and load, in the order in which they were first measured.
#[derive(Default)]
pub struct Lines(Vec<Line>);

struct Line {
    what: String,
    load: usize,
    measured: Measured,
}

impl Lines {
    /// Adds a measurement to those of the same request and load.
    pub fn add(&mut self, what: String, load: usize, more: Measured) {
        match self.0.iter_mut().find(|line| line.what == what && line.load == load) {
            None => self.0.push(Line { what, load, measured: more }),
            Some(line) => {
                let all = &mut line.measured;
                all.times.extend(more.times);
                all.took += more.took;
                all.cpu += more.cpu;
                all.requests = all.requests.zip(more.requests).map(|(one, other)| one + other);
            }
        }
    }

    /// The medians of DELETE with 100 requests in flight, beside the API server: of the slower caller.
    pub fn deletes(&self) -> Option<Deletes> {
        let of = |what: &str| {
            let lines = self.0.iter().filter(move |line| line.load == 100 && line.what.starts_with(what));
            lines.map(|line| milliseconds(&line.measured.at(50))).max_by(f64::total_cmp)
        };
        Some(Deletes { api_server: of("DELETE, API server")?, ours: of("DELETE, HTTP API, a ")? })
    }

    /// The document.
    pub fn document(&self, before: &str, options: &Options) -> String {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let date = jiff::Timestamp::now().to_string();
        let (date, build, rounds) = (date.split('T').next().unwrap_or_default(), options.build.name(), options.rounds);
        let mut text = format!(
            "# Latency of the HTTP API\n\n\
            Written by `cargo xtask bench http` on {date}. {cores} processors, shared by etcd, the API server, the controllers, the operator, the server\n\
            of the HTTP API (build profile {build}, plain HTTP) and the client; load average before the run {before}; rounds: {rounds}. Computers are `BYOM`, and\n\
            their keys authenticate. \"API server\" is the same request sent to the API server over TLS, by the same client in the same run: GET of the\n\
            `Computer`, or DELETE with a UID precondition. During DELETEs the operator cleans up the deleted computers on the same processors.\n\n"
        );
        text.push_str(COLUMNS);
        for line in &self.0 {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}", self.row(line));
        }
        text.push('\n');
        text.push_str(COSTS);
        text
    }

    fn row(&self, line: &Line) -> String {
        let (what, load, measured) = (&line.what, line.load, &line.measured);
        let method = what.split(',').next().unwrap_or_default();
        let bare = self.0.iter().find(|other| other.load == load && other.what == format!("{method}, API server"));
        let ratio = bare.map_or(0.0, |bare| measured.at(50).as_secs_f64() / bare.measured.at(50).as_secs_f64());
        #[allow(clippy::cast_precision_loss)] // a few thousand
        let count = measured.times.len() as f64;
        #[allow(clippy::cast_precision_loss)] // a few thousand
        let requests = measured.requests.map_or_else(|| "-".to_owned(), |all| format!("{:.1}", all as f64 / count));
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        format!(
            "| {what} | {load} | {count} | {:.1} | {ratio:.2} | {:.1} | {:.0} | {requests} | {:.1} |",
            ms(measured.at(50)),
            ms(measured.at(99)),
            count / measured.took.as_secs_f64(),
            ms(measured.cpu) / count,
        )
    }
}

impl Measured {
    fn at(&self, percent: usize) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

const COLUMNS: &str = "| request | in flight | requests | p50 ms | p50 / API server's | p99 ms | a second | requests to the API server, each | its processor time, ms each |\n\
    |---|---|---|---|---|---|---|---|---|\n";

/// Which requests an operation sends. `src/http/round_trips_tests.rs` counts them.
const COSTS: &str = include_str!("costs.md");

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_medians_of_deletes_are_those_of_the_slower_caller() {
        let mut lines = Lines::default();
        assert!(lines.deletes().is_none());
        let measured =
            |ms| Measured { times: vec![Duration::from_millis(ms); 3], took: Duration::from_secs(1), requests: None, cpu: Duration::ZERO };
        for (what, load, ms) in [
            ("DELETE, API server", 100, 200),
            ("DELETE, API server", 10, 2000),
            ("DELETE, HTTP API, a ServiceAccount", 100, 300),
            ("DELETE, HTTP API, a computer's key", 100, 400),
            ("DELETE, HTTP API, earlier build, a computer's key", 100, 900),
            ("GET, HTTP API, a computer's key", 100, 800),
        ] {
            lines.add(what.into(), load, measured(ms));
        }
        assert_eq!(lines.deletes().unwrap(), Deletes { api_server: 200.0, ours: 400.0 });
    }
}
