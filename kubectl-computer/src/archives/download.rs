//! Downloads an export. A file is written beside its place, resumed after a break, and gets its name only when its length and its digest are right: a
//! file with that name is always whole, and an existing file is never replaced. What is only verified is not kept.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::StatusCode;
use sha2::{Digest as _, Sha256};

use super::api::{HttpApi, Refusal};
use super::check::{self, Check};
use super::expected::Expected;

/// How often in a row a download may break without a byte. With the waits between them that is about ten minutes.
const BREAKS: u32 = 15;
/// Longest wait before the next request, in seconds; also where the API asks for a longer one.
const LONGEST: u64 = 60;

/// Where a download goes. A break leaves it with the bytes that have arrived.
trait Sink {
    /// Bytes that it has.
    fn has(&self) -> Result<u64>;
    /// Takes the next bytes.
    fn take(&mut self, bytes: &[u8]) -> Result<()>;
}

impl Sink for File {
    fn has(&self) -> Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.write_all(bytes)?)
    }
}

impl Sink for Check<'_> {
    fn has(&self) -> Result<u64> {
        Ok(self.passed())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        Check::take(self, bytes)
    }
}

/// Where a download is until it is whole. Its name has the digest of the tag, so that another archive is never continued.
pub fn part_of(file: &Path, etag: &str) -> PathBuf {
    let digest = hex::encode(Sha256::digest(etag));
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.part", &digest[..16]));
    name.into()
}

/// Downloads to a file that does not exist, and says what was verified.
///
/// # Errors
/// When it fails repeatedly, or what was received is not what was expected.
pub async fn to_file(api: &HttpApi, expected: &Expected, file: &Path) -> Result<String> {
    ensure!(!file.try_exists()?, "{} exists: choose another file", file.display());
    let part = part_of(file, &expected.etag);
    // Sessions may contain secrets.
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&part);
    let mut out = opened.with_context(|| format!("write {}", part.display()))?;
    let kept = || format!("what has arrived is in {}; repeat the command to resume", part.display());
    all(api, expected, &mut out).await.with_context(kept)?;
    let verified = match check::file(&part, expected) {
        Ok(verified) => verified,
        Err(wrong) => {
            std::fs::remove_file(&part)?;
            return Err(wrong);
        }
    };
    out.sync_all()?;
    name(&part, file)?;
    Ok(verified)
}

/// Reads the export without keeping it, and says what was verified.
///
/// # Errors
/// As [`to_file`].
pub async fn to_nothing(api: &HttpApi, expected: &Expected) -> Result<String> {
    let mut check = Check::new(expected)?;
    all(api, expected, &mut check).await?;
    check.finish()
}

/// Gives a whole file its name. Unlike a rename, a link never replaces a file; some file systems have no links.
fn name(part: &Path, file: &Path) -> Result<()> {
    let exists = || format!("{} exists: the download is complete in {}", file.display(), part.display());
    match std::fs::hard_link(part, file) {
        Ok(()) => std::fs::remove_file(part)?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(exists()),
        Err(_) => {
            ensure!(!file.try_exists()?, exists());
            std::fs::rename(part, file)?;
        }
    }
    Ok(())
}

/// Downloads everything, with as many requests as it takes.
async fn all(api: &HttpApi, expected: &Expected, out: &mut impl Sink) -> Result<()> {
    let (mut breaks, mut had) = (0, out.has()?);
    while let Err(error) = rest(api, expected, out).await {
        let has = out.has()?;
        breaks = if has > had { 1 } else { breaks + 1 };
        had = has;
        let broken = format!("the download broke after {has} of {} bytes", expected.length);
        let Some(wait) = pause(&error, breaks) else { return Err(error.context(broken)) };
        crate::screen::note(&format!("{broken}, resuming in {} s: {error:#}", wait.as_secs()));
        tokio::time::sleep(wait).await;
    }
    Ok(())
}

/// How long to wait after an error, which is the n-th in a row without a byte. `None`: another request would fail as well.
fn pause(error: &anyhow::Error, breaks: u32) -> Option<Duration> {
    let usual = Duration::from_secs((1 << breaks.saturating_sub(1).min(16)).min(LONGEST));
    if breaks >= BREAKS || error.is::<Wrong>() {
        return None;
    }
    let Some(refusal) = error.downcast_ref::<Refusal>() else { return Some(usual) };
    let passes = refusal.status.is_server_error() && refusal.status != StatusCode::NOT_IMPLEMENTED;
    if !passes && ![StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&refusal.status) {
        return None;
    }
    Some(refusal.retry_after.map_or(usual, |asked| asked.clamp(Duration::from_secs(1), Duration::from_secs(LONGEST))))
}

/// What arrives or what is there is not the export: it cannot be resumed.
#[derive(Debug)]
struct Wrong(String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

/// Downloads what is missing in `out`.
async fn rest(api: &HttpApi, expected: &Expected, out: &mut impl Sink) -> Result<()> {
    let has = out.has()?;
    if has >= expected.length {
        ensure!(has == expected.length, Wrong("more bytes than the archive has: remove the .part file".to_owned()));
        return Ok(());
    }
    let headers = [("range", format!("bytes={has}-")), ("if-range", expected.etag.clone())];
    let path: Vec<&str> = expected.path.iter().map(String::as_str).collect();
    let mut answer = api.get(&path, &[], if has > 0 { &headers } else { &[] }).await?;
    let tag = answer.headers().get(reqwest::header::ETAG).and_then(|tag| tag.to_str().ok());
    ensure!(tag == Some(expected.etag.as_str()), Wrong("the API sends another archive than before".to_owned()));
    // A proxy that does not know ranges sends everything again.
    let mut known = if answer.status() == StatusCode::PARTIAL_CONTENT { 0 } else { has };
    let mut left = expected.length - has;
    while let Some(bytes) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        let skipped = bytes.len().min(usize::try_from(known).unwrap_or(usize::MAX));
        known -= skipped as u64;
        let new = &bytes[skipped..];
        let more = left.checked_sub(new.len() as u64);
        left = more.ok_or_else(|| Wrong("more bytes than the archive has".to_owned()))?;
        out.take(new).map_err(|error| Wrong(format!("{error:#}")))?;
    }
    ensure!(left == 0, "{left} bytes are missing");
    Ok(())
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
