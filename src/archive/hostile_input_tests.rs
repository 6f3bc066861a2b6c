//! Tests with hostile data from a store or an archive pod: no data may cause a panic, use unbounded memory, or write outside the target
//! folder.

use std::io::{Read as _, Write as _};
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use sha2::{Digest as _, Sha256};

use super::manifest::tests::empty;
use super::{Manifest, SessionEntry, Store, Verification, manifest_key, object_key, restore, verify};

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

/// Restores it to a folder, and checks that nothing is written beside that folder.
fn restored_inside_only(object: &[u8]) -> Result<(), TestCaseError> {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("one/two/folder");
    std::fs::create_dir_all(&folder).unwrap();
    restore::unpack(object, &folder).ok();
    for found in walkdir::WalkDir::new(outer.path()).into_iter().map(Result::unwrap) {
        let path = found.path();
        prop_assert!(path.starts_with(&folder) || folder.starts_with(path), "written outside: {}", path.display());
        prop_assert!(!found.path_is_symlink(), "a link: {}", path.display());
    }
    restore::print(object, Path::new("s/a.jsonl"), &mut std::io::sink()).ok();
    restore::append(object, &mut tar::Builder::new(std::io::sink())).ok();
    Ok(())
}

/// The verification of an archive of this one object, with these numbers in its manifest.
fn verified(object: &[u8], files: u64, bytes: u64) -> Verification {
    let folder = tempfile::tempdir().unwrap();
    let digest = hex::encode(Sha256::digest(object));
    let mut manifest = empty(UID);
    let size = object.len() as u64;
    manifest.sessions.push(SessionEntry { id: "s".into(), files, bytes, digest: digest.clone(), size, last_modified: 0 });
    for (key, content) in [(object_key(UID, &digest), object.to_vec()), (manifest_key(UID), serde_json::to_vec(&manifest).unwrap())] {
        let path = folder.path().join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let store = Store::open(&format!("file://{}", folder.path().display())).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(verify::verify(&store, UID))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn an_object_of_any_bytes_is_damaged(bytes in vec(any::<u8>(), 0..2000)) {
        restored_inside_only(&bytes)?;
        prop_assert!(matches!(verified(&bytes, 0, 0), Verification::Invalid(_)));
    }

    #[test]
    fn a_changed_object_restores_nothing_outside(changes in vec((any::<Index>(), any::<u8>()), 0..6), cut: Option<Index>) {
        let object = changed(compressed(&tar_of_ours()), &changes, cut);
        restored_inside_only(&object)?;
        prop_assert!(!matches!(verified(&object, 3, 709), Verification::Unavailable(_) | Verification::Running | Verification::Missing));
    }

    #[test]
    fn a_changed_tar_restores_nothing_outside(changes in vec((any::<Index>(), any::<u8>()), 0..6), cut: Option<Index>) {
        let object = compressed(&changed(tar_of_ours(), &changes, cut));
        restored_inside_only(&object)?;
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
        restored_inside_only(&compressed(&tar))?;
    }

    #[test]
    fn a_changed_manifest_is_refused_or_within_bounds(changes in vec((any::<Index>(), any::<u8>()), 0..6), cut: Option<Index>, path in "\\PC*") {
        let mut manifest = empty(UID);
        manifest.sessions.push(SessionEntry { id: "s/a".into(), files: 1, bytes: u64::MAX, digest: "0".repeat(64), size: u64::MAX, last_modified: i64::MIN });
        manifest.sessions.push(SessionEntry { id: String::new(), files: u64::MAX, ..manifest.sessions[0].clone() });
        let bytes = changed(serde_json::to_vec(&manifest).unwrap(), &changes, cut);
        if let Ok(manifest) = Manifest::parse(&bytes) {
            prop_assert!(manifest.sessions.iter().all(|s| super::manifest::is_digest(&s.digest)));
            prop_assert!(manifest.problem_count >= manifest.problems.len() as u64);
            manifest.session_of_path(&path);
            manifest.stored_bytes();
            manifest.lost();
            prop_assert_eq!(Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap(), manifest);
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
    assert!(restore::unpack(object.as_slice(), tempfile::tempdir().unwrap().path()).is_err());
    let taken = most_memory() - before;
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
