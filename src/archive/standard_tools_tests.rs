//! An archive is read with `tar`, `zstd`, `jq` and `sha256sum` alone: listed, verified and unpacked as docs/archive-format.md says.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use super::chunks::Blob;
use super::test_archives::{SMALL, UID, home, noise, packed, put};
use super::{Store, Unreadable};

/// The commands of docs/archive-format.md, which this test runs.
fn commands() -> Vec<&'static str> {
    let text = include_str!("../../docs/archive-format.md");
    text.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap()).collect()
}

#[tokio::test]
async fn an_archive_is_listed_verified_and_unpacked_with_standard_tools() {
    let home = home(&[("s/one.jsonl", b"one\n"), ("s/two.jsonl", &noise(50_000, 5)), ("s/zeros", &vec![b'z'; 70_000])]);
    let long = format!("s/{}deep", "long name/".repeat(30));
    std::fs::create_dir_all(home.path().join(&long)).unwrap();
    std::fs::write(home.path().join(&long).join("file.txt"), b"deep").unwrap();
    let sparse = std::fs::File::create(home.path().join("s/disk.img")).unwrap();
    for n in 0..40 {
        sparse.write_all_at(b"data", n * (1 << 20)).unwrap();
    }
    sparse.set_len(100 << 20).unwrap();
    std::os::unix::fs::symlink("one.jsonl", home.path().join("s/two.link")).unwrap();
    std::fs::hard_link(home.path().join("s/two.jsonl"), home.path().join("s/two.again")).unwrap();
    // So many that the index is nested.
    for n in 0..3000 {
        std::os::unix::fs::symlink("/elsewhere", home.path().join(format!("s/far-{n}"))).unwrap();
    }
    let store = tempfile::tempdir().unwrap();
    let packed = packed(home.path(), &["s"], Unreadable::Block, SMALL);
    assert!(packed.manifest.entries.nested && packed.manifest.problems.nested);
    put(&Store::open(&format!("file://{}", store.path().display())).unwrap(), UID, &packed).await;
    let back = tempfile::tempdir().unwrap();
    assert!(commands().len() >= 4, "docs/archive-format.md has no commands");
    for (n, command) in commands().into_iter().enumerate() {
        let script = format!("STORE={} NEW={}\n{command}", store.path().display(), back.path().display());
        let run = Command::new("bash").args(["-c", &script]).env("UID_OF_COMPUTER", UID).env("SESSION", "s/two").output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&run.stdout).into_owned(), String::from_utf8_lossy(&run.stderr).into_owned());
        assert!(run.status.success(), "command {n} failed:\n{command}\n{out}\n{err}");
        assert!(n > 0 || out.matches("symlink\ts/far-").count() == 3000, "{out}");
    }
    for path in ["s/one.jsonl", "s/two.jsonl", "s/two.again", "s/zeros", "s/disk.img"] {
        let (was, is) = (home.path().join(path), back.path().join("all").join(path));
        assert!(std::fs::read(&was).unwrap() == std::fs::read(&is).unwrap(), "{path}");
        assert_eq!(was.metadata().unwrap().mtime(), is.metadata().unwrap().mtime(), "{path}");
    }
    assert_eq!(std::fs::read(back.path().join("all").join(&long).join("file.txt")).unwrap(), b"deep");
    assert!(back.path().join("all/s/disk.img").metadata().unwrap().blocks() < 2000, "holes are not restored");
    assert_eq!(std::fs::read_link(back.path().join("all/s/two.link")).unwrap().to_str(), Some("one.jsonl"));
    let alone = std::fs::read(back.path().join("one/s/two.jsonl")).unwrap();
    assert!(alone == noise(50_000, 5), "a session alone");
    assert!(!back.path().join("one/s/one.jsonl").exists());
    no_command_succeeds_without_an_object(store.path(), packed.chunks()[0]);
}

/// Without one of its chunks, nothing verifies or unpacks; without its whole manifest, nothing at all is read.
fn no_command_succeeds_without_an_object(store: &Path, first: &Blob) {
    let run = |command: &str| {
        let again = tempfile::tempdir().unwrap();
        let script = format!("STORE={} NEW={}\n{command}", store.display(), again.path().display());
        let run = Command::new("bash").args(["-c", &script]).env("UID_OF_COMPUTER", UID).env("SESSION", "s/two").output().unwrap();
        assert!(!run.status.success(), "succeeds without an object:\n{command}");
    };
    let chunk = store.join(super::chunk_key(UID, &first.chunk.digest));
    std::fs::remove_file(&chunk).unwrap();
    for command in &commands()[1..3] {
        run(command);
    }
    std::fs::write(&chunk, &first.bytes).unwrap();
    let manifest = store.join(super::manifest_key(UID));
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    for command in commands() {
        run(command);
    }
    std::fs::remove_file(&manifest).unwrap();
    for command in commands() {
        run(command);
    }
}
