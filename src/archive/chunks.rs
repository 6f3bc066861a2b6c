//! Writes the objects of an archive: the tar in compressed frames, frames gathered into chunks, and the index of both. Memory is bounded by
//! one frame, one chunk and one piece of each list of the index.
//!
//! Chunk boundaries depend on the content near them, so that a change of one session changes only the chunks around it: a large session has
//! chunks of its own, and after a small one a hash of its id decides whether the chunk ends there. A tenant chooses the sessions, so a
//! chunk has a least size.

use std::io::{Result, Write};

use base64::Engine as _;
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use zstd::bulk::Compressor;

use super::manifest::{CHUNK, Chunk, Entry, FRAME, List, Manifest, Problem};
use super::tar_header::END;
use super::while_hashed::while_hashed;

/// Level of compression. Another level, or another version of zstd, makes other chunks of the same home: an attempt after an upgrade sends
/// everything again.
const LEVEL: i32 = 3;
/// The part of the largest chunk that a chunk has before it ends because of a session.
const LEAST: usize = 8;
/// Pieces of a list that the manifest names itself.
const NAMED: usize = if cfg!(test) { 40 } else { 2000 };

/// An object for the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its name and size.
    pub chunk: Chunk,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Blob {
    fn new(bytes: Vec<u8>, digest: impl AsRef<[u8]>) -> Self {
        let chunk = Chunk { digest: hex::encode(digest), size: bytes.len() as u64 };
        Self { chunk, bytes: bytes.into() }
    }
}

/// Takes an object: it is sent meanwhile.
pub type Take<'a> = dyn FnMut(Blob) -> Result<()> + 'a;

/// Sizes of what is written.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Most bytes of a frame, decompressed.
    pub frame: usize,
    /// Most bytes of a chunk.
    pub chunk: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { frame: FRAME, chunk: CHUNK }
    }
}

/// Writes an archive.
pub struct Writer<'a> {
    take: &'a mut Take<'a>,
    compressor: Compressor<'static>,
    sizes: Sizes,
    /// The frame that is being filled.
    plain: Vec<u8>,
    /// The chunk that is being filled.
    chunk: Vec<u8>,
    /// Bytes of the chunks before it, and their digest.
    before: u64,
    stored: Sha256,
    tar_bytes: u64,
    /// The current entry: digest of its tar, bytes of its tar, where its frames begin, and how many there are.
    digest: Sha256,
    of_entry: u64,
    offset: u64,
    frames: u64,
    chunks: Lines,
    entries: Lines,
    problems: Lines,
}

/// What an entry is, besides its place.
#[derive(Clone, Debug, Default)]
pub struct Described {
    /// Its id as the home has it.
    pub id: Vec<u8>,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Newest modification.
    pub last_modified: i64,
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let taken = bytes.len().min(self.sizes.frame - self.plain.len());
        self.plain.extend_from_slice(&bytes[..taken]);
        if self.plain.len() == self.sizes.frame {
            self.frame()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl<'a> Writer<'a> {
    /// Gives the objects to `take`, in order.
    ///
    /// # Errors
    /// When there is no memory for the compressor.
    pub fn new(sizes: Sizes, take: &'a mut Take<'a>) -> Result<Self> {
        Ok(Self {
            take,
            compressor: Compressor::new(LEVEL)?,
            sizes,
            plain: Vec::with_capacity(sizes.frame),
            chunk: Vec::new(),
            before: 0,
            stored: Sha256::new(),
            tar_bytes: 0,
            digest: Sha256::new(),
            of_entry: 0,
            offset: 0,
            frames: 0,
            // Pieces of 2000 times 20,000 chunks are more than any volume has.
            chunks: Lines::new(sizes.frame, usize::MAX),
            entries: Lines::new(sizes.frame, NAMED),
            problems: Lines::new(sizes.frame, NAMED),
        })
    }

    /// The entry is complete: what was written since the one before is its part of the tar.
    ///
    /// # Errors
    /// When an object is not taken.
    pub fn end_entry(&mut self, described: &Described) -> Result<()> {
        self.frame()?;
        if self.frames == 0 {
            return Err(std::io::Error::other("an entry of the archive has no content"));
        }
        let size = self.before + self.chunk.len() as u64 - self.offset;
        let entry = Entry {
            id: String::from_utf8_lossy(&described.id).into_owned(),
            id_bytes: exact(&described.id),
            files: described.files,
            bytes: described.bytes,
            last_modified: described.last_modified,
            digest: hex::encode(std::mem::take(&mut self.digest).finalize()),
            tar_bytes: self.of_entry,
            offset: self.offset,
            size,
        };
        self.entries.push(&entry, &mut self.compressor, self.take)?;
        let large = self.frames > 1;
        (self.of_entry, self.frames) = (0, 0);
        let ends = large || ends_chunk(&described.id, size, self.sizes.chunk as u64 / 2);
        if ends && self.chunk.len() >= self.sizes.chunk / LEAST { self.seal() } else { Ok(()) }
    }

    /// Lists a problem.
    ///
    /// # Errors
    /// When an object is not taken.
    pub fn problem(&mut self, problem: &Problem) -> Result<()> {
        self.problems.push(problem, &mut self.compressor, self.take)
    }

    /// Writes the end of the tar and of the index. The manifest gets what it says about them.
    ///
    /// # Errors
    /// When an object is not taken.
    pub fn finish(mut self, manifest: &mut Manifest) -> Result<()> {
        self.plain.extend_from_slice(&END);
        self.frame()?;
        self.seal()?;
        manifest.stored_bytes = self.before;
        manifest.stored_digest = hex::encode(self.stored.finalize());
        manifest.tar_bytes = self.tar_bytes;
        for (lines, list) in
            [(self.chunks, &mut manifest.chunks), (self.entries, &mut manifest.entries), (self.problems, &mut manifest.problems)]
        {
            *list = lines.finish(&mut self.compressor, self.take)?;
        }
        Ok(())
    }

    /// Ends a frame. It lies whole within one chunk.
    fn frame(&mut self) -> Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let frame = while_hashed(&mut self.digest, &self.plain, || self.compressor.compress(&self.plain))?;
        // The first frame of a session that is going to have chunks of its own.
        let large = self.frames == 0 && self.plain.len() == self.sizes.frame && frame.len() >= self.sizes.chunk / LEAST;
        if large || self.chunk.len() + frame.len() > self.sizes.chunk {
            self.seal()?;
        }
        if self.frames == 0 {
            self.offset = self.before + self.chunk.len() as u64;
        }
        self.frames += 1;
        self.of_entry += self.plain.len() as u64;
        self.tar_bytes += self.plain.len() as u64;
        self.plain.clear();
        self.chunk.extend_from_slice(&frame);
        Ok(())
    }

    /// Ends a chunk.
    fn seal(&mut self) -> Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.chunk);
        let digest = while_hashed(&mut self.stored, &bytes, || Sha256::digest(&bytes));
        let blob = Blob::new(bytes, digest);
        self.before += blob.chunk.size;
        self.chunks.push(&blob.chunk, &mut self.compressor, self.take)?;
        (self.take)(blob)
    }
}

