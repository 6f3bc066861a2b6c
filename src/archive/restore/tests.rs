//! Tests of restoring: nothing outside the folder, nothing overwritten, no link followed.

use super::*;
use crate::archive::tar_scan::Scanner;

/// A tar of one entry.
fn tar_of(path: &[u8], kind: tar::EntryType, link: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    let content = if kind == tar::EntryType::Regular { &b"x"[..] } else { b"" };
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o6755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(7);
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header, content).unwrap();
    tar.into_inner().unwrap()
}

fn unpack(tar: &[u8], folder: &Path) -> Result<Taken, RestoreError> {
    let mut unpack = Unpack::new(folder);
    Scanner::default().feed(tar, &mut unpack)?;
    Ok(unpack.taken)
}

#[test]
fn the_error_for_a_missing_file_lists_the_existing_ones() {
    let tar = tar_of(b"s/one.jsonl", tar::EntryType::Regular, b"");
    let print = |wanted: &str| {
        let mut print = Print::new(Path::new(wanted), Vec::new());
        Scanner::default().feed(&tar, &mut print).unwrap();
        print.finish()
    };
    assert_eq!(print("s/one").unwrap_err().to_string(), "the session has no file s/one. It contains:\n  s/one.jsonl");
    assert_eq!(print("s/one.jsonl").unwrap(), b"x");
}

#[test]
fn nothing_is_written_outside_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("in");
    std::fs::create_dir(&inside).unwrap();
    let file = |path: &[u8]| tar_of(path, tar::EntryType::Regular, b"");
    for path in [&b"../out"[..], b"/abs", b"a/../../out", b"a/", b"."] {
        assert!(unpack(&file(path), &inside).is_err(), "{path:?}");
    }
    assert_eq!(unpack(&file(b"file"), &inside).unwrap(), Taken { files: 1, bytes: 1 });
    assert!(unpack(&file(b"file"), &inside).is_err(), "overwritten");
    assert_eq!(inside.join("file").metadata().unwrap().mode() & 0o7777, 0o755, "never the bits of another user");
    std::os::unix::fs::symlink(folder.path(), inside.join("planted")).unwrap();
    assert!(unpack(&file(b"planted/out"), &inside).is_err());
    for kind in [tar::EntryType::Fifo, tar::EntryType::Char, tar::EntryType::XHeader, tar::EntryType::Continuous] {
        assert!(unpack(&tar_of(b"odd", kind, b"x"), &inside).is_err(), "{kind:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something is outside");
}

/// A link is restored as it is, but it is never a way out of the folder.
#[test]
fn a_restored_link_leads_no_later_entry_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("in");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, b"s").unwrap();
    let link = |path: &[u8], to: &[u8]| tar_of(path, tar::EntryType::Symlink, to);
    let hard = |path: &[u8], to: &[u8]| tar_of(path, tar::EntryType::Link, to);
    unpack(&link(b"away", b".."), &inside).unwrap();
    assert_eq!(std::fs::read_link(inside.join("away")).unwrap(), Path::new(".."));
    assert_eq!(std::fs::symlink_metadata(inside.join("away")).unwrap().mtime(), 7);
    for tar in [
        tar_of(b"away/out", tar::EntryType::Regular, b""),
        tar_of(b"away", tar::EntryType::Directory, b""),
        link(b"away/out", b"x"),
        hard(b"taken", b"away/secret"),
        hard(b"taken", b"../secret"),
    ] {
        assert!(unpack(&tar, &inside).is_err());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "something is outside");
    assert_eq!(secret.metadata().unwrap().nlink(), 1);
}
