//! Records in the cluster's folder the process that owns its namespaces. It must never match a later process that reuses the PID.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Where the namespaces' PID 1 is recorded, inside the cluster's folder.
pub(super) const RECORD: &str = "namespaces.json";

/// The unique identity of a process: its PID and its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Anchor {
    pub pid: i32,
    pub started_ticks: u64,
}

impl Anchor {
    pub fn of(pid: i32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the program's name in brackets, which may contain spaces and brackets.
        let rest = stat.rsplit_once(") ").context("unreadable /proc stat")?.1;
        let started = rest.split(' ').nth(19).context("short /proc stat")?;
        Ok(Self { pid, started_ticks: started.parse()? })
    }

    pub fn read(dir: &Path) -> Result<Option<Self>> {
        match fs::read(dir.join(RECORD)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).map(Some)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn write(self, dir: &Path) -> Result<()> {
        let temporary = dir.join(format!("{RECORD}.new"));
        fs::write(&temporary, serde_json::to_vec(&self)?)?;
        Ok(fs::rename(temporary, dir.join(RECORD))?)
    }

    pub fn is_alive(self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == self)
    }
}