/// Whether a chunk ends after this small entry: chunks have `mean` bytes on average. Only the entry itself decides.
fn ends_chunk(id: &[u8], size: u64, mean: u64) -> bool {
    let digest = Sha256::digest(id);
    let chance = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    u128::from(chance) * u128::from(mean.max(1)) < u128::from(size) << 64
}

/// The exact bytes of a name that is not UTF-8, base64.
fn exact(name: &[u8]) -> Option<String> {
    std::str::from_utf8(name).is_err().then(|| base64::engine::general_purpose::STANDARD.encode(name))
}

/// Lines in pieces.
struct Pieces {
    /// Bytes of the lines of a piece.
    most: usize,
    text: Vec<u8>,
    done: Vec<Chunk>,
}

impl Pieces {
    fn new(most: usize) -> Self {
        Self { most, text: Vec::new(), done: Vec::new() }
    }

    fn push(&mut self, line: &impl Serialize, compressor: &mut Compressor<'_>, take: &mut Take<'_>) -> Result<()> {
        let line = serde_json::to_vec(line)?;
        if self.text.len() + line.len() >= self.most {
            self.end(compressor, take)?;
        }
        self.text.extend_from_slice(&line);
        self.text.push(b'\n');
        Ok(())
    }

    fn end(&mut self, compressor: &mut Compressor<'_>, take: &mut Take<'_>) -> Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        let bytes = compressor.compress(&self.text)?;
        let digest = Sha256::digest(&bytes);
        let blob = Blob::new(bytes, digest);
        self.text.clear();
        self.done.push(blob.chunk.clone());
        take(blob)
    }
}

/// A list of the index. If it has many pieces, their list is in pieces itself: the manifest has a bound, whatever the home contains.
struct Lines {
    pieces: Pieces,
    count: u64,
    /// Most pieces that the manifest names itself.
    named: usize,
    of_pieces: Option<Pieces>,
}

impl Lines {
    fn new(most: usize, named: usize) -> Self {
        Self { pieces: Pieces::new(most), count: 0, named, of_pieces: None }
    }

    fn push(&mut self, line: &impl Serialize, compressor: &mut Compressor<'_>, take: &mut Take<'_>) -> Result<()> {
        self.count += 1;
        self.pieces.push(line, compressor, take)?;
        if self.pieces.done.len() > self.named { self.nest(compressor, take) } else { Ok(()) }
    }

    fn nest(&mut self, compressor: &mut Compressor<'_>, take: &mut Take<'_>) -> Result<()> {
        let most = self.pieces.most;
        let outer = self.of_pieces.get_or_insert_with(|| Pieces::new(most));
        std::mem::take(&mut self.pieces.done).iter().try_for_each(|piece| outer.push(piece, compressor, take))
    }

    fn finish(mut self, compressor: &mut Compressor<'_>, take: &mut Take<'_>) -> Result<List> {
        self.pieces.end(compressor, take)?;
        if self.of_pieces.is_some() {
            self.nest(compressor, take)?;
        }
        match self.of_pieces {
            None => Ok(List { count: self.count, pieces: self.pieces.done, nested: false }),
            Some(mut outer) => {
                outer.end(compressor, take)?;
                Ok(List { count: self.count, pieces: outer.done, nested: true })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
