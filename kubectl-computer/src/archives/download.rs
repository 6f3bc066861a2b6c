//! Downloads an export. It is written beside its place, resumed after a break, and gets its name only when its length and its digest are right: a
//! file with that name is always whole, and an existing file is never replaced.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::api::HttpApi;

/// How often in a row a download may break without a byte.
const BREAKS: u32 = 5;

/// What must be right.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Path of the export below `/api/v0`.
    pub path: Vec<String>,
    /// Its `ETag`: only these bytes are joined.
    pub etag: String,
    /// Its length.
    pub length: u64,
    /// SHA-256 of the file. Not known for sessions and for archives of earlier versions.
    pub stored: Option<String>,
    /// SHA-256 of the tar in it.
    pub tar: Option<String>,
    /// Bytes of the tar in it.
    pub tar_bytes: u64,
}

/// Where a download is until it is whole. Its name has the beginning of the tag, so that another archive is never continued.
pub fn part_of(file: &Path, etag: &str) -> PathBuf {
    let tag: String = etag.chars().filter(char::is_ascii_alphanumeric).collect();
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.part", tag.get(..16).unwrap_or(&tag)));
    name.into()
}

/// Downloads to a file that does not exist.
///
/// # Errors
/// When it fails repeatedly, or what was received is not what was expected.
pub async fn to_file(api: &HttpApi, expected: &Expected, file: &Path) -> Result<()> {
    ensure!(!file.try_exists()?, "{} exists: choose another file", file.display());
    let part = part_of(file, &expected.etag);
    // Sessions may contain secrets.
    let opened = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&part);
    let mut out = opened.with_context(|| format!("write {}", part.display()))?;
    let (mut breaks, mut had) = (0, out.metadata()?.len());
    while let Err(error) = rest(api, expected, &mut out).await {
        let has = out.metadata()?.len();
        breaks = if has > had { 0 } else { breaks + 1 };
        had = has;
        if breaks >= BREAKS {
            return Err(error.context(format!(
                "{has} of {} bytes are in {}; repeat the command to resume",
                expected.length,
                part.display()
            )));
        }
        crate::screen::note(&format!("the download broke after {has} of {} bytes, resuming: {error:#}", expected.length));
        tokio::time::sleep(Duration::from_secs(1 << breaks)).await;
    }
    if let Err(wrong) = check(&part, expected) {
        std::fs::remove_file(&part)?;
        return Err(wrong);
    }
    out.sync_all()?;
    name(&part, file)
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

/// Downloads what is missing in `out`.
async fn rest(api: &HttpApi, expected: &Expected, out: &mut File) -> Result<()> {
    let has = out.seek(SeekFrom::End(0))?;
    if has >= expected.length {
        ensure!(has == expected.length, "more bytes than the archive has: remove the .part file");
        return Ok(());
    }
    let headers = [("range", format!("bytes={has}-")), ("if-range", expected.etag.clone())];
    let path: Vec<&str> = expected.path.iter().map(String::as_str).collect();
    let mut answer = api.get(&path, &[], if has > 0 { &headers } else { &[] }).await?;
    let resumed = answer.status().as_u16() == 206;
    if has > 0 && !resumed {
        out.set_len(0)?;
    }
    let mut left = expected.length - if resumed { has } else { 0 };
    while let Some(bytes) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        left = left.checked_sub(bytes.len() as u64).context("more bytes than the archive has")?;
        out.write_all(&bytes)?;
    }
    ensure!(left == 0, "{left} bytes are missing");
    Ok(())
}

/// Reads the export without keeping it.
///
/// # Errors
/// As [`to_file`].
pub async fn to_nothing(api: &HttpApi, expected: &Expected, folder: &Path) -> Result<()> {
    to_file(api, expected, &folder.join("archive")).await
}

/// Compares a file with what is expected.
///
/// # Errors
/// When it differs, and how.
pub fn check(file: &Path, expected: &Expected) -> Result<()> {
    let length = std::fs::metadata(file).with_context(|| format!("read {}", file.display()))?.len();
    ensure!(length == expected.length, "{} has {length} bytes, the archive {}", file.display(), expected.length);
    let mut input = File::open(file)?;
    if let Some(digest) = &expected.stored {
        let mut hash = Sha256::new();
        std::io::copy(&mut input, &mut hash)?;
        let found = hex::encode(hash.finalize());
        ensure!(found == *digest, "{} has sha256 {found}, the archive {digest}", file.display());
        return Ok(());
    }
    let (mut tar, mut hash, mut bytes, mut buffer) = (zstd::Decoder::new(input)?, Sha256::new(), 0, vec![0; 64 * 1024]);
    while let read @ 1.. = tar.read(&mut buffer).context("the archive is damaged")? {
        hash.update(&buffer[..read]);
        bytes += read as u64;
        ensure!(bytes <= expected.tar_bytes, "{} contains more than the archive", file.display());
    }
    let found = hex::encode(hash.finalize());
    let right = bytes == expected.tar_bytes && expected.tar.as_ref().is_none_or(|digest| *digest == found);
    ensure!(right, "{} contains a tar of {bytes} bytes with sha256 {found}, which is not that of the archive", file.display());
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn expected(stored: &[u8], tar: &[u8], with_digest: bool) -> Expected {
        let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        Expected {
            path: Vec::new(),
            etag: "\"0123456789abcdef0123\"".to_owned(),
            length: stored.len() as u64,
            stored: with_digest.then(|| digest(stored)),
            tar: Some(digest(tar)),
            tar_bytes: tar.len() as u64,
        }
    }

    #[test]
    fn what_is_shorter_longer_or_changed_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (file, tar) = (folder.path().join("a"), b"a tar".repeat(1000));
        let stored = zstd::encode_all(&tar[..], 3).unwrap();
        for with_digest in [true, false] {
            let expected = expected(&stored, &tar, with_digest);
            std::fs::write(&file, &stored).unwrap();
            check(&file, &expected).unwrap();
            for wrong in [
                stored[..stored.len() - 1].to_vec(),
                [&stored[..], b"x"].concat(),
                zstd::encode_all(&b"b tar".repeat(1000)[..], 3).unwrap(),
            ] {
                std::fs::write(&file, wrong).unwrap();
                assert!(check(&file, &expected).is_err());
            }
        }
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (part, file) = (folder.path().join("a.part"), folder.path().join("a"));
        std::fs::write(&part, "new").unwrap();
        std::fs::write(&file, "old").unwrap();
        assert!(name(&part, &file).is_err());
        assert_eq!((std::fs::read(&part).unwrap(), std::fs::read(&file).unwrap()), (b"new".to_vec(), b"old".to_vec()));
        std::fs::remove_file(&file).unwrap();
        name(&part, &file).unwrap();
        assert!(!part.exists() && std::fs::read(&file).unwrap() == b"new");
    }

    #[test]
    fn a_part_of_another_archive_is_not_continued() {
        let file = Path::new("box.tar.zst");
        assert_eq!(part_of(file, "\"0123456789abcdef0123\""), Path::new("box.tar.zst.0123456789abcdef.part"));
        assert_ne!(part_of(file, "\"1123456789abcdef0123\""), part_of(file, "\"0123456789abcdef0123\""));
    }
}
