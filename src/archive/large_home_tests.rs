//! Homes as large as they get: a million files in one folder, a hundred thousand sessions, a session of 50 GB. The memory of this process must
//! stay below the limit of an archive pod. CONTRIBUTING.md has the command that runs each alone.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::chunks::{Blob, Sizes};
use super::manifest::Manifest;
use super::manifest::tests::empty;
use super::pack::{Request, pack};
use super::{Store, Unreadable, Verification, chunk_key, manifest_key, verify};

/// The limit of an archive pod, and of the operator beside its caches.
const LIMIT: u64 = 256 << 20;

fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Packs a home into a folder and reads the archive back.
async fn packed_and_read_back(home: &Path) -> Manifest {
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = empty("u");
    let mut take = |blob: Blob| {
        let path = folder.path().join(chunk_key("u", &blob.chunk.digest));
        std::fs::create_dir_all(path.parent().unwrap())?;
        std::fs::write(path, &blob.bytes)
    };
    let began = std::time::Instant::now();
    let request = Request {
        home,
        session_paths: &["s".to_owned()],
        unreadable: Unreadable::Block,
        sizes: Sizes::default(),
        progress: Arc::default(),
        tally: Arc::default(),
    };
    let problems = pack(&request, &mut manifest, &mut take).unwrap();
    assert_eq!((problems.lost, manifest.problems.count), (0, 0));
    println!("packed in {:?}: {} MiB of memory, {} chunks", began.elapsed(), most_memory() >> 20, manifest.chunks.count);
    std::fs::write(folder.path().join(manifest_key("u")), serde_json::to_vec(&manifest).unwrap()).unwrap();
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    let began = std::time::Instant::now();
    let verified = verify::verify(&store, "u").await;
    assert!(matches!(&verified, Verification::Valid(_)), "{verified:?}");
    println!("read back in {:?}: {} MiB of memory", began.elapsed(), most_memory() >> 20);
    assert!(most_memory() < LIMIT, "{} MiB", most_memory() >> 20);
    manifest
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes a million files"]
async fn a_million_files_with_long_names_in_one_folder() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("s")).unwrap();
    std::fs::write(home.path().join("s/x.jsonl"), b"").unwrap();
    std::fs::create_dir(home.path().join("s/x")).unwrap();
    for n in 0..1_000_000 {
        std::fs::write(home.path().join(format!("s/x/{n:0250}")), b"").unwrap();
    }
    let manifest = packed_and_read_back(home.path()).await;
    assert_eq!((manifest.sessions, manifest.files), (1, 1_000_001));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes a hundred thousand files"]
async fn a_hundred_thousand_sessions() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("s")).unwrap();
    for n in 0..100_000 {
        std::fs::write(home.path().join(format!("s/{n}.jsonl")), format!("{{\"session\": {n}}}\n")).unwrap();
    }
    let manifest = packed_and_read_back(home.path()).await;
    assert_eq!((manifest.sessions, manifest.files), (100_000, 100_000));
    assert!(manifest.chunks.count < 100, "{}", manifest.chunks.count);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes in a debug build"]
async fn a_session_of_fifty_gigabytes() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("s")).unwrap();
    let file = std::fs::File::create(home.path().join("s/big.img")).unwrap();
    file.set_len(50_000_000_000).unwrap();
    for n in 0..100 {
        file.write_all_at(&super::test_archives::noise(1 << 20, n), n * 500_000_000).unwrap();
    }
    let manifest = packed_and_read_back(home.path()).await;
    assert_eq!((manifest.sessions, manifest.bytes), (1, 50_000_000_000));
    assert!(manifest.tar_bytes < 120 << 20, "{}", manifest.tar_bytes);
}
