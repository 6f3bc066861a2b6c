//! computer-operator: machines on Kubernetes whose deletion is safe, and proved by a receipt.
//!
//! The directory listing is the architecture. A module uses only modules of lower layers; a test (`xtask/src/shape.rs`) reads this
//! list and fails when one does not:
//!
//! 1. `guards` (checks that the simulator can switch off), `resources` (the kinds: the crate in the folder api)
//! 2. `runtime` (the process: client, caches, queue, lease, HTTP server)
//! 3. `archive` (packing, the store, ingest, verification), `credentials` (keys)
//! 4. `session` (marks Sessions as archived)
//! 5. `apikey`, `computer`, `erasure` (the reconcilers)
//! 6. `class` (its controller), `http` (the API), `install` (the chart's hooks and RBAC)
//! 7. `operator` (builds the process of `computer-operator run` and connects its parts)
pub mod apikey;
pub mod archive;
pub mod class;
pub mod computer;
pub mod credentials;
pub mod erasure;
pub mod guards;
pub mod http;
pub mod install;
pub mod operator;
pub use computer_operator_api as resources;
pub mod runtime;
pub mod session;
