//! computer-operator: the end of a machine's life on Kubernetes, done right and proved by a receipt.
//!
//! The folder listing is the architecture: `resources` (the kinds), `computer` (the reconciler), `archive`
//! (what is kept), `credentials` (keys), `http` (the API), `record` (the write-ahead record), `runtime` (wiring).
pub mod archive;
pub mod class;
pub mod computer;
pub mod credentials;
pub mod guards;
pub mod http;
pub mod record;
pub mod resources;
pub mod runtime;
pub mod session;
