//! Downloads from a server that breaks off, is silent, asks to wait, refuses, or sends something else.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::super::api::Limits;
use super::super::pace::Waits;
use super::super::test_server::{LIMITS, Next, Server, UID, client, id, sha256, soon};
use super::*;

/// A folder, the file that is downloaded, a server and its API.
struct Bench {
    folder: TempDir,
    server: Arc<Server>,
    api: HttpApi,
    target: Target,
}

impl Bench {
    async fn new(next: &[Next]) -> Self {
        Self::with(LIMITS, next).await
    }

    async fn with(limits: Limits, next: &[Next]) -> Self {
        let (server, url) = Server::start(next).await;
        Self { folder: tempfile::tempdir().unwrap(), server, api: client(&url, limits), target: Target::archive(&id()) }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("box.tar.zst")
    }

    async fn save(&self) -> Result<String> {
        soon(async { Download::begin(&self.api, &self.target).await?.save(&self.file()).await }).await
    }

    async fn fetch(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        soon(async { Download::begin(&self.api, &self.target).await?.fetch(&mut out).await }).await?;
        Ok(out)
    }

    /// What is in the folder.
    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// The content of the only file, which is a part.
    fn part(&self) -> Vec<u8> {
        let [part] = &self.files()[..] else { panic!("{:?}", self.files()) };
        assert_eq!(part.extension().unwrap(), "part");
        std::fs::read(part).unwrap()
    }

    /// The only file is the whole download.
    fn is_whole(&self) -> bool {
        self.files() == [self.file()] && std::fs::read(self.file()).unwrap() == self.server.content
    }

    /// Time between two requests.
    fn between(&self, first: usize) -> Duration {
        let seen = self.server.seen();
        seen[first + 1].at - seen[first].at
    }
}

fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = LIMITS;
    change(&mut limits);
    limits
}

#[tokio::test]
async fn one_get_is_all_that_a_download_asks_for() {
    let bench = Bench::new(&[]).await;
    let download = Download::begin(&bench.api, &bench.target).await.unwrap();
    let (length, stored) = (bench.server.content.len() as u64, Some(sha256(&bench.server.content)));
    assert_eq!((download.expected().length, &download.expected().stored), (length, &stored));
    assert_eq!(download.expected().name.as_deref(), Some(format!("box-{UID}.tar.zst").as_str()));
    let verified = download.save(&bench.file()).await.unwrap();
    assert_eq!(verified, format!("sha256:{}", stored.unwrap()));
    assert!(bench.is_whole());
    let seen = bench.server.seen();
    assert_eq!(seen.iter().map(|seen| (seen.method.as_str(), seen.range.as_str())).collect::<Vec<_>>(), [("GET", "")]);
}

#[tokio::test]
async fn a_download_is_resumed_and_waits_for_an_api_that_is_busy() {
    let bench = Bench::new(&[Next::Break(1000), Next::Refuse(429, "0"), Next::Break(500), Next::Refuse(503, "0")]).await;
    bench.save().await.unwrap();
    assert!(bench.is_whole(), "the part is left");
    assert_eq!(bench.server.ranges(), ["", "bytes=1000-", "bytes=1000-", "bytes=1500-", "bytes=1500-"], "a byte was asked for twice");
}

#[tokio::test]
async fn the_first_request_is_repeated_as_the_later_ones_are() {
    let bench = Bench::new(&[Next::Refuse(503, "0"), Next::Drop, Next::Refuse(429, "0"), Next::Refuse(500, "0")]).await;
    bench.save().await.unwrap();
    assert!(bench.is_whole());
    assert_eq!(bench.server.ranges(), [""; 5]);
}

