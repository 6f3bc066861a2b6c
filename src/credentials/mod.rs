//! Keys of computers (`key`) and tokens of `ApiKeys` (`api_key`): their format and their verification (`verify`, `verify_api_key`). Both are generated, parsed
//! and hashed in `token.rs`. A token must never be logged or stored; only its hash is stored.

pub mod api_key;
pub mod cli;
#[cfg(test)]
mod hostile_input_tests;
pub mod id;
pub mod key;
pub mod rights;
mod token;
pub mod verify;
pub mod verify_api_key;

pub use api_key::{ApiKeyId, ApiToken};
pub use id::ComputerId;
pub use key::Key;
pub use rights::KeyRights;
pub use verify::{Denied, VerifiedKey, verify};
pub use verify_api_key::verify_api_key;
