//! The archive pod's program: packs the home, which is mounted read-only, and streams it to the operator's ingest endpoint. It must never
//! have store credentials, and its exit code proves nothing: the operator reads the archive back.
//!
//! Exit codes: 0 stored, 1 retry, 3 unreadable files while the class says `Block` and no override gives them up.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::cli::plain;
use super::manifest::{Manifest, ManifestComputer, VERSION};
use super::pack::{self, Packed};
use super::problems::Problems;
use super::sender::Sender;
use super::unreadable::{self, Unreadable};
use crate::resources::conditions;
use crate::runtime::ingest_url;

const TOKEN: &str = "/var/run/secrets/ingest/token";
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The pod's settings, from the operator.
struct Job {
    url: String,
    ca: String,
    computer: ManifestComputer,
    session_paths: Vec<String>,
    unreadable: Unreadable,
    left_out_by: String,
    custody_claim: String,
    home: PathBuf,
    spool: PathBuf,
    token: PathBuf,
}

impl Job {
    fn from_env() -> anyhow::Result<Self> {
        let var = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set: this command runs in the operator's archive pods"))
        };
        let or = |name: &str, default: &str| PathBuf::from(std::env::var(name).unwrap_or_else(|_| default.to_owned()));
        let session_paths: Vec<String> = serde_json::from_str(&var("SESSION_PATHS")?).context("SESSION_PATHS")?;
        for path in &session_paths {
            pack::check_path(path).map_err(anyhow::Error::msg)?;
        }
        Ok(Self {
            url: ingest_url::resolved(&var("INGEST_URL")?).map_err(anyhow::Error::msg)?,
            ca: var("INGEST_CA")?,
            computer: ManifestComputer { namespace: var("COMPUTER_NAMESPACE")?, name: var("COMPUTER_NAME")?, uid: var("COMPUTER_UID")? },
            session_paths,
            unreadable: var("UNREADABLE")?.parse().map_err(anyhow::Error::msg).context("UNREADABLE")?,
            left_out_by: std::env::var("LEFT_OUT_BY").unwrap_or_default(),
            custody_claim: std::env::var("CUSTODY_CLAIM").unwrap_or_default(),
            home: or("HOME_VOLUME", "/home-volume"),
            spool: or("SPOOL", "/spool"),
            token: or("INGEST_TOKEN_FILE", TOKEN),
        })
    }
}

/// Runs the pod's program.
pub async fn main() -> ExitCode {
    let result = match Job::from_env() {
        Ok(job) => run(&job).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(unreadable)) => {
            eprintln!("files in the home cannot be read; the termination message names them");
            end(&unreadable, 3)
        }
        Err(error) => {
            eprintln!("{error:#}");
            end(&format!("{error:#}"), 1)
        }
    }
}

/// Writes the termination message, where `kubectl describe` and the operator find it.
fn end(message: &str, code: u8) -> ExitCode {
    let text = conditions::truncate(message, 1000);
    if let Err(error) = std::fs::write(TERMINATION_LOG, text) {
        eprintln!("the termination log cannot be written: {error}");
    }
    ExitCode::from(code)
}

/// Packs and sends everything, the manifest last. Returns why unreadable files block the archive, if they do.
async fn run(job: &Job) -> anyhow::Result<Option<String>> {
    let sender = Sender::new(&job.url, &job.ca, &job.computer.uid, &job.token)?;
    let found = pack::find(&job.home, &job.session_paths, job.unreadable).map_err(of_home("the home cannot be searched"))?;
    println!("{} sessions found", found.sessions.len());
    let (mut problems, mut entries) = (found.problems, Vec::new());
    let total = found.sessions.len();
    for (i, (id, files)) in found.sessions.into_iter().enumerate() {
        let packed = pack_one(job, id, files, &mut problems).await?;
        let Some(packed) = packed else { continue };
        sender.object(&packed.entry.digest, packed.entry.size, packed.object.path()).await?;
        // Names of sessions are content: they are in the manifest and must not be in a log.
        println!("[{}/{total}] {} files, {} bytes -> {} bytes", i + 1, packed.entry.files, packed.entry.bytes, packed.entry.size);
        entries.push(packed.entry);
    }
    if job.unreadable == Unreadable::Block && problems.unreadable > 0 {
        return Ok(Some(cannot_be_read(&problems)));
    }
    entries.sort_by(|a, b| a.id.cmp(&b.id));
    let manifest = Manifest {
        version: VERSION,
        computer: job.computer.clone(),
        created_at: jiff::Timestamp::now().as_second(),
        session_paths: job.session_paths.clone(),
        sessions: entries,
        problems: problems.listed,
        problem_count: problems.count,
        lost_count: problems.lost,
        left_out_by: if problems.lost > 0 { job.left_out_by.clone() } else { String::new() },
        custody_claim: job.custody_claim.clone(),
    };
    sender.manifest(&serde_json::to_vec_pretty(&manifest)?).await?;
    println!("manifest stored: {} sessions, {} problems", manifest.sessions.len(), manifest.problem_count);
    Ok(None)
}

/// Names the first unreadable files for the computer's owner and the admin, who must decide. The names are not logged.
fn cannot_be_read(problems: &Problems) -> String {
    let (first, count) = (problems.first_unreadable(3), problems.unreadable);
    let named: Vec<_> = first.iter().map(|name| conditions::truncate(&plain(name), 120)).collect();
    let more = if count > named.len() as u64 { ", ..." } else { "" };
    format!("{count} {} cannot be read: {}{more}", if count == 1 { "file or folder" } else { "files or folders" }, named.join(", "))
}

/// The failure of the home, and the remedy if its disk is damaged.
fn of_home(what: &'static str) -> impl FnOnce(std::io::Error) -> anyhow::Error {
    move |error| {
        let help = if unreadable::damaged(&error) {
            ". The volume is damaged: a DeletionOverride that skips unreadable-files archives what can be read"
        } else {
            ""
        };
        anyhow::anyhow!("{what}: {error}{help}")
    }
}

async fn pack_one(job: &Job, id: PathBuf, files: Vec<PathBuf>, problems: &mut Problems) -> anyhow::Result<Option<Packed>> {
    let (home, spool, unreadable) = (job.home.clone(), job.spool.clone(), job.unreadable);
    let mut own = std::mem::take(problems);
    let (packed, own) = tokio::task::spawn_blocking(move || (pack::pack(&home, &spool, &id, &files, unreadable, &mut own), own)).await?;
    *problems = own;
    packed.map_err(of_home("a session cannot be read, or the spool cannot be written"))
}
