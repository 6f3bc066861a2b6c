//! An in-memory API server: how etcd, kube-apiserver and its admission handle the operator's requests.

pub mod failure;
pub mod kinds;
pub mod server;
pub mod state;
pub mod value;
pub mod verbs;
mod watch;

pub use state::{Actor, State};
