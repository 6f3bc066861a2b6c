//! Tests of packing: what is in an archive, what is only listed, and that all of it comes back.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};

use proptest::prelude::*;

use super::*;
use crate::archive::manifest::{Problem, WHOLE_HOME};
use crate::archive::reading::read;
use crate::archive::restore::{Print, Taken, Unpack};
use crate::archive::test_archives::{Archived, SMALL, Shared, home, noise, packed};

async fn archived(home: &Path, paths: &[&str]) -> Archived {
    Archived::of(packed(home, paths, Unreadable::Block, SMALL)).await
}

async fn problems(archived: &Archived) -> Vec<Problem> {
    let (mut lines, mut all) = (archived.archive.problems(&archived.store), Vec::new());
    while let Some(problem) = lines.next().await.unwrap() {
        all.push(problem);
    }
    all
}

async fn unpacked(archived: &Archived) -> (tempfile::TempDir, Taken) {
    let back = tempfile::tempdir().unwrap();
    let unpack = read(&archived.store, &archived.archive, None, Unpack::new(back.path())).await.unwrap();
    (back, unpack.taken)
}

#[tokio::test]
async fn modes_times_links_holes_and_empty_folders_come_back() {
    let home = home(&[("s/a.jsonl", b"one"), ("s/big.bin", &noise(30_000, 1)), ("s/run.sh", b"#!"), ("s/empty/x", b"")]);
    let at = |path: &str| home.path().join(path);
    std::fs::remove_file(at("s/empty/x")).unwrap();
    std::fs::create_dir(at("s/a")).unwrap();
    std::fs::hard_link(at("s/a.jsonl"), at("s/a/again")).unwrap();
    std::fs::hard_link(at("s/a.jsonl"), at("s/other")).unwrap();
    symlink("a.jsonl", at("s/near")).unwrap();
    symlink("../../etc/passwd", at("s/far")).unwrap();
    symlink("/etc/passwd", at("s/absolute")).unwrap();
    let sparse = std::fs::File::create(at("s/disk.img")).unwrap();
    sparse.write_all_at(b"middle", 5 << 30).unwrap();
    sparse.set_len(1 << 42).unwrap();
    std::fs::set_permissions(at("s/run.sh"), std::fs::Permissions::from_mode(0o750)).unwrap();
    std::fs::set_permissions(at("s/empty"), std::fs::Permissions::from_mode(0o555)).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for path in ["s/run.sh", "s/empty", "s"] {
        std::fs::File::open(at(path)).unwrap().set_modified(old).unwrap();
    }
    let began = std::time::Instant::now();
    let archived = archived(home.path(), &["s"]).await;
    let (back, taken) = unpacked(&archived).await;
    assert!(began.elapsed() < std::time::Duration::from_secs(30), "a hole of 4 TiB takes {:?}", began.elapsed());
    let back_at = |path: &str| back.path().join(path);
    assert_eq!(taken.files, 6);
    for path in ["s/run.sh", "s/empty", "s"] {
        let (was, is) = (at(path).metadata().unwrap(), back_at(path).metadata().unwrap());
        assert_eq!((was.mode(), was.mtime(), was.uid()), (is.mode(), is.mtime(), is.uid()), "{path}");
    }
    let again = (back_at("s/a.jsonl").metadata().unwrap(), back_at("s/a/again").metadata().unwrap());
    assert_eq!(again.0.ino(), again.1.ino(), "a hard link within a session");
    let other = back_at("s/other").metadata().unwrap();
    assert!(other.ino() != again.0.ino() && std::fs::read(back_at("s/other")).unwrap() == b"one", "another session has a copy");
    for (path, target) in [("s/near", "a.jsonl"), ("s/far", "../../etc/passwd"), ("s/absolute", "/etc/passwd")] {
        assert_eq!(std::fs::read_link(back_at(path)).unwrap(), Path::new(target));
    }
    let disk = back_at("s/disk.img").metadata().unwrap();
    let mut middle = [0; 6];
    std::fs::File::open(back_at("s/disk.img")).unwrap().read_exact_at(&mut middle, 5 << 30).unwrap();
    assert!(disk.len() == 1 << 42 && disk.blocks() < 1000 && &middle == b"middle", "{} blocks", disk.blocks());
    let listed = problems(&archived).await;
    let listed: Vec<_> = listed.iter().map(|p| (p.path.as_str(), p.kind)).collect();
    assert_eq!(listed, [("s/absolute", ProblemKind::Symlink), ("s/far", ProblemKind::Symlink)], "links that lead out of the archive");
    std::fs::set_permissions(back_at("s/empty"), std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Cat of a file with holes, and of a file by its second name.
#[tokio::test]
async fn one_file_is_printed_with_its_holes_and_by_each_name() {
    let home = home(&[("s/a.jsonl", b"one")]);
    std::fs::create_dir(home.path().join("s/a")).unwrap();
    std::fs::hard_link(home.path().join("s/a.jsonl"), home.path().join("s/a/z")).unwrap();
    let sparse = std::fs::File::create(home.path().join("s/a/hole")).unwrap();
    sparse.write_all_at(b"x", 100_000).unwrap();
    sparse.set_len(200_000).unwrap();
    let archived = archived(home.path(), &["s"]).await;
    let mut wanted = vec![0; 200_000];
    wanted[100_000] = b'x';
    let print = |path: &'static str| {
        let archived = &archived;
        async move {
            let entry = archived.archive.session_of_path(&archived.store, path).await.unwrap().unwrap();
            let shared = Shared::default();
            let print = read(&archived.store, &archived.archive, Some(entry), Print::new(Path::new(path), shared.clone())).await.unwrap();
            (print.same_as.clone(), print.finish().is_ok(), shared.take())
        }
    };
    let (_, there, printed) = print("s/a/hole").await;
    assert!(there && printed == wanted);
    assert_eq!(print("s/a.jsonl").await, (None, true, b"one".to_vec()));
    assert_eq!(print("s/a/z").await, (Some("s/a.jsonl".into()), false, Vec::new()));
    assert!(!print("s/a/missing").await.1);
}

#[tokio::test]
async fn the_files_of_a_home_are_sessions_that_can_be_found_by_their_path() {
    let files =
        ["notes.txt", ".claude/projects/p/a.jsonl", "work/x/y.c", "work/z", "work.md", "my.project/x.y.z", "my.project.tar.gz", ".bashrc"];
    let home = home(&files.map(|path| (path, &b"x"[..])));
    let archived = archived(home.path(), &[WHOLE_HOME]).await;
    assert_eq!(archived.sessions().await, [".bashrc", ".claude", "my", "my.project", "notes", "work"]);
    let (back, taken) = unpacked(&archived).await;
    assert_eq!(taken, Taken { files: 8, bytes: 8 });
    for path in files {
        assert_eq!(std::fs::read(back.path().join(path)).unwrap(), b"x", "{path}");
        let session = archived.archive.session_of_path(&archived.store, path).await.unwrap();
        let print = Print::new(Path::new(path), Shared::default());
        let print = read(&archived.store, &archived.archive, session, print).await.unwrap();
        print.finish().unwrap_or_else(|error| panic!("{path} cannot be found: {error}"));
    }
    assert_eq!(archived.archive.session_of_path(&archived.store, "wor").await.unwrap(), None);
}

/// L1: 65,000 names of one file were once 65,000 copies: a deletion that takes weeks, as a tenant likes.
#[tokio::test]
async fn a_file_with_names_in_very_many_sessions_is_archived_a_few_times() {
    let content = noise(100_000, 9);
    let home = home(&[("s/00.jsonl", &content)]);
    for n in 1..20 {
        std::fs::hard_link(home.path().join("s/00.jsonl"), home.path().join(format!("s/{n:02}.jsonl"))).unwrap();
    }
    let archived = archived(home.path(), &["s"]).await;
    assert!(archived.archive.stored_bytes() < 450_000, "{} bytes", archived.archive.stored_bytes());
    assert_eq!(archived.sessions().await.len(), 20);
    let verified = crate::archive::verify::verify(&archived.store, crate::archive::test_archives::UID).await;
    assert!(matches!(verified, crate::archive::Verification::Valid(_)), "{verified:?}");
    let (back, _) = unpacked(&archived).await;
    for n in 0..20 {
        assert!(std::fs::read(back.path().join(format!("s/{n:02}.jsonl"))).unwrap() == content, "{n}");
    }
    let last = archived.archive.session_of_path(&archived.store, "s/19.jsonl").await.unwrap();
    let alone = tempfile::tempdir().unwrap();
    let error = read(&archived.store, &archived.archive, last, Unpack::new(alone.path())).await.err().unwrap().to_string();
    assert!(error.contains("another name of s/00.jsonl") && error.contains("without --session"), "{error}");
}

/// More sessions begin in a chunk than are queued.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_sessions_in_one_chunk_are_verified() {
    let home = home(&[("s/0", b"x")]);
    for n in 1..9000 {
        std::fs::write(home.path().join(format!("s/{n}")), b"x").unwrap();
    }
    let packed = packed(home.path(), &["s"], Unreadable::Block, crate::archive::chunks::Sizes::default());
    assert!(packed.manifest.chunks.count <= 2 && packed.manifest.sessions == 9000);
    let archived = Archived::of(packed).await;
    let verified = crate::archive::verify::verify(&archived.store, crate::archive::test_archives::UID).await;
    assert!(matches!(verified, crate::archive::Verification::Valid(_)), "{verified:?}");
}

