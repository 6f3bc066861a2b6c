//! What the process is made of: configuration, client, caches, work queue, lease, health, metrics. Nothing here decides
//! anything about a computer.

pub mod backoff;
pub mod caches;
pub mod client;
pub mod clock;
pub mod config;
pub mod crowd;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod operator;
pub mod peer;
pub mod queue;
pub mod rbac;
pub mod requests;
pub mod server;
pub mod sources;
pub(crate) mod strip;
pub mod telemetry;
pub mod turn;
