//! `computer-operator archives`: list, show, verify, export and restore archives, wherever the store is accessible. It must never write to
//! the store; only `leftovers --remove` deletes, and only what no manifest names.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::delivery;
use super::leftovers::{Work, clean};
use super::store::{Store, StoreError};
use super::verify::{Verification, verify};
use super::{Archive, receipt_key, tombstone};

/// What `archives --help` says.
pub const ABOUT: &str = "List, show, verify, export and restore archives, and print receipts.

Through `kubectl exec` the end of an output can be lost although the exit code is 0. So each command ends with a line on standard error that has the bytes of its \
output and their SHA-256: `output: BYTES bytes, sha256 DIGEST` for `ls`, `show`, `verify`, `leftovers` and `receipt`. A JSON object (`show --json`, `receipt`) is not \
valid without its end. Compare before you rely on an output, or use the HTTP API (`kubectl computer archives`), where an incomplete answer is an error.";

/// Arguments of `archives`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The archive store, as for `run --store`.
    #[arg(long, global = true, env = "ARCHIVE_STORE", default_value = "file:///var/lib/computer-operator/store")]
    store: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the archives.
    ///
    /// The last line on standard error has the bytes of the output and their SHA-256: see `archives --help`.
    Ls,
    /// Show one archive: its sessions, files that could not be archived, and its receipt.
    ///
    /// The last line on standard error has the bytes of the output and their SHA-256: see `archives --help`.
    Show {
        /// UID of the computer.
        uid: String,
        /// Print only the manifest, as one JSON object, which is not valid when its end is missing. It names the objects of the index, which
        /// lists the sessions.
        #[arg(long)]
        json: bool,
    },
    /// Read an archive completely and compare every digest. Exit code 1: it is missing or damaged.
    Verify {
        /// UID of the computer.
        uid: String,
    },
    /// List what crashes and aborted attempts left in the store: objects that no manifest of their UID names.
    ///
    /// Removes them with --remove, which needs the right to delete. Nothing is removed unless the receipt is in the store for a day, every
    /// manifest of the UID and its index can be read, and nothing was stored under the UID within the last day. ArchiveHolds are not read, so nothing is removed where an
    /// erasure has begun, and where the deletion had no archive only with --ignore-holds.
    Leftovers {
        /// UID of a computer. Default: all UIDs in the store.
        uid: Option<String>,
        /// Remove them.
        #[arg(long)]
        remove: bool,
        /// Also where the deletion had no archive. ArchiveHolds are not read: check first that none names the computer or its namespace.
        #[arg(long, requires = "remove")]
        ignore_holds: bool,
    },
    /// Print the receipt of a deletion. It exists with or without an archive.
    ///
    /// It is one JSON object, which is not valid when its end is missing.
    /// If the archive was erased, a tombstone follows as a second one: when, why and by whose decision.
    Receipt {
        /// UID of the computer.
        uid: String,
    },
    /// Print one archived file. Its size and SHA-256 go to standard error.
    ///
    /// With `kubectl exec`, the end of a large file can be lost although the exit code is 0. There, a file of more than 64 KiB is refused:
    /// use `export --session ID | tar -xO PATH`, which fails when something is missing.
    Cat {
        /// UID of the computer.
        uid: String,
        /// The file, relative to the home. If it does not exist, the files of its session are listed.
        path: PathBuf,
    },
    /// Write the sessions to standard output as one tar. It needs no disk, so it works in the operator's pod.
    ///
    /// Standard error gets the number of bytes and their SHA-256. A failed export has an exit code other than 0, and its output is not a
    /// complete tar. With `kubectl exec` the tar is followed by zeros, which tar ignores, so that a slow reader loses only zeros.
    Export {
        /// UID of the computer.
        uid: String,
        /// Only the session of this id (see `show`).
        #[arg(long)]
        session: Option<String>,
    },
    /// Write the sessions of an archive to a folder. Existing files are never overwritten.
    Restore {
        /// UID of the computer.
        uid: String,
        /// The folder.
        #[arg(long)]
        to: PathBuf,
        /// Only the session of this id (see `show`).
        #[arg(long)]
        session: Option<String>,
    },
}

