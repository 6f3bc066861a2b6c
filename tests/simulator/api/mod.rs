//! An API server in memory: what etcd, kube-apiserver and its admission do to the requests that our code makes.

pub mod failure;
pub mod kinds;
pub mod server;
pub mod state;
pub mod value;
pub mod verbs;
mod watch;

pub use state::{Actor, State};
