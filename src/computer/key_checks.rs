//! When the Secret of each key is checked next. The operator does not watch Secrets, so it does not see the deletion
//! of one: it may not list Secrets, because
//! that is the right to read them (DESIGN.md 4.8). A check is one dry-run DELETE, and 10,000 computers need 17 of them per second.
//!
//! It counts in monotonic time: a clock that is set back must not delay a check. The times belong to this process, so a new leader begins
//! again, and spreads the first checks over the whole period. Nothing here is a proof of anything.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::action::Subject;
use super::view::View;

/// Time between two checks of one Secret.
pub const PERIOD: Duration = Duration::from_secs(10 * 60);

/// Time from a reconcile to the next check, if `left` was left at its beginning. Nothing was left: this reconcile has made the check.
pub fn next(left: Duration) -> Duration {
    if left.is_zero() { PERIOD } else { left }
}

/// When each computer's key is checked next.
#[derive(Debug, Default)]
pub struct KeyChecks(Mutex<HashMap<String, Instant>>);

impl KeyChecks {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock()
    }

    /// Time until the next check; zero: now.
    pub fn left(&self, uid: &str) -> Duration {
        let mut all = self.all();
        let due = all.entry(uid.to_owned()).or_insert_with(|| Instant::now() + first(uid));
        due.saturating_duration_since(Instant::now())
    }

    /// Schedules the next check if this reconcile has asked the API server for the Secret, or has created it.
    pub fn note(&self, view: &View) {
        let name = view.record.as_ref().and_then(|r| r.spec.state.children.secret_name.as_ref());
        let asked = name.is_some_and(|name| view.learned.contains(&Subject::secret(&view.namespace, name)));
        if asked {
            self.all().insert(view.uid.clone(), Instant::now() + PERIOD);
        }
    }

    /// The computer is gone.
    pub fn forget(&self, uid: &str) {
        self.all().remove(uid);
    }
}

/// Time until the first check by this process: the same part of the period for each UID.
fn first(uid: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    PERIOD.mul_f64(f64::from(u32::try_from(hasher.finish() >> 32).unwrap_or_default()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::computer::action::{Effect, Fact};

    #[tokio::test(start_paused = true)]
    async fn a_key_is_checked_once_in_a_period_and_the_first_checks_are_spread() {
        let checks = KeyChecks::default();
        let computers: Vec<String> = (0..1000).map(|n| format!("uid-{n}")).collect();
        let early = computers.iter().filter(|uid| checks.left(uid) < PERIOD / 2).count();
        assert!((400..600).contains(&early), "{early} of 1000 in the first half");
        assert!(computers.iter().all(|uid| checks.left(uid) <= PERIOD));

        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        let record =
            json!({"metadata": {"name": "u"}, "spec": {"namespace": "t", "computer": "c", "state": {"children": {"secretName": "key"}}}});
        view.record = serde_json::from_value(record).ok();
        tokio::time::advance(PERIOD).await;
        assert_eq!(checks.left("u"), first("u"), "this process has just met it");
        tokio::time::advance(PERIOD).await;
        checks.note(&view);
        assert_eq!(checks.left("u"), Duration::ZERO, "the reconcile did not ask");
        view.absorb(Effect::Learned(Subject::secret("t", "key"), Fact::Gone));
        checks.note(&view);
        assert_eq!(checks.left("u"), PERIOD);
        checks.forget("u");
        assert!(!checks.all().contains_key("u"));
    }
}
