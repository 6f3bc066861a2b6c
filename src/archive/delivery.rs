//! Delivers the content of an archive: as one tar, as one file, or to a folder. A delivery is complete, or it is an error (S12).
//!
//! A truncated tar must never look complete, so the end of the tar is written only after all of its content. With `kubectl exec` a program
//! cannot know what has arrived: when it exits, the connection is closed, and the API server drops data that a slow reader has not received
//! yet, with exit code 0. So an export is followed by more zeros than can be in flight. A tar ends before such zeros, and only zeros are
//! lost. Nothing can follow a single file, so `cat` refuses large files with `kubectl exec`. Nothing can follow a table either, and it may have
//! any size: its end is on standard error, with its bytes and their SHA-256, so that a reader notices what is missing.

use std::fs::File;
use std::io::{IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use super::cli::{open, plain};
use super::reading::read;
use super::restore::{Print, RestoreError, Taken, Unpack};
use super::tar_header::END;
use super::tar_scan::{Sink, TarEntry};
use super::{Archive, Entry, Store};

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
    pub(super) fn new(file: File) -> Self {
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

/// As [`finish`], and then writes what a reader compares the output with: its bytes and their SHA-256. Not after an error, so an output
/// without this line is not complete.
///
/// # Errors
/// As [`finish`].
pub fn finish_text(mut out: Output, notes: &mut impl Write) -> anyhow::Result<()> {
    finish(&mut out)?;
    let (bytes, digest) = out.digest();
    // Standard error may be closed: then there is nobody who compares.
    let _ = writeln!(notes, "output: {bytes} bytes, sha256 {digest}");
    Ok(())
}

/// The requested session. `None`: all of them.
pub(super) async fn wanted(store: &Store, archive: &Archive, session: Option<String>) -> anyhow::Result<Option<Entry>> {
    let Some(id) = session else { return Ok(None) };
    let (mut entries, mut found, mut count) = (archive.entries(store), None, 0);
    while let Some(entry) = entries.next().await? {
        // Others are folders and links outside of sessions.
        if entry.id == id && entry.files > 0 {
            count += 1;
            found = Some(entry);
        }
    }
    let uid = &archive.computer().uid;
    match count {
        0 => anyhow::bail!("no such session; list the sessions with `archives show {uid}`"),
        1 => Ok(found),
        _ => anyhow::bail!("{count} sessions have the id {}, as it is shown: use the command without --session", plain(&id)),
    }
}

/// A tar on an output. Its end is written only after all of its content.
struct Tar<W> {
    out: W,
    taken: Taken,
}

impl<W: Write + Send + 'static> Sink for Tar<W> {
    fn tar(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.out.write_all(bytes).map_err(|source| RestoreError::Io { path: "the tar".into(), source })
    }

    fn end(&mut self, entry: &TarEntry) -> Result<(), RestoreError> {
        self.taken.count(entry);
        Ok(())
    }
}

/// Writes the sessions as one tar. Messages go to standard error, because standard output is the tar.
pub(super) async fn export(store: Store, uid: String, session: Option<String>, out: Output) -> anyhow::Result<ExitCode> {
    if out.file.is_terminal() {
        anyhow::bail!("export writes a tar to standard output: redirect it to a file (> {uid}.tar) or a pipe (| tar t)");
    }
    let (archive, _) = open(&store, &uid).await?;
    let one = wanted(&store, &archive, session).await?;
    let sessions = if one.is_some() { 1 } else { archive.sessions() };
    let (mut out, taken) = whole_tar(&store, &archive, one, out).await?;
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

async fn whole_tar<W: Write + Send + 'static>(store: &Store, archive: &Archive, one: Option<Entry>, out: W) -> anyhow::Result<(W, Taken)> {
    let Tar { mut out, taken } = read(store, archive, one, Tar { out, taken: Taken::default() }).await?;
    out.write_all(&END).context("the tar could not be written: the reader closed it, or the disk is full")?;
    Ok((out, taken))
}

/// Prints one file.
pub(super) async fn cat(store: Store, uid: String, path: PathBuf, mut out: Output) -> anyhow::Result<ExitCode> {
    let (archive, _) = open(&store, &uid).await?;
    let entry = archive.session_of_path(&store, &path.to_string_lossy()).await?;
    let entry = entry.with_context(|| format!("no session contains {}", path.display()))?;
    let shown = plain(&path.display().to_string());
    if out.through_exec() {
        out.most = Some((SMALL, too_large_for_exec(&uid, &entry.id, &path.to_string_lossy())));
    }
    let mut print = read(&store, &archive, Some(entry.clone()), Print::new(&path, out)).await?;
    if let Some(first) = print.same_as.take().filter(|_| !print.printed) {
        let mut out = print.into_out();
        // It may be in another session.
        let entry = archive.session_of_path(&store, &first.to_string_lossy()).await?.unwrap_or(entry);
        // tar prints nothing for another name of a file.
        out.most = out.most.map(|(most, _)| (most, too_large_for_exec(&uid, &entry.id, &first.to_string_lossy())));
        print = read(&store, &archive, Some(entry), Print::new(&first, out)).await?;
    }
    let mut out = print.finish()?;
    finish(&mut out)?;
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
        "the file is larger than {} KiB. The end of a large file can be lost through `kubectl exec`, and its exit code is 0 nevertheless. \
         Use {command}, which fails when something is missing",
        SMALL / 1024
    )
}

/// Writes the sessions to a folder.
pub(super) async fn restore(store: Store, uid: String, to: PathBuf, session: Option<String>) -> anyhow::Result<ExitCode> {
    let (archive, _) = open(&store, &uid).await?;
    let one = wanted(&store, &archive, session).await?;
    let sessions = if one.is_some() { 1 } else { archive.sessions() };
    let all = unpack(&store, &archive, one, &to).await?;
    eprintln!("restored {sessions} sessions, {} files of {} bytes; every SHA-256 is that of the archive", all.files, all.bytes);
    Ok(ExitCode::SUCCESS)
}

async fn unpack(store: &Store, archive: &Archive, one: Option<Entry>, to: &Path) -> anyhow::Result<Taken> {
    let all = read(store, archive, one, Unpack::new(to)).await?.taken;
    // A disk may report its failure only now.
    if let Ok(folder) = File::open(to) {
        rustix::fs::syncfs(&folder).with_context(|| format!("{} cannot be synced to disk", to.display()))?;
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// An export that failed between two sessions was once a valid tar of the first.
    #[tokio::test]
    async fn a_tar_that_fails_has_no_end() {
        let archived = crate::archive::test_archives::archived(&[("s/one.jsonl", b"one"), ("s/two.jsonl", b"two")]).await;
        let shared = crate::archive::test_archives::Shared::default();
        whole_tar(&archived.store, &archived.archive, None, shared.clone()).await.unwrap();
        let whole = shared.take();
        assert!(whole.ends_with(&END) && tar::Archive::new(whole.as_slice()).entries().unwrap().count() == 3);
        archived.damage_session("s/two").await;
        whole_tar(&archived.store, &archived.archive, None, shared.clone()).await.err().unwrap();
        let failed = shared.take();
        assert!(whole.starts_with(&failed) && !failed.ends_with(&END), "{} of {} bytes", failed.len(), whole.len());
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
