//! The reconciler of one computer: `observe` (caches) → `plan` (pure) → `apply` (one request), repeated until the plan waits; then the
//! status. `reconcile.rs` is that loop. `provision/` and `deletion/` are the two plans; the order of their steps is
//! in `api/src/steps.rs`.
//!
//! Only `apply` may change a child, the record or the Computer's spec and metadata; a plan must never make a request.

pub mod action;
pub mod apply;
pub mod blocked_deletions;
pub mod budget;
pub mod children;
pub mod contested;
pub mod deletion;
pub mod ended_deletions;
pub mod events;
pub mod failed_request;
pub mod fleet;
pub mod held_status;
pub mod home_volume;
pub mod key_checks;
pub mod machine_pod;
pub mod memory;
pub mod metrics;
pub mod new_record;
pub mod observe;
pub mod overrides;
pub mod plan;
pub mod pod_writers;
pub mod provision;
pub mod provisioning_times;
pub mod reconcile;
pub mod report;
pub mod status;
pub mod step;
pub mod stop_pod;
pub mod stray_pod;
pub mod sweep;
pub mod time_to_live;
pub mod view;
pub mod view_digest;
pub mod waiting;
