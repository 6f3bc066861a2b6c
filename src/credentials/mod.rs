//! Keys: their format, and the one way to verify them. No token is ever logged or stored; only its hash is.

pub mod api_key;
pub mod cli;
#[cfg(test)]
mod hostile_input_tests;
pub mod id;
pub mod key;
mod token;
pub mod verify;
pub mod verify_api_key;

pub use api_key::{ApiKeyId, ApiToken};
pub use id::ComputerId;
pub use key::Key;
pub use verify::{Denied, verify};
pub use verify_api_key::verify_api_key;
