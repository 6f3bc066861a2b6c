//! Changes that another client undoes as soon as they are made, for example a `GitOps` tool that applies the old policy of a volume again. Each of
//! them succeeds, so no request fails and no backoff begins: both sides would write as fast as they can (L6).
//!
//! The third one within a minute is refused here, and reported as `WriteUndone`. It must never count a change that failed.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::action::Action;

/// So many changes of one kind are made within [`PERIOD`].
const MOST: usize = 2;
/// Longer than the longest pause after a refused request, so that the pauses grow.
const PERIOD: Duration = Duration::from_secs(60);

/// When each computer's changes were made, by its UID.
#[derive(Debug, Default)]
pub struct Contested(Mutex<HashMap<String, Vec<(Kind, Instant)>>>);

/// A change that is made once in a life, unless another client undoes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Finalizer,
    Retain,
}

fn kind(action: &Action) -> Option<Kind> {
    match action {
        Action::AddFinalizer => Some(Kind::Finalizer),
        Action::Retain { .. } => Some(Kind::Retain),
        _ => None,
    }
}

impl Contested {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Vec<(Kind, Instant)>>> {
        self.0.lock()
    }

    /// Whether this change was made often enough for now.
    pub fn is(&self, uid: &str, action: &Action) -> bool {
        let Some(kind) = kind(action) else { return false };
        let all = self.all();
        let made = all.get(uid).into_iter().flatten().filter(|(of, at)| *of == kind && at.elapsed() < PERIOD);
        made.count() >= MOST
    }

    /// The change was made.
    pub fn note(&self, uid: &str, action: &Action) {
        if let Some(kind) = kind(action) {
            let mut all = self.all();
            let made = all.entry(uid.to_owned()).or_default();
            made.retain(|(_, at)| at.elapsed() < PERIOD);
            made.push((kind, Instant::now()));
        }
    }

    /// The computer is gone.
    pub fn forget(&self, uid: &str) {
        self.all().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_third_change_within_a_minute_is_refused() {
        let (contested, retain) = (Contested::default(), Action::Retain { volume: "pv".to_owned(), patch: json_patch::Patch(Vec::new()) });
        for _ in 0..MOST {
            assert!(!contested.is("u", &retain));
            contested.note("u", &retain);
        }
        assert!(contested.is("u", &retain) && !contested.is("another", &retain) && !contested.is("u", &Action::AddFinalizer));
        assert!(!contested.is("u", &Action::ReadComputer), "reads are never refused");
        tokio::time::advance(PERIOD).await;
        assert!(!contested.is("u", &retain));
        contested.note("u", &retain);
        contested.forget("u");
        assert!(contested.all().is_empty());
    }
}
