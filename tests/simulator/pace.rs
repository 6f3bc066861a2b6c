//! Whether a deletion without faults continues as soon as it can: every step except the machine's own stop follows a change, not a timer
//! of the operator or a resync of the volume controller.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::State;
use crate::api::value::{name, text};
use crate::life::Life;

/// The longest time from a change to the request that follows it.
const AT_ONCE: Duration = Duration::from_secs(1);
/// No watch shows that a volume is detached, so the operator polls it.
const POLL: Duration = Duration::from_secs(4);

/// The waits of the deletion that did not end with a change.
pub fn idle(state: &State, life: Life) -> Vec<String> {
    let Some(begun) = state.observer.fates.values().filter_map(|f| f.dying).min() else { return Vec::new() };
    let limit = if life == Life::Retained { POLL } else { AT_ONCE };
    let released = |v: &serde_json::Value| text(v, "/spec/state/phase") == Some("Released");
    let changes: Vec<_> = state.log.iter().filter(|c| c.at >= begun && !matches!(c.kind, "events" | "leases")).collect();
    let end = changes.iter().rposition(|c| c.kind == "computerrecords" && released(c.object())).map_or(0, |at| at + 1);
    let mut found = Vec::new();
    for pair in changes[..end].windows(2) {
        let (gap, next) = (pair[1].at - pair[0].at, pair[1]);
        if next.actor.is_operator() && gap > limit {
            let what = format!("{} {}", next.kind, name(next.object()));
            found.push(format!(
                "L1: nothing happened for {} ms, then the operator continued with {what}: it waited for a timer",
                gap.as_millis()
            ));
        }
    }
    let of_deletion = |at: &Instant| *at >= begun;
    let resynced = state.binder.resynced.iter().filter(|(at, _)| of_deletion(at));
    found.extend(resynced.map(|(_, what)| format!("L1: {what} waited for a resync of the volume controller")));
    found
}
