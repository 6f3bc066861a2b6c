//! When a failed request is repeated. It never asks earlier than the API allows, and it gives up only after several requests without progress: a clock alone never
//! ends a download.

use std::time::Duration;

use super::fault::{Cost, Fault};

/// How long to wait between requests, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// Before the second request. It doubles with each request without progress.
    pub first: Duration,
    /// The longest of these waits.
    pub longest: Duration,
    /// The longest wait that the API can ask for. When it asks for a longer one, the command ends and says so.
    pub longest_asked: Duration,
    /// How many requests in a row may fail without progress.
    pub patience: u32,
}

/// For a download: 15 requests, which take about ten minutes.
pub const WAITS: Waits =
    Waits { first: Duration::from_secs(1), longest: Duration::from_secs(60), longest_asked: Duration::from_secs(600), patience: 15 };

impl Waits {
    /// For a list or a document, which has no progress and for which a user waits.
    #[must_use]
    pub fn short(self) -> Self {
        Self { patience: 5, longest_asked: Duration::from_secs(30).min(self.longest_asked), ..self }
    }
}

/// The waits of one command.
#[derive(Debug)]
pub struct Pace {
    waits: Waits,
    failed: u32,
    spent: u32,
}

impl Pace {
    /// Before the first request.
    pub fn new(waits: Waits) -> Self {
        Self { waits, failed: 0, spent: 0 }
    }

    /// New bytes have arrived.
    pub fn progress(&mut self) {
        (self.failed, self.spent) = (0, 0);
    }

    /// Requests in a row that failed without progress.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Waits until the request may be repeated, and shows why.
    ///
    /// # Errors
    /// The fault, when another request does not help.
    pub async fn pause(&mut self, fault: Fault, note: impl FnOnce(&str)) -> Result<(), Fault> {
        let Some(wait) = self.wait(&fault) else { return Err(fault) };
        note(&format!("{fault}. The next request is in {} s", wait.as_secs()));
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// How long to wait after a fault. `None`: no other request helps.
    fn wait(&mut self, fault: &Fault) -> Option<Duration> {
        self.failed += 1;
        let Fault::Passing(_, asked, cost) = fault else { return None };
        self.spent += match cost {
            Cost::Usual => 1,
            Cost::High => 3,
        };
        let own = self.waits.first.saturating_mul(1 << (self.failed - 1).min(16)).min(self.waits.longest);
        (self.spent < self.waits.patience && *asked <= self.waits.longest_asked).then(|| own.max(*asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(asked: u64, cost: Cost) -> Fault {
        Fault::Passing(anyhow::anyhow!("x"), Duration::from_secs(asked), cost)
    }

    fn waits(pace: &mut Pace, faults: usize, asked: u64, cost: Cost) -> Vec<Option<u64>> {
        (0..faults).map(|_| pace.wait(&fault(asked, cost)).map(|wait| wait.as_secs())).collect()
    }

    #[test]
    fn a_wait_is_as_long_as_the_api_asks_and_as_its_own_backoff() {
        let mut pace = Pace::new(WAITS);
        assert_eq!(waits(&mut pace, 4, 3, Cost::Usual), [Some(3), Some(3), Some(4), Some(8)]);
        assert_eq!(waits(&mut pace, 4, 0, Cost::Usual), [Some(16), Some(32), Some(60), Some(60)]);
        assert_eq!(waits(&mut pace, 1, 600, Cost::Usual), [Some(600)]);
        assert_eq!(waits(&mut pace, 1, 601, Cost::Usual), [None], "it would ask before it may");
    }

    #[test]
    fn only_progress_renews_the_patience() {
        let mut pace = Pace::new(WAITS);
        assert!(waits(&mut pace, 14, 0, Cost::Usual).iter().all(Option::is_some));
        pace.progress();
        assert_eq!(waits(&mut pace, 1, 0, Cost::Usual), [Some(1)]);
        assert!(waits(&mut pace, 13, 0, Cost::Usual).iter().all(Option::is_some));
        assert_eq!(waits(&mut pace, 1, 0, Cost::Usual), [None]);
        let mut pace = Pace::new(WAITS);
        assert_eq!(waits(&mut pace, 5, 0, Cost::High), [Some(1), Some(2), Some(4), Some(8), None]);
    }

    #[test]
    fn what_another_request_cannot_change_is_not_repeated() {
        for fault in [Fault::Lasting(anyhow::anyhow!("x")), Fault::Wrong(anyhow::anyhow!("x"))] {
            assert_eq!(Pace::new(WAITS).wait(&fault), None);
        }
    }
}
