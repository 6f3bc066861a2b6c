//! `cargo xtask bench`: figures that are compared with those of other programs in the same run, because a figure alone says more about the
//! machine than about the program.

pub mod archive;
pub mod http;
pub mod lifecycle;
pub mod performance;
mod proc;
pub mod scale;
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

/// Processors, memory and kernel.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let field = |text: &str, name: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start_matches([' ', '\t', ':']).to_owned()))
    };
    let memory = field(&memory, "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).unwrap_or_default() >> 20;
    let system = read("/proc/sys/kernel/osrelease");
    format!("{cores} processors ({}), {memory} GiB, Linux {}", field(&cpu, "model name").unwrap_or_default(), system.trim())
}
