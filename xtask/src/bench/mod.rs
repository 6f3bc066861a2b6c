//! `cargo xtask bench`: figures that are compared with those of other programs in the same run, because a figure alone says more about the
//! machine than about the program.

pub mod archive;
pub mod http;
mod stage;

use std::net::{SocketAddr, TcpListener};

pub use stage::Build;

/// A free port of this machine.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
