//! The parts in which an object is stored, and the memory that they take. S3 takes 10,000 parts of one object, so the size of a part
//! follows from the size of the object. All parts but the last have one size: some S3 servers refuse anything else.

const MIB: u64 = 1024 * 1024;

/// How objects are cut.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Bytes of a part of an ordinary object.
    base: u64,
    /// Most parts of one object.
    most: u64,
}

/// Of a folder: a file has no parts, and is written in pieces of this size.
pub const PIECE: u64 = 8 * MIB;

impl Default for Parts {
    fn default() -> Self {
        Self { base: PIECE, most: 10_000 }
    }
}

impl Parts {
    /// With other bounds, for tests.
    pub const fn new(base: u64, most: u64) -> Self {
        Self { base, most }
    }

    /// Bytes of each part but the last of an object of this size.
    pub fn size(&self, object: u64) -> u64 {
        let needed = object.div_ceil(self.most);
        if needed <= self.base { self.base } else { needed.next_multiple_of(MIB) }
    }

    /// Parts of one object that are sent while the next one is received. A part that is larger than usual is sent before anything else
    /// is received.
    pub fn ahead(&self, object: u64) -> usize {
        if self.size(object) == self.base { 2 } else { 1 }
    }

    /// Most bytes in memory while an object of this size is stored.
    pub fn memory(&self, object: u64) -> u64 {
        if self.size(object) == self.base { 3 * self.base } else { self.size(object) + MIB }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;

    /// 10,000 parts of 8 MiB: nothing above 78 GiB could ever be stored.
    #[test]
    fn what_s3_takes_fits_in_its_parts() {
        let parts = Parts::default();
        let sizes = [0, 1, PIECE, 10_000 * PIECE, 10_000 * PIECE + 1, 100 << 30, TIB, 5 * TIB, 50_000_000_000_000];
        for size in sizes {
            let part = parts.size(size);
            assert!(size.div_ceil(part) <= 10_000, "{size} in parts of {part}");
            assert!(part >= PIECE && part % MIB == 0 && part <= 5 << 30, "{size}: {part}");
            assert!(parts.memory(size) >= parts.ahead(size) as u64 * part, "{size}");
        }
        assert_eq!((parts.size(10_000 * PIECE), parts.memory(10_000 * PIECE)), (PIECE, 3 * PIECE), "no more memory than before");
        assert_eq!((parts.size(10_000 * PIECE + 1), parts.ahead(10_000 * PIECE + 1)), (9 * MIB, 1));
        assert_eq!(parts.memory(5 * TIB), 526 * MIB, "docs/memory.md");
        assert!(
            parts.memory(10_000 * 143 * MIB) == 144 * MIB && 10_000 * 143 * MIB > TIB,
            "docs/memory.md: what the chart's limit has room for"
        );
    }
}
