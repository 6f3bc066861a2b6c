//! A digest that is computed in another thread, while the caller works on the same bytes. Hashing runs beside the compression of an archive pod and the
//! decompression of a read-back: one after the other, they take almost twice as long on two processors.

use std::thread;

use sha2::{Digest as _, Sha256};

/// Fewer bytes take less time than a thread costs.
const WORTH: usize = 256 * 1024;

/// Adds `bytes` to `digest` while `work` is done. Where no thread can be started, before or after it.
pub fn while_hashed<T>(digest: &mut Sha256, bytes: &[u8], work: impl FnOnce() -> T) -> T {
    if bytes.len() < WORTH {
        digest.update(bytes);
        return work();
    }
    thread::scope(|scope| {
        let before = digest.clone();
        let hashing = thread::Builder::new().spawn_scoped(scope, move || before.chain_update(bytes));
        let done = work();
        match hashing.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(after)) => *digest = after,
            _ => digest.update(bytes),
        }
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_all_bytes_in_order() {
        let (mut digest, mut all) = (Sha256::new(), Vec::new());
        for size in [0, 1, WORTH - 1, WORTH, 3 * WORTH + 1] {
            let bytes: Vec<u8> = (0..=250_u8).cycle().take(size).collect();
            let mut seen = 0;
            let done = while_hashed(&mut digest, &bytes, || {
                seen = bytes.len();
                size + 1
            });
            assert_eq!((done, seen), (size + 1, size));
            all.extend_from_slice(&bytes);
        }
        assert_eq!(digest.finalize(), Sha256::digest(&all));
    }
}
