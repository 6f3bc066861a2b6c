//! What the kernel says about a process in `/proc`. Pure: the files' text in, figures out.
//!
//! It must never guess: a text that is not as expected has no figure.

use std::time::Duration;

/// Milliseconds of a tick in `/proc`, on every platform of Linux.
const TICK: u64 = 10;

/// The field of the most memory at one time.
pub const PEAK: &str = "VmHWM";
/// The field of the memory now.
pub const RESIDENT: &str = "VmRSS";

/// Bytes of a field of `/proc/PID/status`.
pub fn memory(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// User and system time in `/proc/PID/stat`, its own and that of the children that it has waited for.
pub fn cpu(stat: &str) -> Option<Duration> {
    // The name of the program may contain blanks and brackets.
    let (_, fields) = stat.rsplit_once(") ")?;
    let times: Vec<u64> = fields.split(' ').skip(11).take(4).map(str::parse).collect::<Result<_, _>>().ok()?;
    (times.len() == 4).then(|| Duration::from_millis(TICK * times.iter().sum::<u64>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_kernel() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(memory(status, PEAK), Some(2048 * 1024));
        assert_eq!(memory(status, RESIDENT), Some(1024));
        assert_eq!(memory("Name:\tx\n", PEAK), None);
        assert_eq!(memory("VmHWM:\t many\n", PEAK), None);
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1";
        assert_eq!(cpu(stat), Some(Duration::from_millis(1270)));
        assert_eq!(cpu("12 (a) S 1"), None);
    }
}
