//! `cargo xtask bench`: figures that are compared with a bare API server in the same run, because a figure alone says more about the
//! machine than about the program.

pub mod http;
mod stage;

pub use stage::Build;
