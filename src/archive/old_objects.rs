//! Reads the objects of archives of version 1: each is the tar of one session. Their content must never be trusted: the window and the number of
//! bytes are bounded.

use std::io::Write;

use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use zstd::stream::write::Decoder;

use super::manifest::Entry;
use super::old_format::{WINDOW_LOG, object_key};
use super::reading::{ReadError, blocking};
use super::restore::RestoreError;
use super::store::{Store, StoreError};
use super::tar_scan::{Scanner, Sink};

/// Bytes of an object that are decompressed at once.
const AT_ONCE: usize = 1 << 20;

/// Reads an object and checks it against its entry.
///
/// # Errors
/// When it is missing or damaged, or the sink failed.
pub async fn read<S: Sink>(store: &Store, uid: &str, entry: Entry, sink: S) -> Result<S, ReadError> {
    let key = object_key(uid, &entry.digest);
    let mut stream = store.stream(&key).await?;
    let mut decoder = Decoder::new(Unpacked { scanner: Scanner::default(), sink, failed: None }).map_err(RestoreError::from)?;
    decoder.window_log_max(WINDOW_LOG).map_err(RestoreError::from)?;
    let (mut hash, mut pending, mut open) = (Sha256::new(), Vec::new(), true);
    while open {
        match stream.next().await {
            Some(bytes) => pending.extend_from_slice(&bytes.map_err(|e| StoreError::Unavailable(e.to_string()))?),
            None => open = false,
        }
        if open && pending.len() < AT_ONCE {
            continue;
        }
        let (bytes, most) = (std::mem::take(&mut pending), entry.bytes);
        (decoder, hash) = blocking(move || {
            hash.update(&bytes);
            let written = decoder.write_all(&bytes).and_then(|()| if open { Ok(()) } else { decoder.flush() });
            if let Some(error) = decoder.get_mut().failed.take() {
                return Err(error);
            }
            written?;
            if decoder.get_ref().scanner.bytes > most {
                return Err(RestoreError::Damaged("it contains more than the manifest says".to_owned()));
            }
            Ok((decoder, hash))
        })
        .await
        .map_err(|error| named(&key, error))?;
    }
    let found = hex::encode(hash.finalize());
    let Unpacked { scanner, sink, .. } = decoder.into_inner();
    let damaged = |why: String| named(&key, RestoreError::Damaged(why).into());
    if found != entry.digest {
        return Err(damaged(format!("its bytes have sha256 {found}")));
    }
    if !scanner.ended() {
        return Err(damaged("its tar has no end".to_owned()));
    }
    if (scanner.files, scanner.bytes) != (entry.files, entry.bytes) {
        let (files, bytes) = (scanner.files, scanner.bytes);
        return Err(damaged(format!("it contains {files} files of {bytes} bytes, not {} of {}", entry.files, entry.bytes)));
    }
    Ok(sink)
}

fn named(key: &str, error: ReadError) -> ReadError {
    match error {
        ReadError::Content(RestoreError::Damaged(why)) => ReadError::Content(RestoreError::Damaged(format!("{key}: {why}"))),
        other => other,
    }
}

/// Scans what is decompressed.
struct Unpacked<S> {
    scanner: Scanner,
    sink: S,
    failed: Option<RestoreError>,
}

impl<S: Sink> Write for Unpacked<S> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.scanner.feed(bytes, &mut self.sink).map_err(|error| {
            let shown = std::io::Error::other(error.to_string());
            self.failed = Some(error);
            shown
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