/// Runs `archives`. Failures are printed to standard error, without a backtrace.
///
/// # Errors
/// No output: the exit code is the result.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    Ok(execute(args).await.unwrap_or_else(|error| {
        // Standard error may be closed as well.
        let _ = writeln!(std::io::stderr(), "Error: {}", plain_lines(&format!("{error:#}")));
        ExitCode::FAILURE
    }))
}

async fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let store = Store::open_existing(&args.store)?;
    let mut out = delivery::stdout()?;
    let code = match args.command {
        Command::Ls => ls(&store, &mut out).await?,
        Command::Show { uid, json } => show(&store, &uid, json, &mut out).await?,
        Command::Verify { uid } => check(&store, &uid, &mut out).await?,
        Command::Leftovers { uid, remove, ignore_holds } => {
            let work = match (remove, ignore_holds) {
                (false, _) => Work::List,
                (true, false) => Work::Remove,
                (true, true) => Work::RemoveIgnoringHolds,
            };
            leftovers(&store, uid, work, &mut out).await?
        }
        Command::Receipt { uid } => receipt(&store, &uid, &mut out).await?,
        Command::Export { uid, session } => return delivery::export(store, uid, session, out).await,
        Command::Cat { uid, path } => return delivery::cat(store, uid, path, out).await,
        Command::Restore { uid, to, session } => return delivery::restore(store, uid, to, session).await,
    };
    delivery::finish_text(out, &mut std::io::stderr())?;
    Ok(code)
}

/// The newest archive of a UID, and the bytes of its manifest.
pub(super) async fn open(store: &Store, uid: &str) -> anyhow::Result<(Archive, Vec<u8>)> {
    let bytes = match store.get(&store.newest_manifest(uid).await?).await {
        Err(StoreError::NotFound(_)) => {
            if let Some(why) = tombstone::explained(store, uid).await? {
                anyhow::bail!("{why}. `archives receipt {uid}` prints the receipt and the tombstone");
            }
            anyhow::bail!(
                "there is no archive of {uid}. List all archives with `archives ls`. If the computer was deleted without one, `archives receipt {uid}` says why"
            )
        }
        read => read?,
    };
    Ok((Archive::parse(&bytes)?, bytes))
}

