//! The homes that are archived. What is generated is the same each time: the generator has a seed.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// Files of a home with many, and of one of its folders.
const FILES: (u64, u64) = (20_000, 100);
/// Words of the text.
const WORDS: usize = 4000;

/// What a home contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// One file of JSON lines, as an agent's session has them.
    Text,
    /// One file of random bytes.
    Noise,
    /// The same text in many files.
    Many,
    /// The source code of this project's dependencies.
    Tree,
}

impl Kind {
    /// In the order of the table.
    pub const ALL: [Self; 4] = [Self::Text, Self::Noise, Self::Many, Self::Tree];
}

/// A home that exists.
#[derive(Debug)]
pub struct Home {
    /// Its name in the table.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
}

/// Writes a home of about this many bytes into `folder`. The source code is used where it is.
pub fn prepare(kind: Kind, folder: &Path, size: u64, tree: &Path) -> Result<Home> {
    let path = if kind == Kind::Tree { tree.to_owned() } else { folder.join("home") };
    if kind != Kind::Tree {
        fs::create_dir_all(&path)?;
    }
    match kind {
        Kind::Text => text(&path.join("session.jsonl"), size, &vocabulary(), 1)?,
        Kind::Noise => noise(&path.join("session.bin"), size)?,
        Kind::Many => many(&path, size)?,
        Kind::Tree => {}
    }
    let (files, bytes) = measure(&path).with_context(|| format!("read {}", path.display()))?;
    let what = match kind {
        Kind::Text => "1 file of JSON lines",
        Kind::Noise => "1 file of random bytes",
        Kind::Many => "files of JSON lines",
        Kind::Tree => "files of source code",
    };
    #[allow(clippy::cast_precision_loss)] // For reading.
    let size = bytes as f64 / 1e6;
    let what = if files > 1 { format!("{files} {what}") } else { what.to_owned() };
    Ok(Home { name: format!("{what}, {size:.0} MB"), path, bytes })
}

fn many(path: &Path, size: u64) -> Result<()> {
    let ((files, each), words) = (FILES, vocabulary());
    for n in 0..files {
        let folder = path.join(format!("project-{:03}", n / each));
        fs::create_dir_all(&folder)?;
        text(&folder.join(format!("session-{n:05}.jsonl")), size / files, &words, n)?;
    }
    Ok(())
}

/// Regular files below a folder, and their bytes.
pub fn measure(folder: &Path) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (more, of_them) = match entry.file_type()? {
            kind if kind.is_dir() => measure(&entry.path())?,
            kind if kind.is_file() => (1, entry.metadata()?.len()),
            _ => (0, 0),
        };
        (files, bytes) = (files + more, bytes + of_them);
    }
    Ok((files, bytes))
}

fn noise(path: &Path, size: u64) -> Result<()> {
    let (mut file, mut random, mut block, mut left) = (File::create(path)?, StdRng::seed_from_u64(0), vec![0; 1 << 20], size);
    while left > 0 {
        random.fill_bytes(&mut block);
        let part = left.min(1 << 20);
        file.write_all(&block[..usize::try_from(part)?])?;
        left -= part;
    }
    Ok(())
}

/// JSON lines: times and ids that differ in each, and sentences of a vocabulary of which a few words are frequent.
fn text(path: &Path, size: u64, words: &[String], seed: u64) -> Result<()> {
    let (mut file, mut random) = (BufWriter::new(File::create(path)?), StdRng::seed_from_u64(seed));
    let (mut line, mut left, mut time) = (String::new(), usize::try_from(size)?, 1_700_000_000_000_u64);
    while left > 0 {
        line.clear();
        time += random.random_range(1..5000);
        let role = if random.random_bool(0.5) { "assistant" } else { "user" };
        write!(line, r#"{{"type":"{role}","time":{time},"uuid":"{:032x}","message":{{"role":"{role}","text":""#, random.random::<u128>())?;
        for _ in 0..random.random_range(5..120) {
            // The square of an even distribution: the first words are the most frequent.
            let rare: f64 = random.random();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Below the number of words.
            line.push_str(&words[(rare * rare * WORDS as f64) as usize]);
            line.push(' ');
        }
        writeln!(line, r#""}}}}"#)?;
        let part = line.len().min(left);
        file.write_all(&line.as_bytes()[..part])?;
        left -= part;
    }
    Ok(file.flush()?)
}

fn vocabulary() -> Vec<String> {
    let mut random = StdRng::seed_from_u64(7);
    let mut word = || (0..random.random_range(2..11)).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
    (0..WORDS).map(|_| word()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_the_same_each_time_and_have_their_size() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let read = |folder: &Path, kind| {
            let home = prepare(kind, folder, 300_001, Path::new("/nowhere")).unwrap();
            let name = if kind == Kind::Text { "session.jsonl" } else { "session.bin" };
            (home.name, home.bytes, fs::read(home.path.join(name)).unwrap())
        };
        for kind in [Kind::Text, Kind::Noise] {
            let (folder, again) = (first.path().join(format!("{kind:?}")), second.path().join(format!("{kind:?}")));
            let home = read(&folder, kind);
            assert_eq!(home.1, 300_001);
            assert_eq!(home, read(&again, kind));
        }
        let home = prepare(Kind::Many, first.path(), 200_000, Path::new("/nowhere")).unwrap();
        assert_eq!((home.name.as_str(), home.bytes), ("20000 files of JSON lines, 0 MB", 200_000));
    }
}
