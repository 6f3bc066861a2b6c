//! Tests of where chunks end, and of what is sent again after a change.

use std::collections::HashSet;

use super::*;
use crate::archive::manifest::{MAX_BYTES, PIECE};
use crate::archive::test_archives::{Packed, UID, noise};

const SIZES: Sizes = Sizes { frame: 20_000, chunk: 84_000 };

/// Writes entries of these contents.
fn written(entries: &[(String, Vec<u8>)]) -> Packed {
    let (mut manifest, mut blobs) = (crate::archive::manifest::tests::empty(UID), Vec::new());
    let mut take = |blob| {
        blobs.push(blob);
        Ok(())
    };
    let mut writer = Writer::new(SIZES, &mut take).unwrap();
    for (id, content) in entries {
        writer.write_all(content).unwrap();
        writer.end_entry(&Described { id: id.clone().into_bytes(), files: 1, ..Described::default() }).unwrap();
    }
    writer.finish(&mut manifest).unwrap();
    let problems = crate::archive::problems::Problems::default();
    Packed { manifest, blobs, problems, tally: std::sync::Arc::default() }
}

fn share_of(new: &Packed, old: &Packed) -> f64 {
    let known: HashSet<_> = old.chunks().iter().map(|blob| blob.chunk.digest.clone()).collect();
    let bytes = |known: &dyn Fn(&Blob) -> bool| new.chunks().iter().filter(|b| known(b)).map(|b| b.bytes.len()).sum::<usize>();
    #[allow(clippy::cast_precision_loss)]
    let share = bytes(&|blob| known.contains(&blob.chunk.digest)) as f64 / bytes(&|_| true) as f64;
    share
}

/// Chunks that are filled one after the other would all change with the first session.
#[test]
fn a_change_of_an_early_session_changes_only_the_chunks_around_it() {
    let small = (0..1200).map(|n| (format!("s/{n}"), noise(5_000, n)));
    let large = (0..4).map(|n| (format!("t/{n}"), noise(500_000, 10_000 + n)));
    let mut entries: Vec<_> = small.chain(large).collect();
    let before = written(&entries);
    assert!(before.blobs.iter().all(|blob| blob.bytes.len() <= SIZES.chunk), "a chunk is too large");
    let mean = before.manifest.stored_bytes / before.manifest.chunks.count;
    assert!(mean > SIZES.chunk as u64 / 4, "chunks are too small: {mean} on average");
    for change in [noise(5_000, 77), noise(4_000, 78), noise(9_000, 79), noise(100_000, 80), Vec::from(*b"x")] {
        entries[3].1 = change;
        let share = share_of(&written(&entries), &before);
        assert!(share >= 0.95, "{share}");
    }
    entries.remove(3);
    let share = share_of(&written(&entries), &before);
    assert!(share >= 0.95, "{share}");
}

/// L3: a tenant chooses the ids, and once made an object of each session of some bytes: their check took minutes in a slot for small archives.
#[test]
fn sessions_do_not_make_an_object_each() {
    let ends = |id: &String| ends_chunk(id.as_bytes(), 60, SIZES.chunk as u64 / 2);
    let by_chance = (0..).map(|n| format!("s/{n}")).filter(ends).take(200).map(|id| (id, noise(60, 1)));
    let zeros = (0..200).map(|n| (format!("t/{n}"), vec![0; 50_000]));
    let entries: Vec<_> = by_chance.chain(zeros).collect();
    let packed = written(&entries);
    assert!(packed.manifest.chunks.count <= 10, "{} chunks of {} bytes", packed.manifest.chunks.count, packed.manifest.stored_bytes);
}

/// The chunks in order are one file that zstd reads, and each is.
#[test]
fn chunks_are_whole_frames() {
    let entries: Vec<_> = (1..40).map(|n| (format!("s/{n}"), vec![b'a' + u8::try_from(n % 20).unwrap(); 1000 * n])).collect();
    let packed = written(&entries);
    let mut all = Vec::new();
    for blob in packed.chunks() {
        zstd::decode_all(&blob.bytes[..]).unwrap();
        all.extend_from_slice(&blob.bytes);
    }
    let plain = zstd::decode_all(&all[..]).unwrap();
    let wanted: Vec<u8> = entries.into_iter().flat_map(|(_, content)| content).chain(END).collect();
    assert!(plain == wanted && plain.len() as u64 == packed.manifest.tar_bytes && all.len() as u64 == packed.manifest.stored_bytes);
}

/// 5 TiB are 655,360 chunks, and a tenant may make any number of links with the longest names: a manifest has one MiB at most.
#[test]
fn a_manifest_stays_small_whatever_its_index_lists() {
    let chunk = serde_json::to_value(Chunk { digest: "0".repeat(64), size: CHUNK as u64 }).unwrap();
    // As JSON, a control character has six bytes.
    let link = serde_json::json!({"path": "\u{1}".repeat(4095), "kind": "symlink", "detail": "\u{1}".repeat(512)});
    for (line, lines, named) in [(chunk, 655_360, usize::MAX), (link, 4_000, NAMED)] {
        let (mut seen, mut largest) = (0_u64, 0);
        let mut take = |blob: Blob| {
            largest = largest.max(blob.bytes.len());
            seen += 1;
            Ok(())
        };
        let (mut list, mut compressor) = (Lines::new(FRAME, named), Compressor::new(1).unwrap());
        for _ in 0..lines {
            list.push(&line, &mut compressor, &mut take).unwrap();
        }
        let list = list.finish(&mut compressor, &mut take).unwrap();
        assert_eq!((list.count, list.nested), (lines, named == NAMED));
        assert!(list.pieces.len() <= NAMED && serde_json::to_vec(&list.pieces[0]).unwrap().len() * 2000 < MAX_BYTES / 4);
        assert!(largest <= PIECE && seen > 10);
    }
}