/// The manifest of a UID. `None`: it does not exist, or it cannot be parsed.
async fn archive(store: &Store, uid: &str) -> Result<Option<Archive>, StoreError> {
    match store.get(&store.newest_manifest(uid).await?).await {
        Ok(bytes) => Ok(Archive::parse(&bytes).ok()),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn ls(store: &Store, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    writeln!(out, "{:<36}  {:<40}  {:<20}  {:>8}  {:>12}  {:>8}", "UID", "COMPUTER", "ARCHIVED", "SESSIONS", "BYTES", "LEFT OUT")?;
    for uid in store.uids().await? {
        match archive(store, &uid).await? {
            Some(archive) => {
                let computer = plain(&format!("{}/{}", archive.computer().namespace, archive.computer().name));
                let (at, bytes, lost) = (when(archive.created_at()), archive.stored_bytes(), archive.lost());
                writeln!(out, "{uid:<36}  {computer:<40}  {at:<20}  {:>8}  {bytes:>12}  {lost:>8}", archive.sessions())?;
            }
            None => match tombstone::explained(store, &uid).await? {
                Some(why) => writeln!(out, "{uid:<36}  ({})", plain(&why))?,
                None => writeln!(out, "{uid:<36}  (incomplete: no readable manifest)")?,
            },
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(store: &Store, uid: &str, json: bool, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let (archive, bytes) = open(store, uid).await?;
    if json {
        writeln!(out, "{}", String::from_utf8_lossy(&bytes))?;
        return Ok(ExitCode::SUCCESS);
    }
    let computer = plain(&format!("{}/{}", archive.computer().namespace, archive.computer().name));
    writeln!(out, "Computer {computer} ({uid}), archived {}", when(archive.created_at()))?;
    writeln!(out, "{:<64}  {:>6}  {:>12}  SHA-256", "SESSION", "FILES", "BYTES")?;
    let mut entries = archive.entries(store);
    while let Some(entry) = entries.next().await? {
        // Others are folders and links outside of sessions.
        if entry.files > 0 {
            writeln!(out, "{:<64}  {:>6}  {:>12}  {}", plain(&entry.id), entry.files, entry.bytes, entry.digest)?;
        }
    }
    let (mut problems, mut listed) = (archive.problems(store), 0);
    while let Some(p) = problems.next().await? {
        writeln!(out, "not archived completely: {} ({}: {})", plain(&p.path), p.kind.as_str(), plain(&p.detail))?;
        listed += 1;
    }
    let unlisted = archive.problem_count().saturating_sub(listed);
    if unlisted > 0 {
        writeln!(out, "not archived completely: {unlisted} more, which the manifest only counts")?;
    }
    writeln!(out, "Receipt:")?;
    receipt(store, uid, out).await.map(|_| ExitCode::SUCCESS)
}

pub(super) async fn receipt(store: &Store, uid: &str, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match store.get(&receipt_key(uid)).await {
        Ok(receipt) => {
            writeln!(out, "{}", String::from_utf8_lossy(&receipt))?;
            for tombstone in tombstone::all(store, uid).await? {
                writeln!(out, "{}", serde_json::to_string_pretty(&tombstone)?)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(StoreError::NotFound(_)) => {
            writeln!(
                out,
                "the store has no receipt of {uid}: the deletion is not complete, or an override skipped the receipt. See `kubectl get computerrecord {uid} -o yaml`"
            )?;
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

async fn leftovers(store: &Store, uid: Option<String>, work: Work, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let uids = if let Some(uid) = uid { vec![uid] } else { store.uids().await? };
    let mut code = ExitCode::SUCCESS;
    writeln!(out, "{:<36}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}", "UID", "MANIFESTS", "NAMED", "UNNAMED", "REMOVED", "UNKNOWN")?;
    for uid in uids {
        match clean(store, &uid, work, jiff::Timestamp::now().as_second()).await {
            Ok(found) => {
                let (manifests, named, unnamed) = (found.manifests, found.named, found.unnamed);
                writeln!(out, "{uid:<36}  {manifests:>9}  {named:>9}  {unnamed:>9}  {:>9}  {:>9}", found.removed, found.unknown)?;
            }
            // The next one may be right.
            Err(error) => {
                writeln!(out, "{:<36}  {}", plain(&uid), plain_lines(&error.to_string()))?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn check(store: &Store, uid: &str, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match verify(store, uid).await {
        Verification::Valid(s) => {
            writeln!(out, "verified: {} sessions, {} bytes, manifest sha256:{}", s.sessions, s.bytes, s.manifest_digest)?;
            if s.problems > 0 {
                writeln!(out, "but {} files were left out of the archive: `archives show {uid}` names them", s.problems)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Verification::Missing => {
            let why = tombstone::explained(store, uid).await?;
            writeln!(out, "{}", why.map_or_else(|| format!("there is no archive of {uid}"), |why| plain(&why)))?;
            Ok(ExitCode::FAILURE)
        }
        Verification::Invalid(why) => {
            writeln!(out, "damaged: {}", plain_lines(&why))?;
            Ok(ExitCode::FAILURE)
        }
        Verification::Unavailable(why) => anyhow::bail!("the archive store is unavailable: {why}"),
        Verification::Running => anyhow::bail!("unexpected result: the check is still running"),
    }
}

/// A name that a tenant chose, safe for a terminal: characters that could move the cursor or change the text direction are escaped.
pub(super) fn plain(text: &str) -> String {
    let odd = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if odd(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// A message of several lines that may contain names of a tenant.
fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

fn when(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
