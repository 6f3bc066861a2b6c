//! The archive pod's program: packs the home, which is mounted read-only, and sends it to the operator's ingest endpoint, chunk by chunk while
//! it is packed. It must never have store credentials, and its exit code proves nothing: the operator reads the archive back.
//!
//! Exit codes: 0 stored, 1 retry, 3 unreadable files while the class says `Block` and no override gives them up, 4 the archive would have
//! more bytes than it may have.
//!
//! `computer/deletion/archive_pod.rs` builds the pod.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;

use super::chunks::{Blob, Sizes};
use super::cli::plain;
use super::home_size::{Amount, SoFar, Tally};
use super::manifest::{Manifest, ManifestComputer};
use super::pack::{self, Request};
use super::problems::Problems;
use super::sender::Sender;
use super::transport::still;
use super::unreadable::{self, Unreadable};
use super::walk;
use crate::resources::conditions;
use crate::runtime::ingest_url;

/// Chunks that are sent in parallel. Each takes up to 8 MiB.
const AT_ONCE: usize = 3;
/// Chunks after which the log says how many were stored.
const REPORTED: usize = 64;

/// Longest time in which nothing of the home is read: a server of the volume that is gone would hold the pod, and its deletion, forever.
const STALLED: Duration = Duration::from_secs(600);

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
    max_bytes: u64,
    home: PathBuf,
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
            walk::check_path(path).map_err(anyhow::Error::msg)?;
        }
        Ok(Self {
            url: ingest_url::resolved(&var("INGEST_URL")?).map_err(anyhow::Error::msg)?,
            ca: var("INGEST_CA")?,
            computer: ManifestComputer {
                namespace: var("COMPUTER_NAMESPACE")?,
                namespace_uid: std::env::var("COMPUTER_NAMESPACE_UID").ok().filter(|uid| !uid.is_empty()),
                name: var("COMPUTER_NAME")?,
                uid: var("COMPUTER_UID")?,
            },
            session_paths,
            unreadable: var("UNREADABLE")?.parse().map_err(anyhow::Error::msg).context("UNREADABLE")?,
            left_out_by: std::env::var("LEFT_OUT_BY").unwrap_or_default(),
            custody_claim: std::env::var("CUSTODY_CLAIM").unwrap_or_default(),
            max_bytes: std::env::var(MAX_BYTES).map_or(Ok(u64::MAX), |most| most.parse().context(MAX_BYTES))?,
            home: or("HOME_VOLUME", "/home-volume"),
            token: or("INGEST_TOKEN_FILE", TOKEN),
        })
    }
}

/// Exit code when a file cannot be read and the class says `unreadableFiles: Block`.
pub const EXIT_UNREADABLE: i32 = 3;
/// Exit code when the archive would have more bytes than it may have.
pub const EXIT_TOO_LARGE: i32 = 4;
/// Variable with the most bytes that the archive may have.
pub const MAX_BYTES: &str = "MAX_BYTES";

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
            end(&unreadable, EXIT_UNREADABLE)
        }
        Err(error) => {
            eprintln!("{error:#}");
            end(&format!("{error:#}"), if error.is::<TooLarge>() { EXIT_TOO_LARGE } else { 1 })
        }
    }
}

/// Writes the termination message, where `kubectl describe` and the operator find it, and ends the process. The thread that packs is not waited
/// for: it may be in a read that never returns.
fn end(message: &str, code: i32) -> ! {
    let text = conditions::truncate(message, 1000);
    if let Err(error) = std::fs::write(TERMINATION_LOG, text) {
        eprintln!("the termination log cannot be written: {error}");
    }
    std::process::exit(code)
}

