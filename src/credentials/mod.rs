//! Keys: their format, and the one way to verify them. No token is ever logged or stored; only its hash is.

pub mod cli;
pub mod id;
pub mod key;
pub mod verify;

pub use id::ComputerId;
pub use key::Key;
pub use verify::{Denied, verify};
