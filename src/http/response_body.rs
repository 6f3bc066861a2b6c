//! A response body that keeps the resources of its request (its slot, its tenant's share, its memory) until the last byte has left the process.
//!
//! hyper takes a body frame by frame and drops it once it has the last frame, even if the client reads that frame slowly. Frames are therefore split into
//! pieces, which hyper takes only as fast as the client reads, and every piece keeps the resources alive.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// Size of a piece in bytes.
const PIECE: usize = 16 * 1024;

/// A body that keeps `H` alive until it has been sent.
pub struct Sending<H> {
    body: Body,
    /// The rest of the current frame.
    rest: Bytes,
    held: Arc<H>,
    /// Bytes that hyper has taken.
    sent: Arc<AtomicU64>,
}

/// The bytes of a frame. Splitting them is cheap, and dropping the last piece drops them.
struct Holding<H> {
    bytes: Bytes,
    _held: Arc<H>,
}

impl<H> AsRef<[u8]> for Holding<H> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<H> Sending<H> {
    /// Keeps `held` until the body has been sent or cancelled, and counts the bytes that hyper takes.
    pub fn new(body: Body, held: H, sent: Arc<AtomicU64>) -> Self {
        Self { body, rest: Bytes::new(), held: Arc::new(held), sent }
    }
}

impl<H: Send + Sync + 'static> HttpBody for Sending<H> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = Bytes::from_owner(Holding { bytes, _held: Arc::clone(&self.held) }),
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return Poll::Ready(other),
            }
        }
        let length = self.rest.len().min(PIECE);
        self.sent.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let of_body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn the_resources_are_released_with_the_last_piece() {
        let held = Arc::new(());
        let count = || Arc::strong_count(&held);
        let bytes: Vec<u8> = (0..=3 * PIECE).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let sent = Arc::new(AtomicU64::new(0));
        let mut body = Body::new(Sending::new(Body::from(bytes.clone()), Arc::clone(&held), Arc::clone(&sent)));
        assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            pieces.push(frame.unwrap().into_data().unwrap());
            assert!(pieces.last().unwrap().len() <= PIECE);
        }
        drop(body);
        assert_eq!(sent.load(Ordering::Relaxed), bytes.len() as u64);
        assert_eq!((pieces.concat() == bytes, count()), (true, 2), "hyper has the whole body, but the client does not");
        pieces.drain(1..);
        assert_eq!(count(), 2);
        pieces.clear();
        assert_eq!(count(), 1);
        drop(Sending::new(Body::from("given up"), Arc::clone(&held), Arc::default()));
        assert_eq!(count(), 1);
        assert!(Sending::new(Body::empty(), (), Arc::default()).is_end_stream());
    }
}