/// S12: two names that are not UTF-8 look the same, and of two session paths with one stem each has a session.
#[tokio::test]
async fn sessions_are_distinguished_by_the_bytes_of_their_ids() {
    let home = home(&[("notes.txt", b"1"), ("notes.md", b"2"), ("x/a", b"3")]);
    for byte in [0xfe_u8, 0xff] {
        std::fs::write(home.path().join("x").join(std::ffi::OsString::from_vec(vec![byte])), [byte]).unwrap();
    }
    let archived = archived(home.path(), &["notes.txt", "x", "notes.md"]).await;
    let mut ids: Vec<_> = archived.entries().await.into_iter().filter(|e| e.files > 0).map(|e| (e.id, e.id_bytes)).collect();
    assert_eq!(ids.iter().filter(|(id, _)| id == "notes").count(), 1, "{ids:?}");
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "two sessions have one id");
    let error = crate::archive::delivery::wanted(&archived.store, &archived.archive, Some("x/\u{fffd}".to_owned())).await.unwrap_err();
    assert!(error.to_string().contains("2 sessions"), "{error}");
}

#[test]
fn the_same_files_make_the_same_chunks() {
    let home = home(&[("s/a.jsonl", b"content"), ("s/b.jsonl", &noise(9000, 3))]);
    let digests = || packed(home.path(), &["s"], Unreadable::Record, SMALL).blobs.into_iter().map(|b| b.chunk.digest).collect::<Vec<_>>();
    assert_eq!(digests(), digests());
}

