//! The reconciler of one computer: `observe` (caches) → `plan` (pure) → `apply` (one request), again until the plan waits;
//! then the status. Provisioning and deletion are two such plans.

pub mod action;
pub mod apply;
pub mod deletion;
pub mod ending;
pub mod events;
pub mod latest;
pub mod observe;
pub mod overrides;
pub mod plan;
pub mod pod;
pub mod provision;
pub mod reconcile;
pub mod status;
pub mod stopped;
pub mod sweep;
pub mod view;
pub mod volume;
