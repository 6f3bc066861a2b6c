//! Tests with hostile data from a store or an archive pod: no data may cause a panic, use unbounded memory, or write outside the target
//! folder.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::manifest::tests::empty;
use super::old_format::{OldManifest, object_key};
use super::restore::{Print, RestoreError, Unpack};
use super::tar_scan::{Scanner, Sink};
use super::test_archives::{SMALL, home, packed};
use super::{Archive, Manifest, Store, Verification, chunk_key, manifest_key, verify};

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// A valid tar: short names, long names, an empty file.
fn tar_of_ours() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in [("s/a.jsonl", vec![b'a'; 700]), (&*format!("s/{}/b", "long/".repeat(40)), vec![b'b'; 9]), ("s/c", Vec::new())] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// One entry with any bytes as its name and any type.
fn entry(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    let old = header.as_old_mut();
    old.name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    old.linkflag = [kind];
    old.linkname[..11].copy_from_slice(b"/etc/passwd");
    header.set_size(content.len() as u64);
    header.set_mode(0o777);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    bytes
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn changed(mut bytes: Vec<u8>, changes: &[(Index, u8)], cut: Option<Index>) -> Vec<u8> {
    let length = bytes.len();
    for (at, byte) in changes {
        bytes[at.index(length)] = *byte;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

fn scan<S: Sink>(tar: &[u8], mut sink: S) -> Result<S, RestoreError> {
    Scanner::default().feed(tar, &mut sink)?;
    Ok(sink)
}

/// Restores a tar to a folder, and checks that nothing is written beside that folder.
fn restored_inside_only(tar: &[u8]) -> Result<(), TestCaseError> {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("one/two/folder");
    std::fs::create_dir_all(&folder).unwrap();
    scan(tar, Unpack::new(&folder)).ok();
    for found in walkdir::WalkDir::new(outer.path()).into_iter().map(Result::unwrap) {
        let path = found.path();
        prop_assert!(path.starts_with(&folder) || folder.starts_with(path), "written outside: {}", path.display());
    }
    prop_assert!(std::fs::metadata("/etc/passwd").is_ok_and(|m| m.nlink() == 1), "a hard link to a file outside");
    scan(tar, Print::new(Path::new("s/a.jsonl"), std::io::sink())).ok();
    Ok(())
}

fn verification(objects: Vec<(String, Vec<u8>)>) -> Verification {
    let folder = tempfile::tempdir().unwrap();
    for (key, content) in objects {
        let path = folder.path().join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(verify::verify(&store, UID))
}

/// The verification of an archive of version 1 of this one object, with these numbers in its manifest.
fn verified(object: &[u8], files: u64, bytes: u64) -> Verification {
    let digest = hex::encode(Sha256::digest(object));
    let manifest = json!({"version": 1, "computer": {"namespace": "t", "name": "c", "uid": UID}, "createdAt": 1, "sessionPaths": [],
        "sessions": [{"id": "s", "files": files, "bytes": bytes, "digest": digest, "size": object.len(), "lastModified": 0}],
        "problems": [], "problemCount": 0});
    verification(vec![(object_key(UID, &digest), object.to_vec()), (manifest_key(UID), serde_json::to_vec(&manifest).unwrap())])
}

/// The verification of an archive whose only chunk, or whose index, has these bytes, with names that match.
fn verified_chunk(bytes: &[u8], of_index: bool) -> Verification {
    let packed = packed(home(&[("s/a.jsonl", b"one")]).path(), &["s"], super::Unreadable::Block, SMALL);
    let (mut manifest, mut objects) = (packed.manifest, Vec::new());
    manifest.computer.uid = UID.to_owned();
    let digest = hex::encode(Sha256::digest(bytes));
    let chunk = super::manifest::Chunk { digest: digest.clone(), size: bytes.len() as u64 };
    if of_index {
        manifest.entries.pieces = vec![chunk];
    } else {
        let line = zstd::bulk::compress(&[serde_json::to_vec(&chunk).unwrap(), b"\n".to_vec()].concat(), 3).unwrap();
        let name = hex::encode(Sha256::digest(&line));
        manifest.chunks.pieces = vec![super::manifest::Chunk { digest: name.clone(), size: line.len() as u64 }];
        manifest.stored_bytes = bytes.len() as u64;
        objects.push((chunk_key(UID, &name), line));
    }
    objects.extend(packed.blobs.iter().map(|blob| (chunk_key(UID, &blob.chunk.digest), blob.bytes.to_vec())));
    objects.push((chunk_key(UID, &digest), bytes.to_vec()));
    objects.push((manifest_key(UID), serde_json::to_vec(&manifest).unwrap()));
    verification(objects)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn an_object_of_any_bytes_is_damaged(bytes in vec(any::<u8>(), 0..2000)) {
        restored_inside_only(&bytes)?;
        prop_assert!(matches!(verified(&bytes, 0, 0), Verification::Invalid(_)));
        for of_index in [false, true] {
            prop_assert!(matches!(verified_chunk(&bytes, of_index), Verification::Invalid(_)));
            prop_assert!(matches!(verified_chunk(&zstd::bulk::compress(&bytes, 3).unwrap(), of_index), Verification::Invalid(_)));
        }
    }

    #[test]
    fn a_changed_object_is_damaged(changes in vec((any::<Index>(), any::<u8>()), 0..6), cut: Option<Index>) {
        let object = changed(compressed(&tar_of_ours()), &changes, cut);
        prop_assert!(!matches!(verified(&object, 3, 709), Verification::Unavailable(_) | Verification::Running | Verification::Missing));
    }

    #[test]
    fn a_changed_tar_restores_nothing_outside(changes in vec((any::<Index>(), any::<u8>()), 0..6), cut: Option<Index>) {
        let tar = changed(tar_of_ours(), &changes, cut);
        restored_inside_only(&tar)?;
        let object = compressed(&tar);
        prop_assert!(!matches!(verified(&object, 3, 709), Verification::Unavailable(_) | Verification::Running | Verification::Missing));
    }

    #[test]
    fn no_name_and_no_type_of_entry_leads_outside(
        name in prop_oneof![vec(any::<u8>(), 0..100), "(/|\\.\\./|\\./|a/|b)*".prop_map(String::into_bytes)],
        kind in prop_oneof![Just(b'0'), Just(b'1'), Just(b'2'), Just(b'5'), Just(b'L'), Just(b'K'), Just(b'x'), Just(b'g'), any::<u8>()],
        content in vec(any::<u8>(), 0..600),
    ) {
        let mut tar = entry(&name, kind, &content);
        tar.truncate(tar.len() - 1024);
        tar.extend(entry(&name, b'0', &content));
        restored_inside_only(&tar)?;
    }

    #[test]
    fn a_changed_manifest_is_refused_or_within_bounds(changes in vec((any::<Index>(), any::<u8>()), 0..6), cut: Option<Index>, path in "\\PC*") {
        let old = json!({"version": 1, "computer": {"namespace": "t", "name": "c", "uid": UID}, "createdAt": 1, "sessionPaths": [path],
            "sessions": [{"id": "s/a", "files": u64::MAX, "bytes": u64::MAX, "digest": "0".repeat(64), "size": u64::MAX, "lastModified": i64::MIN}],
            "problems": [], "problemCount": 0});
        for bytes in [serde_json::to_vec(&empty(UID)).unwrap(), serde_json::to_vec(&old).unwrap()] {
            match Archive::parse(&changed(bytes, &changes, cut)) {
                Ok(Archive::New(manifest)) => {
                    prop_assert!(manifest.pieces().all(super::manifest::Chunk::is_valid));
                    prop_assert_eq!(&Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap(), &*manifest);
                }
                Ok(Archive::Old(manifest)) => {
                    prop_assert!(manifest.sessions.iter().all(|s| super::manifest::is_digest(&s.digest)));
                    prop_assert_eq!(&OldManifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap(), &*manifest);
                }
                Err(_) => {}
            }
        }
    }

    #[test]
    fn a_store_is_opened_or_refused_whatever_its_url(url in "(s3|S3|file|http)?(://)?\\PC{0,40}") {
        // Never open a folder of this machine.
        prop_assume!(!url.starts_with("file://"));
        let _ = Store::open(&url);
    }
}

/// The peak memory of this process, bytes.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// This many zeros, compressed with a window of 2 to the power of `window` bytes.
fn zeros(before: &[u8], count: u64, window: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(window).unwrap();
    encoder.write_all(before).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(count), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// L3: a few kilobytes in the store once took half a gigabyte of memory to read back.
#[test]
fn a_name_without_an_end_is_not_kept_in_memory() {
    let before = most_memory();
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().linkflag = [b'L'];
    header.set_size(512 << 20);
    header.set_cksum();
    let object = zeros(header.as_bytes(), 513 << 20, 20);
    let found = verified(&object, 1, 0);
    assert!(matches!(found, Verification::Invalid(_)), "{found:?}");
    // The kernel counts pages per thread, so the peak that it reports can be a little lower than before.
    let taken = most_memory().saturating_sub(before);
    // Other tests run in this process at the same time; without the bound it is twice as much.
    assert!(taken < 400 << 20, "{} MiB", taken >> 20);
}

/// L3: a frame header determines how much memory its reader needs.
#[test]
fn a_frame_with_a_huge_window_is_refused() {
    let content = 200 << 20;
    let mut header = tar::Header::new_gnu();
    header.set_path("s/a").unwrap();
    header.set_size(content);
    header.set_cksum();
    let object = zeros(header.as_bytes(), content + (1 << 20), 27);
    let found = verified(&object, 1, content);
    assert!(matches!(found, Verification::Invalid(_)), "{found:?}");
}

/// L3: a frame of a few kilobytes may claim to contain gigabytes.
#[test]
fn a_frame_that_contains_too_much_is_refused_before_memory_is_taken() {
    let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
    let too_much = compressor.compress(&vec![0; super::manifest::FRAME + 1]).unwrap();
    let streamed = zstd::encode_all(&b"a frame of unknown size"[..], 1).unwrap();
    for (frame, why) in [(too_much, "never written"), (streamed, "how many bytes")] {
        for of_index in [false, true] {
            let found = verified_chunk(&frame, of_index);
            assert!(matches!(&found, Verification::Invalid(said) if said.contains(why)), "{found:?}");
        }
    }
}

/// An archive whose index a hostile pod wrote, in a store without the objects after the first that is wrong.
fn verified_index(change: impl FnOnce(&mut Manifest, &mut Vec<super::chunks::Blob>)) -> Verification {
    let home = home(&[("s/a.jsonl", b"one"), ("s/b.jsonl", &super::test_archives::noise(20_000, 3))]);
    let mut packed = packed(home.path(), &["s"], super::Unreadable::Block, SMALL);
    change(&mut packed.manifest, &mut packed.blobs);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::new(std::sync::Arc::new(object_store::memory::InMemory::new()));
        super::test_archives::put(&store, super::test_archives::UID, &packed).await;
        verify::verify(&store, super::test_archives::UID).await
    })
}

/// A piece of an index with these lines.
fn piece(lines: &str) -> super::chunks::Blob {
    let bytes = zstd::bulk::compress(lines.as_bytes(), 3).unwrap();
    let chunk = super::manifest::Chunk { digest: hex::encode(Sha256::digest(&bytes)), size: bytes.len() as u64 };
    super::chunks::Blob { chunk, bytes: bytes.into() }
}

/// L3: the entries of a chunk were once collected before the first was checked: a piece that was named many times took gigabytes.
#[test]
fn entries_that_overlap_are_refused_before_the_next_piece_is_read() {
    for (offset, size) in [(0, 0), (0, 40), (1, 40)] {
        let line = json!({"id": "", "files": 0, "bytes": 0, "lastModified": 0, "digest": "0".repeat(64), "tarBytes": 0, "offset": offset, "size": size});
        let found = verified_index(|manifest, blobs| {
            let blob = piece(&format!("{line}\n{line}\n"));
            let missing = super::manifest::Chunk { digest: "1".repeat(64), size: 10 };
            manifest.entries = super::manifest::List { count: 1_000_000, pieces: vec![blob.chunk.clone(), missing], nested: false };
            blobs.push(blob);
        });
        assert!(matches!(&found, Verification::Invalid(why) if why.contains("not contiguous")), "{found:?}");
    }
}

/// L3: a chunk may contain hundreds of gigabytes of zeros.
#[test]
fn more_than_the_manifest_says_is_not_read() {
    let found = verified_index(|manifest, blobs| {
        manifest.tar_bytes = 1;
        let index: Vec<_> = manifest.pieces().cloned().collect();
        let last = blobs.iter().rposition(|blob| !index.contains(&blob.chunk)).unwrap();
        blobs.remove(last);
    });
    assert!(matches!(&found, Verification::Invalid(why) if why.contains("more than the manifest says")), "{found:?}");
}