/// Each counts and is listed, however many there are; the first are named for the user who must decide.
#[tokio::test]
async fn unreadable_files_are_listed_and_the_rest_is_archived() {
    let home = home(&[("s/a.jsonl", b"x")]);
    for n in 0..30 {
        symlink("elsewhere", home.path().join(format!("root-{n:02}"))).unwrap();
    }
    let paths: Vec<String> = (0..30).map(|n| format!("root-{n:02}")).chain(["s".to_owned()]).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let packed = packed(home.path(), &paths, Unreadable::Record, SMALL);
    assert_eq!((packed.problems.lost, packed.problems.unreadable, packed.problems.first_unreadable.len()), (30, 30, 3));
    assert_eq!((packed.manifest.lost_count, packed.manifest.problems.count), (30, 30));
    let archived = Archived::of(packed).await;
    assert_eq!(problems(&archived).await.len(), 30);
    assert_eq!(archived.sessions().await, ["s/a"]);
}

/// Packs a home with another search for holes.
async fn packed_with(home: &Path, extents: Extents) -> (Archived, Problems) {
    let (mut manifest, mut blobs) = (crate::archive::manifest::tests::empty(crate::archive::test_archives::UID), Vec::new());
    let mut take = |blob| {
        blobs.push(blob);
        Ok(())
    };
    let request = Request {
        home,
        session_paths: &["s".to_owned()],
        unreadable: Unreadable::GiveUp,
        sizes: SMALL,
        progress: Arc::default(),
        tally: Arc::default(),
    };
    let problems = pack_with(&request, &mut manifest, &mut take, extents).unwrap();
    let counts = Problems { lost: problems.lost, ..Problems::default() };
    (Archived::of(crate::archive::test_archives::Packed { manifest, blobs, problems, tally: Arc::default() }).await, counts)
}

