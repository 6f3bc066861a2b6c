//! `computer-operator archives`: list, show, verify, export and restore, from wherever the store can be reached. Reads only.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::object::checked;
use super::store::{Store, StoreError};
use super::verify::{Verification, verify};
use super::{Manifest, SessionEntry, object_key, receipt_key, restore};

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
    Ls,
    /// Show one archive: its sessions, what could not be archived, its receipt.
    Show {
        /// UID of the computer.
        uid: String,
        /// Print the manifest as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read a whole archive back and compare every digest. Exit code 1: it is not whole.
    Verify {
        /// UID of the computer.
        uid: String,
    },
    /// Print the receipt of a deletion. There is one with or without an archive.
    Receipt {
        /// UID of the computer.
        uid: String,
    },
    /// Print one archived file.
    Cat {
        /// UID of the computer.
        uid: String,
        /// The file, relative to the home. When it is not there, the files of its session are named.
        path: PathBuf,
    },
    /// Write the sessions to standard output as one tar: what works in a pod that has no disk to restore to.
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

/// Runs `archives`.
///
/// # Errors
/// When the store cannot be read, or the archive is damaged.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let store = Store::open(&args.store)?;
    match args.command {
        Command::Ls => ls(&store).await,
        Command::Show { uid, json } => show(&store, &uid, json).await,
        Command::Verify { uid } => check(&store, &uid).await,
        Command::Receipt { uid } => receipt(&store, &uid).await,
        Command::Export { uid, session } => export(&store, &uid, session).await,
        Command::Cat { uid, path } => cat(&store, &uid, path).await,
        Command::Restore { uid, to, session } => bring_back(&store, &uid, to, session).await,
    }
}

async fn manifest(store: &Store, uid: &str) -> anyhow::Result<(Manifest, Vec<u8>)> {
    let bytes = match store.get(&store.newest_manifest(uid).await?).await {
        Err(StoreError::NotFound(_)) => {
            anyhow::bail!(
                "there is no archive of {uid}: `archives ls` lists all, `archives receipt {uid}` says why if it was deleted without one"
            )
        }
        read => read?,
    };
    Ok((Manifest::parse(&bytes)?, bytes))
}

