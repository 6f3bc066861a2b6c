//! Everything that `cargo xtask` does, as a library for its commands and for tests: real clusters in one call.
//!
//! It is a tool for developers: no part of it may be used by the operator.

pub mod bench;
pub mod book;
pub mod cargo_tools;
pub mod chart;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod deny;
pub mod design;
pub mod durations;
pub mod image;
pub mod isolation;
pub mod kwok;
pub mod language;
pub mod node;
pub mod pki;
pub mod process;
pub mod release;
pub mod scenarios;
pub mod shape;
pub mod soak;
pub mod test;
pub mod tools;
