//! Archives for tests: homes that are packed by the real code, in a store in memory.

use std::path::Path;
use std::sync::{Arc, Mutex};

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::chunks::{Blob, Sizes};
use super::home_size::Tally;
use super::index::Lines;
use super::manifest::tests::empty;
use super::manifest::{Chunk, Manifest};
use super::opened::Archive;
use super::pack::{Request, pack};
use super::problems::Problems;
use super::store::Store;
use super::unreadable::Unreadable;
use super::{chunk_key, manifest_key};

/// Small enough that a test has many frames and chunks.
pub const SMALL: Sizes = Sizes { frame: 4096, chunk: 3000 };
/// UID of the computer of these archives.
pub const UID: &str = "u";

/// A packed home.
pub struct Packed {
    pub manifest: Manifest,
    pub blobs: Vec<Blob>,
    pub problems: Problems,
    pub tally: Arc<Tally>,
}

impl Packed {
    /// Names of its chunks, without the index.
    pub fn chunks(&self) -> Vec<&Blob> {
        let named = |line: &[u8]| serde_json::from_slice::<Chunk>(line).ok();
        let lines = |piece: &Chunk| {
            let blob = self.blobs.iter().find(|blob| blob.chunk == *piece).unwrap();
            let text = zstd::decode_all(&blob.bytes[..]).unwrap();
            text.split(|b| *b == b'\n').filter_map(named).collect::<Vec<_>>()
        };
        let chunks: Vec<Chunk> = self.manifest.chunks.pieces.iter().flat_map(lines).collect();
        self.blobs.iter().filter(|blob| chunks.contains(&blob.chunk)).collect()
    }
}

pub fn packed(home: &Path, session_paths: &[&str], unreadable: Unreadable, sizes: Sizes) -> Packed {
    let (mut manifest, mut blobs) = (empty(UID), Vec::new());
    let session_paths: Vec<String> = session_paths.iter().map(|path| (*path).to_owned()).collect();
    let mut take = |blob| {
        blobs.push(blob);
        Ok(())
    };
    let tally = Arc::<Tally>::default();
    let request = Request { home, session_paths: &session_paths, unreadable, sizes, progress: Arc::default(), tally: Arc::clone(&tally) };
    let problems = pack(&request, &mut manifest, &mut take).unwrap();
    Packed { manifest, blobs, problems, tally }
}

/// An archive in a store.
pub struct Archived {
    pub store: Store,
    pub archive: Archive,
    pub objects: Arc<InMemory>,
}

impl Archived {
    pub async fn of(packed: Packed) -> Self {
        let objects = Arc::new(InMemory::new());
        let store = Store::new(Arc::<InMemory>::clone(&objects) as Arc<dyn ObjectStore>);
        put(&store, UID, &packed).await;
        Self { store, archive: Archive::New(Box::new(packed.manifest)), objects }
    }

    pub async fn entries(&self) -> Vec<super::Entry> {
        let (mut entries, mut all) = (self.archive.entries(&self.store), Vec::new());
        while let Some(entry) = entries.next().await.unwrap() {
            all.push(entry);
        }
        all
    }

    /// Ids of its sessions.
    pub async fn sessions(&self) -> Vec<String> {
        self.entries().await.into_iter().filter(|entry| entry.files > 0).map(|entry| entry.id).collect()
    }

    /// Its chunks in order.
    pub async fn chunks(&self) -> Vec<Chunk> {
        let Archive::New(manifest) = &self.archive else { panic!("an old archive") };
        let (mut lines, mut all) = (Lines::<Chunk>::new(&self.store, UID, &manifest.chunks), Vec::new());
        while let Some(chunk) = lines.next().await.unwrap() {
            all.push(chunk);
        }
        all
    }

    /// Changes a byte of the chunk in which a session begins.
    pub async fn damage_session(&self, id: &str) {
        let entry = self.entries().await.into_iter().find(|entry| entry.id == id).unwrap();
        let mut from = 0;
        for chunk in self.chunks().await {
            if entry.offset < from + chunk.size {
                let key = chunk_key(UID, &chunk.digest).as_str().into();
                let mut bytes = self.objects.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
                let at = usize::try_from(entry.offset - from).unwrap() + 20;
                bytes[at] ^= 1;
                self.objects.put(&key, bytes.into()).await.unwrap();
                return;
            }
            from += chunk.size;
        }
    }
}

/// Stores an archive.
pub async fn put(store: &Store, uid: &str, packed: &Packed) {
    for blob in &packed.blobs {
        store.put_once(&chunk_key(uid, &blob.chunk.digest), blob.bytes.clone()).await.unwrap();
    }
    store.put_once(&manifest_key(uid), serde_json::to_vec(&packed.manifest).unwrap()).await.unwrap();
}

/// A home with these files.
pub fn home(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    home
}

/// An archive of a whole home with these files, of many frames and chunks.
pub async fn archived(files: &[(&str, &[u8])]) -> Archived {
    let roots: Vec<&str> = files.iter().filter_map(|(path, _)| path.split_once('/').map(|(root, _)| root)).collect();
    Archived::of(packed(home(files).path(), &roots, Unreadable::Block, Sizes { frame: 4096, chunk: 100 })).await
}

/// Bytes that do not get smaller.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(size).collect()
}

/// An output that a test can look at.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    /// What was written since the last time.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
