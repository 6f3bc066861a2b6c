//! The reconciler of one computer: `observe` (caches) → `plan` (pure) → `apply` (one request), again until the plan waits;
//! then the status. Provisioning and deletion are two such plans.

pub mod action;
pub mod apply;
pub mod budget;
pub mod children;
pub mod deletion;
pub mod events;
pub mod failed;
pub mod home_volume;
pub mod machine_pod;
pub mod memory;
pub mod metrics;
pub mod new_record;
pub mod observe;
pub mod overrides;
pub mod plan;
pub mod provision;
pub mod reconcile;
pub mod report;
pub mod status;
pub mod step;
pub mod stop_pod;
pub mod stopped;
pub mod sweep;
pub mod time_to_live;
pub mod view;
pub mod view_digest;
