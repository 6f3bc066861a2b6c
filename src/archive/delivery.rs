//! Delivers the content of an archive: as one tar, as one file, or to a folder. A delivery is complete, or it is an error (S12).
//!
//! A truncated tar must never look complete, so the end of the tar is written only after all of its content. With `kubectl exec` a program
//! cannot know what has arrived: when it exits, the connection is closed, and the API server drops data that a slow reader has not received
//! yet, with exit code 0. So an export is followed by more zeros than can be in flight. A tar ends before such zeros, and only zeros are
//! lost. Nothing can follow a single file, so `cat` refuses large files with `kubectl exec`.

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

/// More than the pipes and the sockets between this program and `kubectl` can buffer.
const IN_FLIGHT: usize = 32 << 20;
/// Most bytes of a file that `cat` prints through `kubectl exec`: the sockets take as much before this program ends, and less than
/// [`BUFFER`], so that nothing of a larger file is printed.
const SMALL: u64 = 64 * 1024;
/// Bytes that are written at once.
const BUFFER: usize = 256 * 1024;

/// The output of a command: a copy of standard output without a buffer that hides errors.
///
/// # Errors
/// When standard output is closed.
pub fn stdout() -> anyhow::Result<Output> {
    let file = File::from(std::io::stdout().as_fd().try_clone_to_owned().context("standard output cannot be written")?);
    Ok(Output::new(file))
}

