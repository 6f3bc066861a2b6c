//! Delays the next pod of a computer whose pods keep terminating by themselves: a command that exits, a node that rejects every pod. The
//! pause doubles from 10 s to 5 min, and the condition reports it. Without it, each such computer would cost ten writes every 12 s (L3, L6).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::computer::step::State;
use crate::resources::conditions::truncate;
use crate::resources::reasons::Reason;
use crate::resources::{CrashLoop, PodRecord, Unknown};

/// Seconds between two pods of one computer.
const FIRST_SECONDS: i64 = 10;
/// The longest pause.
const LONGEST_SECONDS: i64 = 300;
/// A pod that ran for longer than this resets the count.
const EARLY_SECONDS: i64 = 600;
/// This many consecutive pods are reported as a crash loop.
const SHOWN: i32 = 3;
/// Maximum length of a cause.
const CAUSE: usize = 256;

/// The count after a pod has stopped, of a computer that is suspended or not. `None`: it starts over.
pub(super) fn counted(before: Option<&CrashLoop>, pod: &Pod, suspended: bool) -> Option<CrashLoop> {
    let last = early_end(pod, suspended)?;
    Some(CrashLoop { pods: before.map_or(0, |b| b.pods).saturating_add(1), last, unknown: Unknown::new() })
}

/// Why a pod ended. `None`: it ran long enough, or it ended after its deletion was requested.
///
/// The API has whole seconds, and a machine may end within a second of the request that suspends it. The API server gives no grace period to a
/// pod that is over already, so a pod with one was running, even if the computer is resumed by now.
fn early_end(pod: &Pod, suspended: bool) -> Option<String> {
    let meta = &pod.metadata;
    let grace = meta.deletion_grace_period_seconds.unwrap_or(0);
    let asked = meta.deletion_timestamp.as_ref()?.0.as_second() - grace;
    let latest = if suspended || grace > 0 { asked - 1 } else { asked };
    let early = meta.creation_timestamp.as_ref().is_some_and(|at| asked - at.0.as_second() < EARLY_SECONDS);
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses];
    let containers: Vec<&ContainerStatus> = lists.into_iter().flat_map(|list| list.iter().flatten()).collect();
    let ended = |c: &&ContainerStatus| c.state.as_ref().and_then(|s| s.terminated.clone());
    let by_itself = containers.iter().filter_map(ended).all(|t| t.finished_at.is_none_or(|at| at.0.as_second() <= latest));
    let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    if !early || !by_itself || !over {
        return None;
    }
    let exits = containers.iter().filter_map(|c| Some((c.name.clone(), ended(c)?)));
    let exit = exits.max_by_key(|(_, t)| t.exit_code != 0).map(|(name, t)| {
        let why = t.reason.map(|r| format!(" ({r})")).unwrap_or_default();
        format!("container {name} exited with code {}{why}", t.exit_code)
    });
    let rejected = status.reason.as_ref().map(|r| format!("{r}: {}", status.message.clone().unwrap_or_default()));
    let cause = rejected.or(exit).unwrap_or_else(|| "its node rejected it".to_owned());
    Some(truncate(&cause, CAUSE))
}

/// The rest of the pause before the next pod. `skipped`: a resumed computer does not wait.
pub(super) fn pause(pods: &[PodRecord], crash_loop: Option<&CrashLoop>, now: Timestamp, skipped: bool) -> Option<State> {
    let ended = |p: &PodRecord| p.stopped_at.clone().max(p.vanished_at.clone());
    // A time in the future comes from a clock that has been set back since: it does not count.
    let last: Time = pods.iter().filter_map(ended).filter(|at| at.0 <= now).max().filter(|_| !skipped)?;
    let wanted = seconds(crash_loop);
    let left = wanted - now.duration_since(last.0).as_secs();
    if left <= 0 {
        return None;
    }
    let left = u64::try_from(left.min(wanted)).unwrap_or(1);
    Some(match crash_loop.filter(|c| c.pods >= SHOWN) {
        Some(CrashLoop { pods, last, .. }) => {
            let message = format!(
                "the last {pods} pods of this computer terminated by themselves soon after they were created, the last one because {last}. The next \
                 one is created {wanted} s after that. Fix the command, image or resources of its ComputerClass; to retry at once, set \
                 spec.suspended to true and, once it is Suspended, to false"
            );
            State::blocked(Reason::CrashLoop, message, left)
        }
        None => State::wait(left),
    })
}

