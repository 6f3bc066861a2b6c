//! Measures how long computers are not ready, and which step they wait for. It is what this leader saw: a step that ends within one
//! reconcile has no sample, and what began before a restart of the operator is measured from the restart.

use std::collections::HashMap;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::report::Report;
use crate::resources::Phase;
use crate::resources::steps::{CurrentStep, ProvisionStep, Sequence};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
}

/// A computer that is not ready yet.
struct Begun {
    at: Instant,
    step: ProvisionStep,
    since: Instant,
}

/// The histograms, and the computers that are not ready yet, by UID.
pub struct ProvisioningTimes {
    whole: Histogram,
    steps: Family<StepLabels, Histogram, fn() -> Histogram>,
    begun: Mutex<HashMap<String, Begun>>,
}

/// From a twentieth of a second to about half an hour.
fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.05, 2.0, 16))
}

impl Default for ProvisioningTimes {
    fn default() -> Self {
        Self { whole: buckets(), steps: Family::new_with_constructor(buckets), begun: Mutex::default() }
    }
}

impl ProvisioningTimes {
    /// Registers the histograms.
    pub fn add_to(&self, registry: &mut Registry) {
        let whole = "From the first reconcile of a computer that is not ready until it is ready: after its creation, a resume, or the loss of its pod";
        registry.register("provisioning_duration_seconds", whole, self.whole.clone());
        let step = "Time that provisioning waited for a step, in one piece";
        registry.register("provisioning_step_duration_seconds", step, self.steps.clone());
    }

    /// Notes what a reconcile has reported.
    pub fn note(&self, uid: &str, report: &Report) {
        let mut begun = self.begun.lock();
        let now = Instant::now();
        match (report.phase, report.current) {
            (Some(Phase::Provisioning | Phase::Error), Some(CurrentStep::Provision(step))) => {
                let known = begun.entry(uid.to_owned()).or_insert(Begun { at: now, step, since: now });
                if known.step != step {
                    self.waited(known.step, known.since, now);
                    (known.step, known.since) = (step, now);
                }
            }
            (Some(Phase::Active), _) => {
                if let Some(known) = begun.remove(uid) {
                    self.waited(known.step, known.since, now);
                    self.whole.observe(now.duration_since(known.at).as_secs_f64());
                }
            }
            // A failed reconcile reports no step, and the computer is still not ready.
            (Some(Phase::Provisioning | Phase::Error) | None, _) => {}
            (Some(Phase::Suspended | Phase::Deleting), _) => drop(begun.remove(uid)),
        }
    }

    /// The computer is gone.
    pub fn forget(&self, uid: &str) {
        self.begun.lock().remove(uid);
    }

    /// This process no longer reconciles.
    pub fn forget_all(&self) {
        self.begun.lock().clear();
    }

    /// The computers that are not ready yet.
    #[cfg(test)]
    pub fn remembered(&self) -> String {
        format!("{:?}", self.begun.lock().keys())
    }

    fn waited(&self, step: ProvisionStep, since: Instant, now: Instant) {
        self.steps.get_or_create(&StepLabels { step: step.id() }).observe(now.duration_since(since).as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report(phase: Phase, step: Option<ProvisionStep>) -> Report {
        Report { phase: Some(phase), current: step.map(CurrentStep::Provision), ..Report::default() }
    }

    fn text(times: &ProvisioningTimes) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        times.add_to(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_until_ready_and_the_steps_waited_for_are_measured() {
        let times = ProvisioningTimes::default();
        times.note("a", &report(Phase::Provisioning, Some(ProvisionStep::CreateVolume)));
        tokio::time::advance(Duration::from_secs(3)).await;
        times.note("a", &report(Phase::Provisioning, Some(ProvisionStep::StartPod)));
        tokio::time::advance(Duration::from_secs(4)).await;
        times.note("a", &report(Phase::Error, None));
        tokio::time::advance(Duration::from_secs(1)).await;
        times.note("a", &report(Phase::Active, None));
        times.note("a", &report(Phase::Active, None));
        let text = text(&times);
        for line in [
            "provisioning_duration_seconds_sum 8.0",
            "provisioning_duration_seconds_count 1",
            "provisioning_step_duration_seconds_sum{step=\"create-volume\"} 3.0",
            "provisioning_step_duration_seconds_sum{step=\"start-pod\"} 5.0",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_computer_that_is_suspended_or_deleted_meanwhile_has_no_sample() {
        let times = ProvisioningTimes::default();
        for phase in [Phase::Suspended, Phase::Deleting] {
            times.note("a", &report(Phase::Provisioning, Some(ProvisionStep::StartPod)));
            times.note("a", &report(phase, None));
            assert_eq!(times.remembered(), "[]");
            times.note("a", &report(Phase::Active, None));
        }
        times.note("b", &report(Phase::Provisioning, Some(ProvisionStep::StartPod)));
        times.forget("b");
        assert_eq!(times.remembered(), "[]");
        assert!(text(&times).contains("provisioning_duration_seconds_count 0"));
    }
}
