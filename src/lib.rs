//! computer-operator: machines on Kubernetes whose deletion is safe, and proved by a receipt.
//!
//! The folder listing is the architecture: `resources` (the kinds), `computer` and `apikey` (the reconcilers), `archive`
//! (what is kept), `credentials` (keys), `http` (the API), `install` (the chart's hooks), `class` and `session` (small
//! controllers), `runtime` (the process), `operator` (builds all of it and connects it).
pub mod apikey;
pub mod archive;
pub mod class;
pub mod computer;
pub mod credentials;
pub mod guards;
pub mod http;
pub mod install;
pub mod operator;
pub mod resources;
pub mod runtime;
pub mod session;