async fn ls(store: &Store) -> anyhow::Result<ExitCode> {
    println!("{:<36}  {:<40}  {:<20}  {:>8}  {:>12}  {:>8}", "UID", "COMPUTER", "ARCHIVED", "SESSIONS", "BYTES", "LEFT OUT");
    for uid in store.uids().await? {
        match manifest(store, &uid).await {
            Ok((m, _)) => {
                let computer = plain(&format!("{}/{}", m.computer.namespace, m.computer.name));
                let (at, bytes, lost) = (when(m.created_at), m.stored_bytes(), m.lost());
                println!("{uid:<36}  {computer:<40}  {at:<20}  {:>8}  {bytes:>12}  {lost:>8}", m.sessions.len());
            }
            Err(_) => println!("{uid:<36}  (incomplete: no manifest)"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(store: &Store, uid: &str, json: bool) -> anyhow::Result<ExitCode> {
    let (manifest, bytes) = manifest(store, uid).await?;
    if json {
        println!("{}", String::from_utf8_lossy(&bytes));
        return Ok(ExitCode::SUCCESS);
    }
    println!("Computer {}/{} ({uid}), archived {}", manifest.computer.namespace, manifest.computer.name, when(manifest.created_at));
    println!("{:<64}  {:>6}  {:>12}  SHA-256 OF ITS OBJECT", "SESSION", "FILES", "BYTES");
    for s in &manifest.sessions {
        println!("{:<64}  {:>6}  {:>12}  {}", plain(&s.id), s.files, s.bytes, s.digest);
    }
    for p in &manifest.problems {
        println!("not archived as it stood: {} ({:?}: {})", plain(&p.path), p.kind, plain(&p.detail));
    }
    let unlisted = manifest.problem_count - manifest.problems.len() as u64;
    if unlisted > 0 {
        println!("not archived as it stood: {unlisted} more, which the manifest only counts");
    }
    println!("Receipt:");
    receipt(store, uid).await.map(|_| ExitCode::SUCCESS)
}

async fn receipt(store: &Store, uid: &str) -> anyhow::Result<ExitCode> {
    match store.get(&receipt_key(uid)).await {
        Ok(receipt) => {
            println!("{}", String::from_utf8_lossy(&receipt));
            Ok(ExitCode::SUCCESS)
        }
        Err(StoreError::NotFound(_)) => {
            println!(
                "none in the store: {uid} is not deleted (yet), or an override left it out; `kubectl get computerrecord {uid} -o yaml` tells"
            );
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

async fn check(store: &Store, uid: &str) -> anyhow::Result<ExitCode> {
    match verify(store, uid).await {
        Verification::Valid(s) => {
            println!("whole: {} sessions, {} bytes, manifest sha256:{}", s.sessions, s.bytes, s.manifest_digest);
            if s.problems > 0 {
                println!("but {} files were left out when it was made: `archives show {uid}` names them", s.problems);
            }
            Ok(ExitCode::SUCCESS)
        }
        Verification::Missing => {
            println!("there is no archive of {uid}");
            Ok(ExitCode::FAILURE)
        }
        Verification::Invalid(why) => {
            println!("damaged: {why}");
            Ok(ExitCode::FAILURE)
        }
        Verification::Unavailable(why) => anyhow::bail!("the store does not answer: {why}"),
        Verification::Running => anyhow::bail!("a check never says that it is running"),
    }
}

async fn cat(store: &Store, uid: &str, path: PathBuf) -> anyhow::Result<ExitCode> {
    let (manifest, _) = manifest(store, uid).await?;
    let entry = manifest.session_of_path(&path.to_string_lossy()).with_context(|| format!("no session holds {}", path.display()))?;
    let digest = entry.digest.clone();
    let reader = SyncIoBridge::new(StreamReader::new(store.stream(&object_key(uid, &digest)).await?));
    let print = move |object: &mut _| restore::print(object, &path, &mut std::io::stdout());
    tokio::task::spawn_blocking(move || checked(reader, &digest, print)).await??;
    Ok(ExitCode::SUCCESS)
}

/// The sessions that were asked for.
async fn wanted(store: &Store, uid: &str, session: Option<String>) -> anyhow::Result<Vec<SessionEntry>> {
    let (manifest, _) = manifest(store, uid).await?;
    let wanted: Vec<_> = manifest.sessions.into_iter().filter(|s| session.as_ref().is_none_or(|id| *id == s.id)).collect();
    if wanted.is_empty() && session.is_some() {
        anyhow::bail!("no such session; `archives show {uid}` lists them");
    }
    Ok(wanted)
}

/// What it tells goes to standard error: standard output is the tar.
async fn export(store: &Store, uid: &str, session: Option<String>) -> anyhow::Result<ExitCode> {
    if std::io::stdout().is_terminal() {
        anyhow::bail!("this writes a tar to standard output: send it to a file (> {uid}.tar) or a pipe (| tar t)");
    }
    let mut tar = tar::Builder::new(std::io::stdout());
    for entry in wanted(store, uid, session).await? {
        let reader = SyncIoBridge::new(StreamReader::new(store.stream(&object_key(uid, &entry.digest)).await?));
        let (back, files, id) = tokio::task::spawn_blocking(move || {
            let files = checked(reader, &entry.digest, |object| restore::append(object, &mut tar))?;
            anyhow::Ok((tar, files, entry.id))
        })
        .await??;
        tar = back;
        eprintln!("{}: {files} files", plain(&id));
    }
    tar.into_inner()?.flush()?;
    Ok(ExitCode::SUCCESS)
}

async fn bring_back(store: &Store, uid: &str, to: PathBuf, session: Option<String>) -> anyhow::Result<ExitCode> {
    for entry in wanted(store, uid, session).await? {
        let reader = SyncIoBridge::new(StreamReader::new(store.stream(&object_key(uid, &entry.digest)).await?));
        let folder = to.clone();
        let SessionEntry { id, digest, .. } = entry;
        let unpack = move |object: &mut _| restore::unpack(object, &folder);
        let written = tokio::task::spawn_blocking(move || checked(reader, &digest, unpack)).await??;
        println!("{}: {} files", plain(&id), written.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// A name that a tenant chose, as it may be shown on somebody's terminal: whatever could move the cursor or turn the text is escaped.
pub(super) fn plain(text: &str) -> String {
    let odd = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if odd(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn when(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tenant wiped the line that named a lost file off the admin's terminal.
    #[test]
    fn a_name_cannot_write_over_the_terminal() {
        assert_eq!(plain("a b\u{e9}/\x1b[2K\n\u{202e}"), "a b\u{e9}/\\u{1b}[2K\\n\\u{202e}");
    }
}
