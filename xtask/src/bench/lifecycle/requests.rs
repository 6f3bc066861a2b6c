//! The operator's requests to the API server, from its metric `computer_operator_api_requests_total`. Pure: the text of the metrics in, counts out.
//!
//! Watches and the renewal of the lease are left out: they do not depend on the number of computers.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// Verb, resource, and the answer if it was not a success.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Request {
    /// Its verb.
    pub verb: String,
    /// Its resource, with the subresource.
    pub resource: String,
    /// The code of a refusal; empty for a success.
    pub refused: String,
}

impl std::fmt::Display for Request {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.verb, self.resource)?;
        if self.refused.is_empty() { Ok(()) } else { write!(formatter, " → {}", self.refused) }
    }
}

/// Number of requests of each sort.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<(Request, u64)>", from = "Vec<(Request, u64)>")]
pub struct Requests(pub BTreeMap<Request, u64>);

// A key of a JSON object must be a text.
impl From<Requests> for Vec<(Request, u64)> {
    fn from(requests: Requests) -> Self {
        requests.0.into_iter().collect()
    }
}

impl From<Vec<(Request, u64)>> for Requests {
    fn from(all: Vec<(Request, u64)>) -> Self {
        Self(all.into_iter().collect())
    }
}

impl Requests {
    /// Reads the text of the operator's metrics.
    pub fn parse(text: &str) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("computer_operator_api_requests_total{")) {
            let label = |name: &str| {
                let (_, rest) = line.split_once(&format!("{name}=\""))?;
                rest.split('"').next().map(str::to_owned)
            };
            let labels = label("verb").zip(label("resource")).zip(label("code"));
            let ((verb, resource), code) = labels.with_context(|| format!("a label is missing: {line}"))?;
            let value: u64 = line.rsplit(' ').next().context("a value")?.parse()?;
            if verb != "watch" && resource != "leases" {
                let refused = if code.starts_with('2') { String::new() } else { code };
                *counts.entry(Request { verb, resource, refused }).or_default() += value;
            }
        }
        ensure!(!counts.is_empty(), "the metric computer_operator_api_requests_total is missing");
        Ok(Self(counts))
    }

    /// What has been added since.
    pub fn since(&self, before: &Self) -> Self {
        let added = |(key, now): (&Request, &u64)| (key.clone(), now.saturating_sub(before.0.get(key).copied().unwrap_or_default()));
        Self(self.0.iter().map(added).filter(|(_, count)| *count > 0).collect())
    }

    /// Adds the counts of another measurement.
    pub fn add(&mut self, other: &Self) {
        for (key, count) in &other.0 {
            *self.0.entry(key.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SAMPLE: &str = "# TYPE computer_operator_api_requests counter\n\
        computer_operator_api_requests_total{verb=\"get\",resource=\"pods\",code=\"200\"} 5\n\
        computer_operator_api_requests_total{verb=\"get\",resource=\"pods\",code=\"404\"} 2\n\
        computer_operator_api_requests_total{verb=\"create\",resource=\"pods\",code=\"201\"} 3\n\
        computer_operator_api_requests_total{verb=\"watch\",resource=\"pods\",code=\"200\"} 1\n\
        computer_operator_api_requests_total{verb=\"update\",resource=\"leases\",code=\"200\"} 99\n\
        computer_operator_reconciles_total 7\n";

    #[test]
    fn requests_are_counted_by_verb_resource_and_refusal() {
        let before = Requests::parse(SAMPLE).unwrap();
        let text: Vec<String> = before.0.iter().map(|(request, count)| format!("{count} {request}")).collect();
        assert_eq!(text, ["3 create pods", "5 get pods", "2 get pods → 404"]);
        let now = Requests::parse(&SAMPLE.replace("\"200\"} 5", "\"200\"} 9")).unwrap();
        let mut added = now.since(&before);
        assert_eq!(added.0.values().sum::<u64>(), 4, "only what has changed");
        added.add(&before);
        assert_eq!(added.0.values().sum::<u64>(), 14);
    }

    #[test]
    fn a_text_without_the_metric_is_refused() {
        assert!(Requests::parse("computer_operator_reconciles_total 7\n").is_err());
        assert!(Requests::parse("computer_operator_api_requests_total{verb=\"get\"} 1\n").is_err());
    }
}