/// L1: a file whose map of holes is damaged once counted as archived without being in the tar: the archive could never be verified.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_an_admin_gave_up_leaves_nothing_in_the_index() {
    let home = home(&[("s/a.jsonl", b"one"), ("s/b.jsonl", b"bad"), ("s/c.jsonl", b"bad"), ("s/c.txt", b"two")]);
    std::fs::hard_link(home.path().join("s/c.jsonl"), home.path().join("s/c.link")).unwrap();
    let damaged: Extents = |file, _, _, _| {
        let mut content = String::new();
        let read = rustix::io::pread(file, &mut [0; 3][..], 0)?;
        std::io::Read::read_to_string(&mut file.try_clone()?, &mut content)?;
        file.try_clone()?.rewind()?;
        if read == 3 && content == "bad" { Err(io::Error::from_raw_os_error(5)) } else { Ok(None) }
    };
    let (archived, problems) = packed_with(home.path(), damaged).await;
    assert_eq!((archived.sessions().await, problems.lost), (vec!["s/a".to_owned(), "s/c".to_owned()], 3));
    let verified = crate::archive::verify::verify(&archived.store, crate::archive::test_archives::UID).await;
    assert!(matches!(&verified, crate::archive::Verification::Valid(summary) if summary.problems == 3), "{verified:?}");
    assert_eq!(unpacked(&archived).await.1.files, 2);
}

/// S1: content that is written into a file of the same size after its holes were found was once lost and not listed.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_it_is_read_is_listed_also_with_the_same_size() {
    let home = home(&[("s/a.jsonl", b"one")]);
    std::fs::hard_link(home.path().join("s/a.jsonl"), home.path().join("s/a.txt")).unwrap();
    let changed: Extents = |file, _, _, _| {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::OpenOptions::new().write(true).open(path)?.write_all_at(b"two", 0)?;
        Ok(None)
    };
    let (archived, _) = packed_with(home.path(), changed).await;
    let kinds: Vec<_> = problems(&archived).await.into_iter().map(|problem| problem.kind).collect();
    assert_eq!(kinds, [ProblemKind::Changed; 2], "each of its names is listed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_tree_is_restored_byte_for_byte(files in proptest::collection::btree_map(proptest::collection::vec(1_u8..=255, 1..40), proptest::collection::vec(any::<u8>(), 0..12_000), 1..12), long: bool) {
        let home = tempfile::tempdir().unwrap();
        let folder = if long { format!("s/{}", "long/".repeat(60)) } else { "s".to_owned() };
        let mut kept = BTreeMap::new();
        std::fs::create_dir_all(home.path().join(&folder)).unwrap();
        for (name, content) in files {
            let name: Vec<u8> = name.into_iter().map(|b| if b == b'/' { b'_' } else { b }).collect();
            if name == b"." || name == b".." { continue; }
            let path = PathBuf::from(&folder).join(std::ffi::OsString::from_vec(name));
            std::fs::write(home.path().join(&path), &content).unwrap();
            kept.insert(path, content);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (back, taken, lost) = runtime.block_on(async {
            let archived = archived(home.path(), &["s"]).await;
            let (back, taken) = unpacked(&archived).await;
            (back, taken, archived.archive.problem_count())
        });
        prop_assert_eq!((lost, taken.files), (0, kept.len() as u64));
        for (path, content) in kept {
            prop_assert_eq!(std::fs::read(back.path().join(&path)).unwrap(), content, "{:?}", path);
        }
    }
}