/// Packs and sends everything, the manifest last. Returns why unreadable files block the archive, if they do.
async fn run(job: &Job) -> anyhow::Result<Option<String>> {
    let sender = Sender::new(&job.url, &job.ca, &job.computer.uid, &job.token)?;
    let mut manifest = Manifest::empty(job.computer.clone(), jiff::Timestamp::now().as_second());
    manifest.custody_claim.clone_from(&job.custody_claim);
    let (blobs, packed) = mpsc::channel(1);
    let (home, session_paths, unreadable) = (job.home.clone(), job.session_paths.clone(), job.unreadable);
    let watch = Arc::new(Reading::default());
    let (reading, tally) = (Arc::clone(&watch), Arc::clone(&watch.tally));
    tally.count_in_background(&job.home, &job.session_paths);
    let packing = tokio::task::spawn_blocking(move || {
        let (progress, tally) = (Arc::clone(&reading.progress), Arc::clone(&reading.tally));
        let request = Request { home: &home, session_paths: &session_paths, unreadable, sizes: Sizes::default(), progress, tally };
        pack_watched(&reading, &request, &mut manifest, &blobs).map(|problems| (manifest, problems))
    });
    let stored = async {
        // Why a chunk was not stored says more than that packing ended for it.
        send(&sender, packed, &tally, job.max_bytes).await?;
        packing.await?.map_err(|error| of_home(&error))
    };
    let (mut manifest, problems) = tokio::select! {
        stored = stored => stored?,
        () = watch.stalled(STALLED) => anyhow::bail!(
            "the volume of the home has not answered for {} s: check the volume, its storage and its node", STALLED.as_secs()
        ),
    };
    if job.unreadable == Unreadable::Block && problems.unreadable > 0 {
        return Ok(Some(cannot_be_read(&problems)));
    }
    if problems.lost > 0 {
        manifest.left_out_by.clone_from(&job.left_out_by);
    }
    sender.manifest(serde_json::to_vec(&manifest)?).await?;
    println!("manifest stored: {} sessions, {} files, {} problems", manifest.sessions, manifest.files, manifest.problems.count);
    Ok(None)
}

/// Watches the thread that reads the home.
#[derive(Default)]
struct Reading {
    progress: Arc<AtomicU64>,
    tally: Arc<Tally>,
    /// It waits until a chunk is taken: that has its own limits.
    paused: AtomicBool,
}

impl Reading {
    /// Does something that is no work of the volume.
    fn paused<T>(&self, work: impl FnOnce() -> T) -> T {
        self.paused.store(true, Ordering::SeqCst);
        let done = work();
        self.progress.fetch_add(1, Ordering::SeqCst);
        self.paused.store(false, Ordering::SeqCst);
        done
    }

    /// Everything is read. Chunks may be on their way for as long as it takes.
    fn ended(&self) {
        self.tally.end();
        self.paused.store(true, Ordering::SeqCst);
    }

    /// Ends when nothing was read for this long.
    async fn stalled(&self, silence: Duration) {
        loop {
            let before = self.progress.load(Ordering::SeqCst);
            still(&self.progress, silence).await;
            let paused = self.paused.load(Ordering::SeqCst);
            // Read last: a pause that has ended meanwhile was progress.
            if !paused && self.progress.load(Ordering::SeqCst) == before {
                return;
            }
        }
    }
}

/// Packs a home, and says when the volume is not needed: while a chunk waits to be taken, and at the end.
fn pack_watched(
    reading: &Reading,
    request: &Request<'_>,
    manifest: &mut Manifest,
    blobs: &mpsc::Sender<(Blob, Amount)>,
) -> std::io::Result<Problems> {
    let mut take = |blob| {
        reading.paused(|| blobs.blocking_send((blob, reading.tally.packed()))).map_err(|_| std::io::Error::other("a chunk was not stored"))
    };
    let packed = pack::pack(request, manifest, &mut take);
    reading.ended();
    packed
}

/// The archive would have more bytes than it may have.
#[derive(Debug, thiserror::Error)]
#[error("the archive would have more than {0} bytes, which its class allows; what was stored so far stays, and the home is not changed")]
struct TooLarge(u64);

/// Sends chunks as they are packed, each with what is archived when it is stored. Nothing is sent beyond `most` bytes.
async fn send(sender: &Sender, packed: mpsc::Receiver<(Blob, Amount)>, tally: &Tally, most: u64) -> anyhow::Result<()> {
    let blobs = futures::stream::unfold((packed, 0_u64), |(mut packed, before)| async move {
        let (blob, done) = packed.recv().await?;
        let all = before.saturating_add(blob.chunk.size);
        Some(((blob, done, all), (packed, all)))
    });
    let sent = blobs.map(|(blob, done, all)| async move {
        if all > most {
            anyhow::bail!(TooLarge(most));
        }
        let so_far = || SoFar { done, total: tally.total() };
        sender.chunk(&blob, so_far).await.map(|()| blob.chunk.size)
    });
    let sent = sent.buffer_unordered(AT_ONCE);
    let (chunks, bytes) = sent
        .try_fold((0_usize, 0_u64), |(chunks, bytes), size| async move {
            let (chunks, bytes) = (chunks + 1, bytes + size);
            if chunks % REPORTED == 0 {
                println!("{chunks} chunks stored, {bytes} bytes");
            }
            Ok((chunks, bytes))
        })
        .await?;
    println!("all data is sent: {chunks} chunks, {bytes} bytes");
    Ok(())
}

