//! A controller that sets the policy of volumes back as soon as the operator changes it, as a `GitOps` tool with a watch does.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::api::State;
use crate::api::value::text;
use crate::lasting::{Outcome, blocked, check, is_active, until, with_one};
use crate::life::Life;
use crate::moves::{self, Move};

fn protected(volume: &Value) -> bool {
    text(volume, "/spec/persistentVolumeReclaimPolicy") == Some("Retain")
}

/// Most requests of the operator in two minutes of that.
const MOST: u64 = 60;

/// Both sides succeed with each write, so nothing fails: the operator must notice by itself that it is being undone.
pub fn policy_is_set_back_at_once() -> Outcome {
    with_one(Life::Managed, async |world| {
        check(until(world, 600, is_active).await, "the computer is not active")?;
        let (before, began, mut reported) = (world.counted(), Instant::now(), false);
        while began.elapsed() < Duration::from_secs(120) {
            if world.with(|s| s.all("persistentvolumes").any(|v| protected(v))) {
                moves::perform(world, Move::ResetPolicy);
                world.notify();
            }
            reported |= world.with(|s| blocked(s, "WriteUndone"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let made = world.counted() - before;
        check(made <= MOST, &format!("{made} requests in two minutes, not {MOST}"))?;
        check(reported, "it is not reported")?;
        let all_protected = |s: &mut State| s.all("persistentvolumes").all(|v| protected(v));
        check(until(world, 300, all_protected).await, "the volume stays without protection after that")
    })
}
