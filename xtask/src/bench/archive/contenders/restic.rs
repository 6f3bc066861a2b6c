//! restic: it also deduplicates and encrypts. The repository is created before the measurement.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::super::server::{BUCKET, KEY, SECRET};
use super::{Place, Run};
use crate::bench::archive::home::Home;

/// Backs up, and checks with all of the data.
pub fn run(place: &Place<'_>, home: &Home) -> Result<Run> {
    let restic = |arguments: &[&str]| {
        let mut command = Command::new(&place.programs.restic);
        command
            .args(arguments)
            .current_dir(&home.path)
            .env("RESTIC_REPOSITORY", format!("s3:http://{}/{BUCKET}/restic", place.server.address))
            .env("RESTIC_PASSWORD", "password")
            .env("RESTIC_CACHE_DIR", place.scratch.join("restic-cache"))
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_DEFAULT_REGION", "us-east-1");
        command
    };
    place.measure("restic init", &mut restic(&["init"]))?;
    let began = Instant::now();
    let mut used = place.measure("restic backup", &mut restic(&["backup", "--quiet", "."]))?;
    used.extend(place.measure("restic check", &mut restic(&["check", "--quiet", "--read-data"]))?);
    Ok(Run { wall: began.elapsed(), used })
}
