//! `computer-operator archives`: list, show, verify and restore, from wherever the store can be reached. Reads only.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::store::{Store, StoreError};
use super::verify::{Verification, verify};
use super::{Manifest, manifest_key, object_key, receipt_key, restore};

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
    /// Print one archived file.
    Cat {
        /// UID of the computer.
        uid: String,
        /// The file, relative to the home.
        path: PathBuf,
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
        Command::Cat { uid, path } => cat(&store, &uid, path).await,
        Command::Restore { uid, to, session } => bring_back(&store, &uid, to, session).await,
    }
}

async fn manifest(store: &Store, uid: &str) -> anyhow::Result<(Manifest, Vec<u8>)> {
    let bytes = store.get(&manifest_key(uid)).await.with_context(|| format!("no archive of {uid}; `archives ls` lists what there is"))?;
    Ok((Manifest::parse(&bytes)?, bytes))
}

async fn ls(store: &Store) -> anyhow::Result<ExitCode> {
    println!("{:<36}  {:<40}  {:<20}  {:>8}  {:>12}", "UID", "COMPUTER", "ARCHIVED", "SESSIONS", "BYTES");
    for uid in store.uids().await? {
        match manifest(store, &uid).await {
            Ok((m, _)) => {
                let computer = format!("{}/{}", m.computer.namespace, m.computer.name);
                println!("{uid:<36}  {computer:<40}  {:<20}  {:>8}  {:>12}", when(m.created_at), m.sessions.len(), m.stored_bytes());
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
        println!("{:<64}  {:>6}  {:>12}  {}", s.id, s.files, s.bytes, s.digest);
    }
    for p in &manifest.problems {
        println!("not archived as it stood: {} ({:?}: {})", p.path, p.kind, p.detail);
    }
    match store.get(&receipt_key(uid)).await {
        Ok(receipt) => println!("Receipt:\n{}", String::from_utf8_lossy(&receipt)),
        Err(StoreError::NotFound(_)) => println!("No receipt yet: the deletion is under way."),
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(store: &Store, uid: &str) -> anyhow::Result<ExitCode> {
    match verify(store, uid).await {
        Verification::Valid(s) => {
            println!("whole: {} sessions, {} bytes, manifest sha256:{}", s.sessions, s.bytes, s.manifest_digest);
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
    let reader = SyncIoBridge::new(StreamReader::new(store.stream(&object_key(uid, &entry.digest)).await?));
    tokio::task::spawn_blocking(move || restore::print(reader, &path, &mut std::io::stdout())).await??;
    Ok(ExitCode::SUCCESS)
}

async fn bring_back(store: &Store, uid: &str, to: PathBuf, session: Option<String>) -> anyhow::Result<ExitCode> {
    let (manifest, _) = manifest(store, uid).await?;
    let wanted: Vec<_> = manifest.sessions.iter().filter(|s| session.as_ref().is_none_or(|id| *id == s.id)).collect();
    if wanted.is_empty() {
        anyhow::bail!("no such session; `archives show {uid}` lists them");
    }
    for entry in wanted {
        let reader = SyncIoBridge::new(StreamReader::new(store.stream(&object_key(uid, &entry.digest)).await?));
        let folder = to.clone();
        let written = tokio::task::spawn_blocking(move || restore::unpack(reader, &folder)).await??;
        println!("{}: {} files", entry.id, written.len());
    }
    Ok(ExitCode::SUCCESS)
}

fn when(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}
