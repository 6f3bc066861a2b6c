//! Tests of the search: which files make a session, what is never followed, and bounded memory.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use super::*;
use crate::archive::test_archives::home;

type Sessions = BTreeMap<String, Vec<String>>;

/// The paths of each session, those of none under an empty name, and the problems.
fn found(home: &Path, session_paths: &[&str], budget: usize) -> (Sessions, Vec<(String, ProblemKind)>) {
    let paths: Vec<String> = session_paths.iter().map(|path| (*path).to_owned()).collect();
    let fd = rustix::fs::open(home, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut walk = Walk { budget, ..Walk::new(Rc::new(fd), roots(&paths), Unreadable::Record) };
    let (mut sessions, mut problems, mut order) = (Sessions::new(), Vec::new(), Vec::new());
    while let Some(found) = walk.find_next().unwrap() {
        match found {
            Found::Item { session, path, .. } => {
                let session = session.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
                if order.last() != Some(&session) {
                    assert!(session.is_empty() || !order.contains(&session), "the files of {session} are not neighbours");
                    order.push(session.clone());
                }
                sessions.entry(session).or_default().push(path.to_string_lossy().into_owned());
            }
            Found::Problem { path, kind, .. } => problems.push((path.to_string_lossy().into_owned(), kind)),
        }
    }
    (sessions, problems)
}

fn ids(home: &Path, session_paths: &[&str]) -> Vec<String> {
    found(home, session_paths, NAMES).0.into_keys().filter(|id| !id.is_empty()).collect()
}

#[test]
fn files_of_one_stem_and_their_folder_are_one_session() {
    let home = home(&[
        ("s/a.jsonl", b""),
        ("s/a.settings.json", b""),
        ("s/a/sub/agent.jsonl", b""),
        ("s/b.jsonl", b""),
        ("s/c/d.jsonl", b""),
        ("other/x.jsonl", b""),
    ]);
    let (sessions, problems) = found(home.path(), &["s", "missing"], NAMES);
    assert_eq!(sessions["s/a"], ["s/a.jsonl", "s/a.settings.json", "s/a/sub/agent.jsonl", "s/a/sub", "s/a"], "a folder after its content");
    assert_eq!(sessions.keys().collect::<Vec<_>>(), ["", "s/a", "s/b", "s/c/d"]);
    assert_eq!(sessions[""], ["s/c", "s"], "folders without a session");
    assert!(problems.is_empty());
}

/// Names take memory only within the budget, and everything is found once.
#[test]
fn little_memory_changes_nothing_that_is_found() {
    let files: Vec<String> = (0..200).map(|n| format!("s/{}/{n}/{}.jsonl", n % 7, "x".repeat(n))).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|path| (path.as_str(), &b""[..])).collect();
    let home = home(&files);
    let all = found(home.path(), &["s"], NAMES);
    assert_eq!(all.0.len(), 201);
    for budget in [1, 500, 5000] {
        assert_eq!(found(home.path(), &["s"], budget), all, "{budget}");
    }
}

/// L1: folders around a large one once left it memory for 51 names, and it was read again for each 51 of its million.
#[test]
fn a_large_folder_below_others_gets_memory() {
    let (mut folder, mut files) = ("s".to_owned(), 0);
    let home = home(&[("s/a", b"")]);
    for n in [1000, 1000, 1000, 1000, 1000, 1000, 8000] {
        folder.push_str("/m");
        std::fs::create_dir(home.path().join(&folder)).unwrap();
        for file in 0..n {
            std::fs::write(home.path().join(&folder).join(format!("z{file:04}{}", "-".repeat(95))), b"").unwrap();
            files += 1;
        }
    }
    let fd = rustix::fs::open(home.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut walk = Walk { budget: 200_000, ..Walk::new(Rc::new(fd), roots(&["s".to_owned()]), Unreadable::Record) };
    let mut found = 0;
    while let Some(item) = walk.find_next().unwrap() {
        found += usize::from(matches!(item, Found::Item { kind: Kind::File, .. }));
    }
    assert_eq!(found, files + 1);
    assert!(walk.scans.get() < 60, "{} scans", walk.scans.get());
}

#[test]
fn links_are_not_followed_and_special_files_are_problems() {
    let (home, outside) = (home(&[("s/a.jsonl", b"")]), home(&[("secret.jsonl", b"not yours")]));
    symlink(outside.path().join("secret.jsonl"), home.path().join("s/link.jsonl")).unwrap();
    symlink(outside.path(), home.path().join("s/folder")).unwrap();
    symlink(outside.path(), home.path().join("linked")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, home.path().join("s/pipe"), rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let (sessions, problems) = found(home.path(), &["s", "linked", "linked/below", "s/pipe"], NAMES);
    assert_eq!(sessions["s/a"], ["s/a.jsonl"]);
    assert_eq!(sessions[""], ["s/folder", "s/link.jsonl", "s"]);
    let kinds = [("linked", ProblemKind::Unreadable), ("s/pipe", ProblemKind::Special)];
    assert_eq!(problems, kinds.map(|(path, kind)| (path.to_owned(), kind)));
}

/// If a session path is a link to another place (for example for dotfiles), its sessions are lost; `Block` must detect that.
#[test]
fn a_session_path_behind_a_link_is_unreadable() {
    let home = home(&[("dotfiles/claude/a.jsonl", b"")]);
    symlink("dotfiles", home.path().join("s")).unwrap();
    for path in ["s", "s/claude", "s/claude/a.jsonl"] {
        assert_eq!(found(home.path(), &[path], NAMES).1, [(path.to_owned(), ProblemKind::Unreadable)]);
    }
}

#[test]
fn a_whole_home_has_a_session_for_each_entry_at_its_top() {
    let home = home(&[
        ("notes.txt", b""),
        (".claude/projects/p/a.jsonl", b""),
        ("work/x/y.c", b""),
        ("work/z", b""),
        ("work.md", b""),
        ("empty/deep/x", b""),
    ]);
    std::fs::remove_file(home.path().join("empty/deep/x")).unwrap();
    symlink("work", home.path().join("link")).unwrap();
    for paths in [&["."][..], &["work", "."], &[]] {
        let (sessions, problems) = found(home.path(), paths, NAMES);
        assert_eq!(sessions.keys().collect::<Vec<_>>(), ["", ".claude", "empty", "notes", "work"], "{paths:?}");
        assert_eq!(sessions["work"], ["work.md", "work/x/y.c", "work/x", "work/z", "work"], "work.md belongs to work");
        assert_eq!(sessions[""], ["link"]);
        assert!(problems.is_empty());
    }
}

#[test]
fn a_file_below_two_session_paths_is_found_once() {
    let home = home(&[("s/a/one.jsonl", b"")]);
    assert_eq!(ids(home.path(), &["s/a", "s", "s/"]), ["s/a/one"]);
    assert_eq!(ids(home.path(), &["s/a/one.jsonl"]), ["s/a/one"], "a session path may be a file");
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