/// Doubles with every pod.
fn seconds(crash_loop: Option<&CrashLoop>) -> i64 {
    let before = crash_loop.map_or(0, |c| c.pods.saturating_sub(1)).clamp(0, 16);
    (FIRST_SECONDS << before).min(LONGEST_SECONDS)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn pod(created: &str, asked: &str, finished: Option<&str>) -> Pod {
        let containers: Vec<_> = finished
            .map(|at| json!({"name": "m", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": at}}}))
            .into_iter()
            .collect();
        serde_json::from_value(json!({
            "metadata": {"creationTimestamp": created, "deletionTimestamp": asked, "deletionGracePeriodSeconds": 0},
            "status": {"phase": "Failed", "containerStatuses": containers},
        }))
        .unwrap()
    }

    #[test]
    fn only_pods_that_end_early_and_by_themselves_count() {
        let crashed = pod("2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z", Some("2026-01-01T00:00:08Z"));
        let first = counted(None, &crashed, false).unwrap();
        assert_eq!((first.pods, first.last.as_str()), (1, "container m exited with code 3 (Error)"));
        assert_eq!(counted(Some(&first), &pod("2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z", None), false).unwrap().pods, 2, "rejected");
        let deleted = pod("2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z", Some("2026-01-01T00:00:12Z"));
        assert_eq!(counted(Some(&first), &deleted, false), None, "it was deleted while it was running");
        let old = pod("2026-01-01T00:00:00Z", "2026-01-01T00:20:00Z", Some("2026-01-01T00:19:59Z"));
        assert_eq!(counted(Some(&first), &old, false), None, "it ran for a long time");
    }

    /// Seen on a real cluster: three suspends soon after a start were a crash loop.
    #[test]
    fn a_machine_that_ends_in_the_second_of_its_suspension_did_not_crash() {
        let (created, asked) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z");
        let mut ended = pod(created, asked, Some(asked));
        assert!(counted(None, &ended, false).is_some(), "it was over, and deleted in the same second");
        assert_eq!(counted(None, &ended, true), None);
        // It is resumed already. The end of the grace period is the deletionTimestamp.
        ended.metadata.deletion_grace_period_seconds = Some(30);
        ended.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:39Z")).unwrap();
        assert_eq!(counted(None, &ended, false), None);
    }

    #[test]
    fn the_pause_doubles_up_to_a_bound_and_a_clock_that_is_set_back_does_not_extend_it() {
        let crash_loop = |pods| CrashLoop { pods, last: "x".into(), unknown: Unknown::new() };
        let waits: Vec<i64> = [1, 2, 3, 5, 6, 9, i32::MAX].map(|n| seconds(Some(&crash_loop(n)))).into();
        assert_eq!((seconds(None), waits), (10, vec![10, 20, 40, 160, 300, 300, 300]));
        let at = |s: i64| Timestamp::from_second(1_800_000_000 + s).unwrap();
        let pods = [PodRecord { stopped_at: Some(Time(at(0))), ..PodRecord::default() }];
        let left = |n, now| pause(&pods, Some(&crash_loop(n)), at(now), false);
        assert_eq!(left(1, 4), Some(State::Wait(Duration::from_secs(6))));
        assert_eq!((left(1, 10), left(1, -86_400)), (None, None));
        assert!(matches!(left(3, 10), Some(State::Blocked(b, wait)) if b.reason == Reason::CrashLoop && wait == Duration::from_secs(30)));
        assert_eq!(pause(&pods, Some(&crash_loop(3)), at(1), true), None, "a computer that is resumed need not wait");
    }
}