#[tokio::test]
async fn the_api_is_not_asked_earlier_than_it_allows() {
    let bench = Bench::new(&[Next::Refuse(503, "1"), Next::Break(1000), Next::Refuse(429, "1")]).await;
    bench.save().await.unwrap();
    for request in [0, 2] {
        assert!(bench.between(request) >= Duration::from_secs(1), "{:?}", bench.between(request));
    }
    let own = Duration::from_millis(300);
    let slow = limits(|limits| (limits.waits.first, limits.waits.longest) = (own, own));
    let bench = Bench::with(slow, &[Next::Refuse(503, "0")]).await;
    bench.save().await.unwrap();
    assert!(bench.between(0) >= own, "{:?}", bench.between(0));
    let bench = Bench::new(&[Next::Refuse(503, "3600")]).await;
    let error = bench.save().await.unwrap_err().to_string();
    assert!(error.contains("retry after 3600 s") && bench.server.seen().len() == 1, "{error}");
}

#[tokio::test]
async fn a_download_without_progress_ends_and_one_with_progress_does_not() {
    let impatient = limits(|limits| limits.waits.patience = 4);
    let bench = Bench::with(impatient, &[Next::Break(10); 20]).await;
    bench.save().await.unwrap();
    assert!(bench.is_whole());
    let bench = Bench::with(impatient, &[&[Next::Break(1000)][..], &[Next::Drop; 20]].concat()).await;
    let error = bench.save().await.unwrap_err().to_string();
    assert_eq!(bench.server.seen().len(), 4, "{error}");
    assert!(error.contains("after 1000 of 80000 bytes (4 requests in a row failed)"), "{error}");
    let bench = Bench::with(impatient, &[Next::Drop; 20]).await;
    let error = bench.save().await.unwrap_err().to_string();
    assert!(bench.server.seen().len() == 4 && error.contains("has not begun"), "{error}");
}

/// It takes longer than the API may be silent.
#[tokio::test]
async fn a_slow_download_is_never_cut_off() {
    let patient = limits(|limits| limits.read = Duration::from_secs(3));
    let bench = Bench::with(patient, &[Next::Slow(Duration::from_millis(400))]).await;
    bench.save().await.unwrap();
    assert!(bench.is_whole());
    assert_eq!(bench.server.seen().len(), 1);
}

#[tokio::test]
async fn a_download_that_is_silent_is_cut_off_and_resumed() {
    let quick = limits(|limits| limits.read = Duration::from_millis(200));
    // A busy machine is silent more often.
    let patient = Limits { waits: Waits { patience: 1000, ..quick.waits }, ..quick };
    let bench = Bench::with(patient, &[Next::Silent, Next::Stall(1000), Next::Silent, Next::Stall(0)]).await;
    bench.save().await.unwrap();
    assert!(bench.is_whole());
    let ranges = bench.server.ranges();
    assert!(ranges.len() >= 5 && ranges.iter().any(|range| !range.is_empty()), "{ranges:?}");
    let bench = Bench::with(quick, &[&[Next::Stall(1000)][..], &[Next::Stall(0); 20]].concat()).await;
    let error = bench.save().await.unwrap_err().to_string();
    assert!(error.contains("has sent nothing for 200ms") && bench.server.seen().len() < 10, "{error}");
    assert!(bench.server.content.starts_with(&bench.part()));
}

/// An answer without a length ends properly wherever a proxy ends it.
#[tokio::test]
async fn an_end_before_everything_is_an_error_and_resumed() {
    let impatient = limits(|limits| limits.waits.patience = 2);
    let bench = Bench::with(impatient, &[Next::Break(1000), Next::End(500), Next::End(0)]).await;
    let error = bench.save().await.unwrap_err().to_string();
    assert!(error.contains("the answer ended after 1500 of 80000 bytes") && error.contains("repeat the command to resume"), "{error}");
    assert_eq!(bench.part(), bench.server.content[..1500]);
    bench.save().await.unwrap();
    assert!(bench.is_whole());
    assert_eq!(bench.server.ranges()[3..], ["", "bytes=1500-"]);
}

#[tokio::test]
async fn a_part_is_kept_while_it_may_be_right() {
    for next in [Next::Refuse(404, "0"), Next::Refuse(401, "0"), Next::Refuse(501, "0"), Next::Range("bytes 0-9/10")] {
        let bench = Bench::new(&[Next::Break(1000), next]).await;
        let error = bench.save().await.unwrap_err().to_string();
        assert_eq!(bench.server.seen().len(), 2, "{error}");
        assert!(error.contains("repeat the command to resume"), "{error}");
        assert_eq!(bench.part(), bench.server.content[..1000]);
        bench.save().await.unwrap();
        assert!(bench.is_whole());
    }
}

