//! Tests of packing: sessions, links, special files, whole homes, and restoring byte for byte.

use super::*;
use proptest::prelude::*;
use std::os::unix::ffi::OsStringExt;

fn write(home: &Path, path: impl AsRef<Path>, content: &[u8]) {
    let path = home.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn ids(found: &Found) -> Vec<String> {
    found.sessions.keys().map(|p| p.to_string_lossy().into_owned()).collect()
}

#[test]
fn files_of_one_stem_and_their_folder_are_one_session() {
    let home = tempfile::tempdir().unwrap();
    for path in ["s/a.jsonl", "s/a.settings.json", "s/a/sub/agent.jsonl", "s/b.jsonl", "other/x.jsonl"] {
        write(home.path(), path, b"x");
    }
    let found = find(home.path(), &["s".into(), "missing".into()], Unreadable::Record).unwrap();
    assert_eq!(ids(&found), ["s/a", "s/b"]);
    assert_eq!(found.sessions[Path::new("s/a")].len(), 3);
}

/// A whole home of small files once made a manifest that was always refused.
#[test]
fn more_sessions_than_a_manifest_can_list_become_one_per_path() {
    for (paths, id) in [(vec![], WHOLE_HOME), (vec!["s/".to_owned()], "s")] {
        let mut sessions: BTreeMap<PathBuf, Files> =
            (0..90_000).map(|n| (PathBuf::from(format!("s/{n}")), vec![PathBuf::from(format!("s/{n}.jsonl"))])).collect();
        fold(&mut sessions, &paths);
        assert_eq!(sessions.keys().collect::<Vec<_>>(), [Path::new(id)]);
        assert_eq!(sessions[Path::new(id)].len(), 90_000, "S1");
        assert!(crate::archive::manifest::ids_of_path("s/7.jsonl").any(|found| found == id), "its files cannot be found");
    }
}

#[test]
fn links_and_special_files_are_recorded_and_never_opened() {
    let (home, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(outside.path(), "secret.jsonl", b"not yours");
    write(home.path(), "s/a.jsonl", b"x");
    std::os::unix::fs::symlink(outside.path().join("secret.jsonl"), home.path().join("s/link.jsonl")).unwrap();
    std::os::unix::fs::symlink(outside.path(), home.path().join("linked")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, home.path().join("s/pipe"), rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let found = find(home.path(), &["s".into(), "linked".into()], Unreadable::Record).unwrap();
    assert_eq!(ids(&found), ["s/a"]);
    let kinds: Vec<_> = found.problems.listed.iter().map(|p| p.kind).collect();
    assert_eq!(kinds, [ProblemKind::Symlink, ProblemKind::Special, ProblemKind::Unreadable]);
    // A file that became a link after it was listed.
    let mut problems = Problems::default();
    let packed =
        pack(home.path(), home.path(), Path::new("s/link"), &["s/link.jsonl".into(), "../x".into()], Unreadable::Record, &mut problems)
            .unwrap();
    assert!(packed.is_none() && problems.unreadable == 2);
}

#[test]
fn a_whole_home_is_archived_with_a_session_for_each_entry_at_its_top() {
    let home = tempfile::tempdir().unwrap();
    for path in ["notes.txt", ".claude/projects/p/a.jsonl", "work/x/y.c", "work/z", "work.md"] {
        write(home.path(), path, b"x");
    }
    std::os::unix::fs::symlink("work", home.path().join("link")).unwrap();
    for paths in [vec![".".to_owned()], vec!["work".to_owned(), ".".to_owned()], vec![]] {
        let found = find(home.path(), &paths, Unreadable::Block).unwrap();
        assert_eq!(ids(&found), [".claude", "notes", "work"], "{paths:?}");
        assert_eq!(found.sessions[Path::new("work")].len(), 3, "work.md belongs to work");
        assert_eq!((found.problems.count, found.problems.lost), (1, 0), "{paths:?}: the link, once");
    }
    let back = tempfile::tempdir().unwrap();
    let mut problems = Problems::default();
    for (id, files) in find(home.path(), &[".".into()], Unreadable::Block).unwrap().sessions {
        let packed = pack(home.path(), back.path(), &id, &files, Unreadable::Block, &mut problems).unwrap().unwrap();
        super::super::restore::unpack(packed.object.reopen().unwrap(), &back.path().join("home")).unwrap();
    }
    for path in ["notes.txt", ".claude/projects/p/a.jsonl", "work/x/y.c", "work/z", "work.md"] {
        assert_eq!(std::fs::read(back.path().join("home").join(path)).unwrap(), b"x", "{path}");
        let mut ids = crate::archive::manifest::ids_of_path(path);
        assert!(ids.any(|id| [".claude", "notes", "work"].contains(&id)), "{path} cannot be found");
    }
}

#[test]
fn a_file_below_two_session_paths_is_archived_once() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), "s/a/one.jsonl", b"x");
    std::os::unix::fs::symlink("one.jsonl", home.path().join("s/a/link")).unwrap();
    let found = find(home.path(), &["s/a".into(), "s".into(), "s/".into()], Unreadable::Record).unwrap();
    assert_eq!((ids(&found), found.problems.count), (vec!["s/a/one".to_owned()], 1));
}

