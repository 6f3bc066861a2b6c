//! kopia: it also deduplicates and encrypts. The repository is created before the measurement, with the compression `zstd`. Its cache is emptied before
//! the verification, which therefore reads from the server.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::super::server::{BUCKET, KEY, SECRET};
use super::{Place, Run};
use crate::bench::archive::home::Home;

/// Takes a snapshot, and verifies all of its files.
pub fn run(place: &Place<'_>, home: &Home) -> Result<Run> {
    let kopia = |arguments: &[&str]| {
        let mut command = Command::new(&place.programs.kopia);
        command
            .args(arguments)
            .current_dir(&home.path)
            .env("KOPIA_PASSWORD", "password")
            .env("KOPIA_CONFIG_PATH", place.scratch.join("kopia.config"))
            .env("KOPIA_CACHE_DIRECTORY", place.scratch.join("kopia-cache"))
            .env("KOPIA_LOG_DIR", place.scratch.join("kopia-logs"))
            .env("KOPIA_CHECK_FOR_UPDATES", "false");
        command
    };
    let endpoint = format!("--endpoint={}", place.server.address);
    let (bucket, key, secret) = (format!("--bucket={BUCKET}"), format!("--access-key={KEY}"), format!("--secret-access-key={SECRET}"));
    let server = [&bucket, &endpoint, &key, &secret, "--region=us-east-1", "--disable-tls", "--prefix=kopia/"];
    place.measure("kopia repository create", &mut kopia(&[&["repository", "create", "s3"], &server[..]].concat()))?;
    place.measure("kopia policy set", &mut kopia(&["policy", "set", "--global", "--compression=zstd"]))?;
    let began = Instant::now();
    let mut used = place.measure("kopia snapshot create", &mut kopia(&["snapshot", "create", "--no-progress", "."]))?;
    place.measure("kopia cache clear", &mut kopia(&["cache", "clear"]))?;
    used.extend(place.measure("kopia snapshot verify", &mut kopia(&["snapshot", "verify", "--verify-files-percent=100"]))?);
    Ok(Run { wall: began.elapsed(), used })
}