#[tokio::test]
async fn a_part_that_is_wrong_is_removed() {
    let wrong = [(Next::Damage, "the sha256 is"), (Next::Tag("\"other\""), "another archive")];
    for (next, why) in wrong {
        let bench = Bench::new(&[Next::Break(1000), next]).await;
        let error = bench.save().await.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("is removed: repeat the command to begin again"), "{error}");
        assert_eq!(bench.files(), [] as [PathBuf; 0]);
        bench.save().await.unwrap();
        assert!(bench.is_whole());
    }
    // A part that this program has not written.
    for (content, why) in [(vec![7; 1000], "the sha256 is"), (vec![0; 90_000], "more bytes than the 80000")] {
        let bench = Bench::new(&[]).await;
        let begun = Download::begin(&bench.api, &bench.target).await.unwrap();
        Part::open(&bench.file(), &begun.expected().etag).unwrap().write_all(&content).unwrap();
        let error = begun.save(&bench.file()).await.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("begin again"), "{error}");
        assert_eq!(bench.files(), [] as [PathBuf; 0]);
    }
}

#[tokio::test]
async fn a_proxy_that_drops_ranges_costs_bytes_and_no_download() {
    let bench = Bench::new(&[Next::Break(1000), Next::Whole]).await;
    bench.save().await.unwrap();
    assert!(bench.is_whole());
    assert_eq!(bench.server.seen().len(), 2);
}

#[tokio::test]
async fn a_stream_gets_every_byte_once() {
    let bench = Bench::new(&[Next::Break(1000), Next::Whole]).await;
    assert!(bench.fetch().await.unwrap() == bench.server.content);
    let bench = Bench::new(&[Next::Damage]).await;
    let error = bench.fetch().await.unwrap_err().to_string();
    assert!(error.contains("the sha256 is") && error.contains("Nothing of it is kept: repeat the command"), "{error}");
}

#[tokio::test]
async fn a_disk_that_is_full_is_no_fault_of_the_archive() {
    let bench = Bench::new(&[]).await;
    let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = Download::begin(&bench.api, &bench.target).await.unwrap().fetch(&mut full).await.unwrap_err().to_string();
    assert!(error.contains("cannot be written") && bench.server.seen().len() == 1, "{error}");
}

#[tokio::test]
async fn an_existing_file_costs_no_request_for_a_part() {
    let bench = Bench::new(&[]).await;
    std::fs::write(bench.file(), "old").unwrap();
    assert!(bench.save().await.unwrap_err().to_string().contains("exists: choose another file"));
    assert_eq!((bench.files(), std::fs::read(bench.file()).unwrap()), (vec![bench.file()], b"old".to_vec()));
}

/// A user reads them hours after the command was begun, in the log of a script.
#[tokio::test]
async fn errors_name_the_archive_and_the_session_and_say_what_to_do() {
    let mut bench = Bench::new(&[Next::Refuse(404, "")]).await;
    let error = bench.save().await.unwrap_err().to_string();
    let expected =
        format!("the download of the archive of Computer team/box ({UID}) has not begun: the HTTP API answers 404 Not Found: a reason");
    assert!(error.starts_with(&expected) && error.contains("`archives ls`"), "{error}");
    let content = zstd::encode_all(&b"a tar"[..], 1).unwrap();
    let (_server, url) = Server::with(content.clone(), &["s/one"], &[Next::Break(5), Next::Refuse(409, "")]).await;
    (bench.api, bench.target) = (client(&url, LIMITS), bench.target.session(Some("s/one")));
    let error = Download::begin(&bench.api, &bench.target).await.unwrap().save(&bench.file()).await.unwrap_err().to_string();
    let expected = format!(
        "the download of session s/one in the archive of Computer team/box ({UID}) failed after 5 of {} bytes: the HTTP API answers 409",
        content.len()
    );
    assert!(error.starts_with(&expected) && error.ends_with("repeat the command to resume"), "{error}");
}