#[test]
fn a_session_path_is_plain_or_the_whole_home() {
    for path in [".", "a", "a/b", ".claude/projects", "a/", "a..b", "..."] {
        assert_eq!(check_path(path), Ok(()), "{path}");
    }
    for path in ["", "./", "./a", "a/.", "a/./b", "..", "../a", "a/..", "/a", "/"] {
        assert!(check_path(path).is_err_and(|why| why.contains("'.' alone for the whole home")), "{path}");
    }
}

/// If a session path is a link to another place (for example for dotfiles), its sessions are lost; `Block` must detect that.
#[test]
fn a_session_path_behind_a_link_is_lost_content() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), "dotfiles/claude/a.jsonl", b"x");
    std::os::unix::fs::symlink("dotfiles/claude", home.path().join("s")).unwrap();
    let found = find(home.path(), &["s".into()], Unreadable::Record).unwrap();
    assert_eq!((found.problems.unreadable, found.problems.listed[0].kind), (1, ProblemKind::Unreadable));
}

#[test]
fn the_same_files_make_the_same_object() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), "s/a.jsonl", b"content");
    let digest = || {
        let mut problems = Problems::default();
        let found = find(home.path(), &[], Unreadable::Record).unwrap();
        let (id, files) = found.sessions.iter().next().unwrap();
        pack(home.path(), std::env::temp_dir().as_path(), id, files, Unreadable::Record, &mut problems).unwrap().unwrap().entry.digest
    };
    assert_eq!(digest(), digest());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_tree_is_restored_byte_for_byte(files in proptest::collection::btree_map(proptest::collection::vec(1_u8..=255, 1..40), proptest::collection::vec(any::<u8>(), 0..2000), 1..12)) {
        let (home, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut kept = BTreeMap::new();
        for (name, content) in files {
            let name: Vec<u8> = name.into_iter().map(|b| if b == b'/' { b'_' } else { b }).collect();
            if name == b"." || name == b".." { continue; }
            let path = PathBuf::from("s").join(std::ffi::OsString::from_vec(name));
            write(home.path(), &path, &content);
            kept.insert(path, content);
        }
        let mut problems = Problems::default();
        for (id, files) in find(home.path(), &["s".into()], Unreadable::Record).unwrap().sessions {
            let packed = pack(home.path(), home.path(), &id, &files, Unreadable::Record, &mut problems).unwrap().unwrap();
            super::super::restore::unpack(packed.object.reopen().unwrap(), back.path()).unwrap();
        }
        prop_assert_eq!(problems.count, 0);
        for (path, content) in kept {
            prop_assert_eq!(std::fs::read(back.path().join(&path)).unwrap(), content, "{:?}", path);
        }
    }
}
