//! Whether a life without faults wastes nothing. A deletion continues as soon as it can: every step except the machine's own stop follows a
//! change, not a timer of the operator or a resync of the volume controller. And no life takes more requests than it needs (issue 15).

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
        // A status that only shows progress is written a moment later, and nothing waits for it.
        if next.actor.is_operator() && gap > limit && next.kind != "computers" {
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

/// Requests of the operator to the API server and the store in a whole life with one leader, without lists and watches. The store's are about
/// 20 with an archive. A life that needs more has a reason that its author can state; a life that needs fewer lowers its number.
pub fn most_requests(life: Life) -> Option<u64> {
    Some(match life {
        Life::Managed => 80,
        Life::Expiring => 84,
        // Its volume is attachable, and detaching is polled.
        Life::Retained => 82,
        Life::Namespace => 77,
        Life::BestEffort | Life::HandOff => 81,
        Life::Unarchived => 43,
        Life::Byom => 18,
        Life::Override | Life::GivenUp | Life::LostKey => return None,
    })
}