/// Names the first unreadable files for the computer's owner and the admin, who must decide. The names are not logged.
fn cannot_be_read(problems: &Problems) -> String {
    let (first, count) = (&problems.first_unreadable, problems.unreadable);
    let named: Vec<_> = first.iter().map(|name| conditions::truncate(&plain(name), 120)).collect();
    let more = if count > named.len() as u64 { ", ..." } else { "" };
    format!("{count} {} cannot be read: {}{more}", if count == 1 { "file or folder" } else { "files or folders" }, named.join(", "))
}

/// The failure of the home, and the remedy if its disk is damaged.
fn of_home(error: &std::io::Error) -> anyhow::Error {
    let help = if unreadable::damaged(error) {
        ". The volume is damaged: a DeletionOverride that skips unreadable-files archives what can be read"
    } else {
        ""
    };
    anyhow::anyhow!("the home cannot be read: {error}{help}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the watch ends within the time of the test.
    async fn ends(reading: &Reading, within: Duration) -> bool {
        tokio::time::timeout(within, reading.stalled(STALLED)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_volume_that_does_not_answer_ends_the_pod() {
        let reading = Arc::new(Reading::default());
        assert!(!ends(&reading, STALLED / 2).await);
        assert!(ends(&reading, 2 * STALLED).await, "a read hangs");
        // Something is read now and then.
        let slow = Arc::clone(&reading);
        let reads = tokio::spawn(async move {
            loop {
                tokio::time::sleep(STALLED / 2).await;
                slow.progress.fetch_add(1, Ordering::SeqCst);
            }
        });
        assert!(!ends(&reading, 20 * STALLED).await);
        reads.abort();
        // A slow line takes the chunk.
        reading.paused.store(true, Ordering::SeqCst);
        assert!(!ends(&reading, 20 * STALLED).await);
        reading.paused.store(false, Ordering::SeqCst);
        assert!(ends(&reading, 3 * STALLED).await);
    }

    #[tokio::test]
    async fn nothing_is_sent_beyond_the_bound() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let signed = rcgen::generate_simple_self_signed(["x".to_owned()]).expect("a certificate");
        let sender = Sender::new("https://127.0.0.1:9", &signed.cert.pem(), "u", std::path::Path::new("/nowhere")).expect("a sender");
        let (blobs, packed) = mpsc::channel(1);
        let chunk = super::super::manifest::Chunk { digest: "0".repeat(64), size: 10 };
        blobs.send((Blob { chunk, bytes: vec![0; 10].into() }, Amount::default())).await.expect("room");
        drop(blobs);
        let error = send(&sender, packed, &Tally::default(), 9).await.expect_err("it was sent");
        assert!(error.is::<TooLarge>(), "{error:#}");
    }

    /// Found by a reader: healthy pods were ended while their last chunks waited for a slot.
    #[tokio::test(start_paused = true)]
    async fn the_line_may_take_as_long_as_it_needs() {
        let home = tempfile::tempdir().expect("a folder");
        std::fs::write(home.path().join("a.jsonl"), "a").expect("a file");
        let (reading, (blobs, mut packed)) = (Arc::new(Reading::default()), mpsc::channel(1));
        let room = blobs.clone().reserve_owned().await.expect("the only room in the channel");
        let (watched, path) = (Arc::clone(&reading), home.path().to_owned());
        let thread = std::thread::spawn(move || {
            let computer = ManifestComputer { namespace: "t".to_owned(), namespace_uid: None, name: "c".to_owned(), uid: "u".to_owned() };
            let (progress, tally) = (Arc::clone(&watched.progress), Arc::clone(&watched.tally));
            let request =
                Request { home: &path, session_paths: &[], unreadable: Unreadable::Block, sizes: Sizes::default(), progress, tally };
            pack_watched(&watched, &request, &mut Manifest::empty(computer, 0), &blobs).map(|_| ())
        });
        while !reading.paused.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        assert!(!ends(&reading, 20 * STALLED).await, "an object waits to be taken");
        drop(room);
        while packed.recv().await.is_some() {}
        thread.join().expect("the thread").expect("packed");
        assert!(!ends(&reading, 20 * STALLED).await, "the last objects are on their way");
    }
}
