//! Bringing what an archive holds to somebody: as one tar, as one file, or into a folder. Each is whole or an error (S12).
//!
//! A tar that ends early must not look like a complete one, so its end is only written when all of it was. Through `kubectl exec` a
//! program cannot know what has arrived: when it ends, the connection is closed behind it, and the API server drops what a slow reader
//! has not taken yet, with exit code 0. So an export is followed by more zeros than are on their way at any time. A tar ends before
//! such zeros, and what is lost is some of them.

use std::fs::File;
use std::io::{IsTerminal as _, Read, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::cli::{manifest, plain};
use super::object::checked;
use super::restore::Taken;
use super::{SessionEntry, Store, object_key, restore};

/// More than the pipes and the sockets between this program and `kubectl` hold together.
const IN_FLIGHT: usize = 32 << 20;

/// Where a command writes to: a copy of standard output without a buffer that swallows errors.
///
/// # Errors
/// When standard output is closed.
pub fn stdout() -> anyhow::Result<Output> {
    let file = File::from(std::io::stdout().as_fd().try_clone_to_owned().context("standard output cannot be written")?);
    Ok(Output { buffer: Vec::new(), file, bytes: 0, hash: Sha256::new() })
}

/// Counts and hashes what is written.
pub struct Output {
    buffer: Vec<u8>,
    file: File,
    bytes: u64,
    hash: Sha256,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Whatever is dropped while a panic unwinds must not complete what is not complete.
        if std::thread::panicking() {
            return Err(std::io::Error::other("the program failed"));
        }
        self.buffer.extend_from_slice(bytes);
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        if self.buffer.len() >= 256 * 1024 {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl Output {
    /// Bytes and SHA-256 of what was written.
    fn digest(&self) -> (u64, String) {
        (self.bytes, hex::encode(self.hash.clone().finalize()))
    }

    /// Whether this runs in somebody's `kubectl exec`: a pipe to it, and no parent in this PID namespace.
    fn through_exec(&self) -> bool {
        std::os::unix::process::parent_id() == 0 && !self.file.is_terminal() && !self.is_file()
    }

    fn is_file(&self) -> bool {
        self.file.metadata().is_ok_and(|m| m.is_file())
    }
}

/// Everything written has left this process; on a disk, it is there.
///
/// # Errors
/// When the reader has ended, or the disk is full.
pub fn finish(out: &mut Output) -> anyhow::Result<()> {
    let lost = "standard output was not delivered: its reader ended, or the disk is full";
    out.flush().context(lost)?;
    if out.is_file() {
        out.file.sync_all().context(lost)?;
    }
    Ok(())
}

/// The sessions that were asked for.
async fn wanted(store: &Store, uid: &str, session: Option<String>) -> anyhow::Result<Vec<SessionEntry>> {
    let (manifest, _) = manifest(store, uid).await?;
    let wanted: Vec<_> = manifest.sessions.into_iter().filter(|s| session.as_ref().is_none_or(|id| *id == s.id)).collect();
    ensure!(!wanted.is_empty() || session.is_none(), "no such session; `archives show {uid}` lists them");
    Ok(wanted)
}

/// Reads an object with `read`, whole, and compares its digest.
fn object<T>(
    store: &Store,
    uid: &str,
    digest: &str,
    read: impl FnOnce(&mut super::object::Digesting<Box<dyn Read>>) -> Result<T, restore::RestoreError>,
) -> anyhow::Result<T> {
    let stream = Handle::current().block_on(store.stream(&object_key(uid, digest)))?;
    let reader: Box<dyn Read> = Box::new(SyncIoBridge::new(StreamReader::new(stream)));
    Ok(checked(reader, digest, read)?)
}

/// A session must hold what the manifest says.
fn complete(entry: &SessionEntry, taken: Taken) -> anyhow::Result<()> {
    let said = (entry.files, entry.bytes);
    let found = (taken.files, taken.bytes);
    ensure!(found == said, "damaged: session {} holds (files, bytes) {found:?}, and the manifest says {said:?}", plain(&entry.id));
    Ok(())
}

/// Writes the sessions as one tar. What it tells goes to standard error: standard output is the tar.
pub(super) async fn export(store: Store, uid: String, session: Option<String>, out: Output) -> anyhow::Result<ExitCode> {
    if out.file.is_terminal() {
        anyhow::bail!("this writes a tar to standard output: send it to a file (> {uid}.tar) or a pipe (| tar t)");
    }
    let entries = wanted(&store, &uid, session).await?;
    let sessions = entries.len();
    let (mut out, taken) = tokio::task::spawn_blocking(move || {
        whole_tar(out, |tar| {
            let mut all = Taken::default();
            for entry in entries {
                let taken = object(&store, &uid, &entry.digest, |object| restore::append(object, tar))?;
                complete(&entry, taken)?;
                all = Taken { files: all.files + taken.files, bytes: all.bytes + taken.bytes };
            }
            Ok(all)
        })
    })
    .await??;
    let (bytes, digest) = out.digest();
    let exec = out.through_exec();
    if exec {
        out.write_all(&vec![0; IN_FLIGHT]).context("the tar was not delivered: its reader ended")?;
    }
    finish(&mut out)?;
    eprintln!("exported {sessions} sessions, {} files of {} bytes", taken.files, taken.bytes);
    eprintln!("tar: {bytes} bytes, sha256 {digest}");
    if exec {
        eprintln!("It is followed by zeros, for `kubectl exec`. Check what arrived: head -c {bytes} FILE | sha256sum");
    }
    Ok(ExitCode::SUCCESS)
}

/// A tar that has an end only if all of it was written.
fn whole_tar<W: Write, T>(out: W, fill: impl FnOnce(&mut tar::Builder<W>) -> anyhow::Result<T>) -> anyhow::Result<(W, T)> {
    let mut tar = tar::Builder::new(out);
    match fill(&mut tar) {
        Ok(filled) => Ok((tar.into_inner().context("the tar was not delivered: its reader ended, or the disk is full")?, filled)),
        Err(error) => {
            // Dropped, it would write the end of a tar.
            std::mem::forget(tar);
            Err(error)
        }
    }
}

/// Prints one file.
pub(super) async fn cat(store: Store, uid: String, path: PathBuf, mut out: Output) -> anyhow::Result<ExitCode> {
    let (manifest, _) = manifest(&store, &uid).await?;
    let entry = manifest.session_of_path(&path.to_string_lossy()).with_context(|| format!("no session holds {}", path.display()))?;
    let (digest, shown) = (entry.digest.clone(), plain(&path.display().to_string()));
    let out = tokio::task::spawn_blocking(move || {
        object(&store, &uid, &digest, |object| restore::print(object, &path, &mut out))?;
        finish(&mut out)?;
        anyhow::Ok(out)
    })
    .await??;
    if !out.file.is_terminal() {
        let (bytes, digest) = out.digest();
        eprintln!("{shown}: {bytes} bytes, sha256 {digest}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the sessions to a folder.
pub(super) async fn restore(store: Store, uid: String, to: PathBuf, session: Option<String>) -> anyhow::Result<ExitCode> {
    let entries = wanted(&store, &uid, session).await?;
    let (sessions, all) = (entries.len(), tokio::task::spawn_blocking(move || unpack_all(&store, &uid, &entries, &to)).await??);
    eprintln!("restored {sessions} sessions, {} files of {} bytes; each session's SHA-256 is that of the manifest", all.files, all.bytes);
    Ok(ExitCode::SUCCESS)
}

fn unpack_all(store: &Store, uid: &str, entries: &[SessionEntry], to: &Path) -> anyhow::Result<Taken> {
    let mut all = Taken::default();
    for entry in entries {
        let taken = object(store, uid, &entry.digest, |object| restore::unpack(object, to))?;
        complete(entry, taken)?;
        all = Taken { files: all.files + taken.files, bytes: all.bytes + taken.bytes };
    }
    // A disk may tell of its failure only now.
    if let Ok(folder) = File::open(to) {
        rustix::fs::syncfs(&folder).with_context(|| format!("{} cannot be written to its disk", to.display()))?;
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(tar: &mut tar::Builder<&mut Vec<u8>>) {
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        tar.append_data(&mut header, "s/one.jsonl", &b"one"[..]).unwrap();
    }

    /// L6 of the review: an export that failed between two sessions was a valid tar of the first.
    #[test]
    fn a_tar_that_fails_has_no_end() {
        let (mut whole, mut failed) = (Vec::new(), Vec::new());
        whole_tar(&mut whole, |tar| {
            entry(tar);
            Ok(())
        })
        .unwrap();
        whole_tar::<_, ()>(&mut failed, |tar| {
            entry(tar);
            Err(anyhow::anyhow!("the second session is damaged"))
        })
        .unwrap_err();
        assert_eq!(whole.len(), failed.len() + 1024, "a tar ends with two blocks of zeros");
        assert!(whole.starts_with(&failed));
    }

    /// The reader of a pipe that ends is an error, not the end of a program by a signal, nor its success.
    #[test]
    fn a_reader_that_ends_is_an_error() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut out = Output { buffer: Vec::new(), file: File::from(std::os::fd::OwnedFd::from(writer)), bytes: 0, hash: Sha256::new() };
        out.write_all(b"some").unwrap();
        drop(reader);
        assert!(finish(&mut out).unwrap_err().to_string().contains("its reader ended"));
    }
}