/// Counts and hashes what is written.
pub struct Output {
    buffer: Vec<u8>,
    file: File,
    bytes: u64,
    hash: Sha256,
    /// More than this is refused, for this reason.
    most: Option<(u64, String)>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // A value that is dropped during a panic must not complete an incomplete tar.
        if std::thread::panicking() {
            return Err(std::io::Error::other("the program failed"));
        }
        if let Some((_, why)) = self.most.as_ref().filter(|(most, _)| self.bytes + bytes.len() as u64 > *most) {
            self.buffer.clear();
            return Err(std::io::Error::other(why.clone()));
        }
        self.buffer.extend_from_slice(bytes);
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        if self.buffer.len() >= BUFFER {
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
    fn new(file: File) -> Self {
        Self { buffer: Vec::new(), file, bytes: 0, hash: Sha256::new(), most: None }
    }

    /// Bytes and SHA-256 of what was written.
    fn digest(&self) -> (u64, String) {
        (self.bytes, hex::encode(self.hash.clone().finalize()))
    }

    /// Whether this runs under `kubectl exec`: standard output is a pipe, and the parent is not in this PID namespace.
    fn through_exec(&self) -> bool {
        std::os::unix::process::parent_id() == 0 && !self.file.is_terminal() && !self.is_file()
    }

    fn is_file(&self) -> bool {
        self.file.metadata().is_ok_and(|m| m.is_file())
    }
}

/// Flushes the output; on a disk, it also syncs it.
///
/// # Errors
/// When the reader has closed the pipe, or the disk is full.
pub fn finish(out: &mut Output) -> anyhow::Result<()> {
    let lost = "standard output could not be written: the reader closed it, or the disk is full";
    out.flush().context(lost)?;
    if out.is_file() {
        out.file.sync_all().context(lost)?;
    }
    Ok(())
}

/// The requested sessions.
async fn wanted(store: &Store, uid: &str, session: Option<String>) -> anyhow::Result<Vec<SessionEntry>> {
    let (manifest, _) = manifest(store, uid).await?;
    let wanted: Vec<_> = manifest.sessions.into_iter().filter(|s| session.as_ref().is_none_or(|id| *id == s.id)).collect();
    ensure!(!wanted.is_empty() || session.is_none(), "no such session; list the sessions with `archives show {uid}`");
    Ok(wanted)
}

/// Reads an object completely with `read`, and compares its digest.
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

/// A session must contain what the manifest says.
fn complete(entry: &SessionEntry, taken: Taken) -> anyhow::Result<()> {
    let said = (entry.files, entry.bytes);
    let found = (taken.files, taken.bytes);
    ensure!(found == said, "session {} is damaged: it contains (files, bytes) {found:?}, but the manifest says {said:?}", plain(&entry.id));
    Ok(())
}

/// Writes the sessions as one tar. Messages go to standard error, because standard output is the tar.
pub(super) async fn export(store: Store, uid: String, session: Option<String>, out: Output) -> anyhow::Result<ExitCode> {
    if out.file.is_terminal() {
        anyhow::bail!("export writes a tar to standard output: redirect it to a file (> {uid}.tar) or a pipe (| tar t)");
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
        out.write_all(&vec![0; IN_FLIGHT]).context("the tar could not be written: the reader closed it")?;
    }
    finish(&mut out)?;
    eprintln!("exported {sessions} sessions, {} files of {} bytes", taken.files, taken.bytes);
    eprintln!("tar: {bytes} bytes, sha256 {digest}");
    if exec {
        eprintln!("It is followed by zeros, for `kubectl exec`. Verify the file: head -c {bytes} FILE | sha256sum");
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a tar whose end is only written after all of its content.
fn whole_tar<W: Write, T>(out: W, fill: impl FnOnce(&mut tar::Builder<W>) -> anyhow::Result<T>) -> anyhow::Result<(W, T)> {
    let mut tar = tar::Builder::new(out);
    match fill(&mut tar) {
        Ok(filled) => Ok((tar.into_inner().context("the tar could not be written: the reader closed it, or the disk is full")?, filled)),
        Err(error) => {
            // Dropping it would write the end of the tar.
            std::mem::forget(tar);
            Err(error)
        }
    }
}

/// Prints one file.
pub(super) async fn cat(store: Store, uid: String, path: PathBuf, mut out: Output) -> anyhow::Result<ExitCode> {
    let (manifest, _) = manifest(&store, &uid).await?;
    let entry = manifest.session_of_path(&path.to_string_lossy()).with_context(|| format!("no session contains {}", path.display()))?;
    let (digest, shown) = (entry.digest.clone(), plain(&path.display().to_string()));
    if out.through_exec() {
        out.most = Some((SMALL, too_large_for_exec(&uid, &entry.id, &path.to_string_lossy())));
    }
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

/// The message has a command to copy. A tenant chose the names in it, so they are quoted for a shell, and a name that a terminal does not
/// show as it is stays out of it.
fn too_large_for_exec(uid: &str, session: &str, path: &str) -> String {
    let quoted = |name: &str| shlex::try_quote(name).ok().filter(|_| plain(name) == name).map(std::borrow::Cow::into_owned);
    let command = match (quoted(session), quoted(path)) {
        (Some(session), Some(path)) => format!("`archives export {uid} --session={session} | tar -xO -- {path}`"),
        _ => format!("`archives export {uid}` with the session's ID, and unpack the file from the tar"),
    };
    format!(
        "the file is larger than {} KiB. The end of a large file can be lost through `kubectl exec`, and its exit code is 0 all the same. \
         Use {command}, which fails when something is missing",
        SMALL / 1024
    )
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
    // A disk may report its failure only now.
    if let Ok(folder) = File::open(to) {
        rustix::fs::syncfs(&folder).with_context(|| format!("{} cannot be synced to disk", to.display()))?;
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

    /// An export that failed between two sessions was once a valid tar of the first.
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

    /// A closed pipe is an error. The program must neither be killed by the signal nor succeed.
    #[test]
    fn a_reader_that_ends_is_an_error() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut out = Output::new(File::from(std::os::fd::OwnedFd::from(writer)));
        out.write_all(b"some").unwrap();
        drop(reader);
        assert!(finish(&mut out).unwrap_err().to_string().contains("the reader closed it"));
    }

    /// A tenant chooses the names in a command that an admin copies into a shell.
    #[test]
    fn a_name_in_a_command_is_one_word_of_it() {
        for hostile in ["x'; id; '.jsonl", "-rf", "$(id)", "`id`", "a b", "\"; id; \""] {
            let message = too_large_for_exec("UID", hostile, hostile);
            let command = message.split_once("Use `").unwrap().1.rsplit_once('`').unwrap().0;
            let words = shlex::split(command).unwrap();
            assert_eq!(
                words,
                ["archives", "export", "UID", &format!("--session={hostile}"), "|", "tar", "-xO", "--", hostile],
                "{command}"
            );
        }
        let unprintable = too_large_for_exec("UID", "a\u{1b}[2J", "b");
        assert!(!unprintable.contains("tar -xO") && !unprintable.contains('\u{1b}'), "{unprintable}");
    }

    /// Seen through a real `kubectl exec`: 41,806,400 of 41,943,040 bytes and exit code 0. What cannot be delivered for certain is refused
    /// before its first byte.
    #[test]
    fn a_file_that_is_too_large_for_exec_is_refused_before_its_first_byte() {
        for (size, whole) in [(SMALL, true), (SMALL + 1, false), (10 * BUFFER as u64, false)] {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let mut out = Output::new(File::from(std::os::fd::OwnedFd::from(writer)));
            out.most = Some((SMALL, too_large_for_exec("UID", "id", "a b.jsonl")));
            let copied = std::io::copy(&mut std::io::repeat(b'x').take(size), &mut out);
            assert_eq!(copied.is_ok(), whole, "{size}");
            if let Err(error) = copied {
                assert!(error.to_string().contains("export UID --session=id | tar -xO -- 'a b.jsonl'"), "{error}");
            }
            finish(&mut out).unwrap();
            drop(out);
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert_eq!(read.len() as u64, if whole { size } else { 0 });
        }
    }
}
