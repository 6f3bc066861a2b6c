//! The S3 server of a measurement: versitygw over a folder, with a bucket. It is the same program for all contenders, and a new process for each
//! measurement.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::home::measure;
use super::usage::{Group, Usage};
use crate::bench::free_address;
use crate::process;

/// The access key.
pub const KEY: &str = "tester";
/// The secret key.
pub const SECRET: &str = "tester-secret";
/// The bucket.
pub const BUCKET: &str = "bucket";

/// A running server.
pub struct Server {
    group: Group,
    /// Its address.
    pub address: SocketAddr,
    folder: PathBuf,
}

impl Server {
    /// Starts the server over an empty folder.
    pub fn start(program: &Path, scratch: &Path) -> Result<Self> {
        let (folder, address, mut group) = (scratch.join("s3"), free_address()?, Group::new(scratch));
        fs::create_dir_all(folder.join(BUCKET))?;
        let mut command = process::tied(program, None)?;
        command.args(["--access", KEY, "--secret", SECRET, "--port", &address.to_string(), "posix"]).arg(&folder);
        group.start("versitygw", command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < deadline, "versitygw does not listen at {address}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { group, address, folder })
    }

    /// The bucket as the operator names it.
    pub fn store(&self) -> String {
        let Self { address, .. } = self;
        let credentials = format!("access_key_id={KEY}&secret_access_key={SECRET}");
        format!("s3://{BUCKET}/archives?endpoint=http://{address}&region=us-east-1&allow_http=true&{credentials}")
    }

    /// Names of the objects at the top of the bucket, in order.
    pub fn objects(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.folder.join(BUCKET))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend((!name.starts_with('.')).then_some(name));
        }
        names.sort();
        Ok(names)
    }

    /// Stops the server and removes what it has stored. Returns its usage and the bytes that were stored.
    pub fn stop(self) -> Result<(Usage, u64)> {
        let (_, stored) = measure(&self.folder)?;
        let used = self.group.stop()?.remove(0);
        fs::remove_dir_all(&self.folder)?;
        Ok((used, stored))
    }
}
