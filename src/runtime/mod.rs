//! The infrastructure of the process: configuration, client, caches, work queue, leader election, HTTP server, health and logs. [`config`] is the flags of
//! `computer-operator run`; [`settings`] is the few of them that plans need. Nothing in this module may decide anything about a computer.

pub mod admission;
pub mod backoff;
pub mod blocking;
pub(crate) mod cached_fields;
pub mod caches;
pub mod client;
pub mod clock;
pub mod config;
pub mod health;
pub mod ingest_url;
pub mod lease;
pub mod patch;
pub mod queue;
pub mod request_metrics;
pub mod requests;
pub mod server;
pub mod settings;
pub mod signal;
pub mod telemetry;
pub mod time_and_random;
