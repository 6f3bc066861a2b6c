//! A response body that keeps the resources of its request (its slot, its tenant's share, its memory) until the last byte has left the process.
//!
//! hyper takes a body frame by frame and drops it once it has the last frame, even if the client reads that frame slowly. Frames are therefore split into
//! pieces, which hyper takes only as fast as the client reads, and every piece keeps the resources alive.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Size of a piece in bytes.
const PIECE: usize = 16 * 1024;

/// How far a response has been sent. Time in which hyper waits for the next bytes of this server does not make its client slow.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that hyper has taken.
    pub bytes: AtomicU64,
    clock: Mutex<Clock>,
}

#[derive(Debug, Default)]
struct Clock {
    /// When the first bytes were taken.
    first: Option<Instant>,
    /// Time in which the next bytes were not ready.
    waited: Duration,
    /// Since when they are not ready.
    since: Option<Instant>,
}

impl Progress {
    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock()
    }

    /// The next bytes are not ready.
    pub fn waits(&self) {
        self.clock().since.get_or_insert_with(Instant::now);
    }

    /// hyper has taken this many bytes.
    pub fn taken(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut clock = self.clock();
        let waited = clock.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        clock.waited += waited;
        clock.first.get_or_insert_with(Instant::now);
    }

    /// How long the next bytes were not ready, in total.
    pub fn waited(&self, now: Instant) -> Duration {
        let clock = self.clock();
        clock.waited + clock.since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// When the first bytes were taken.
    pub fn first(&self) -> Option<Instant> {
        self.clock().first
    }
}

/// A body that keeps `H` alive until it has been sent.
pub struct Sending<H> {
    body: Body,
    /// The rest of the current frame.
    rest: Bytes,
    held: Arc<H>,
    sent: Arc<Progress>,
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
    /// Keeps `held` until the body has been sent or cancelled, and counts what hyper takes.
    pub fn new(body: Body, held: H, sent: Arc<Progress>) -> Self {
        Self { body, rest: Bytes::new(), held: Arc::new(held), sent }
    }
}

impl<H: Send + Sync + 'static> HttpBody for Sending<H> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let Poll::Ready(next) = Pin::new(&mut self.body).poll_frame(context) else {
                self.sent.waits();
                return Poll::Pending;
            };
            match next {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = Bytes::from_owner(Holding { bytes, _held: Arc::clone(&self.held) }),
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return Poll::Ready(other),
            }
        }
        let length = self.rest.len().min(PIECE);
        self.sent.taken(length as u64);
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

    /// L9: a store that took long made its client a slow one, whose response was ended.
    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_server_has_nothing_to_send_is_not_the_clients() {
        const LONG: Duration = Duration::from_secs(30);
        let parts = futures::stream::unfold(0, |n| async move {
            tokio::time::sleep(LONG).await;
            (n < 2).then(|| (Ok::<_, std::convert::Infallible>("part"), n + 1))
        });
        let sent = Arc::new(Progress::default());
        let mut body = Body::new(Sending::new(Body::from_stream(parts), (), Arc::clone(&sent)));
        body.frame().await.unwrap().unwrap();
        assert_eq!((sent.waited(Instant::now()), sent.first()), (LONG, Some(Instant::now())));
        tokio::time::sleep(LONG).await;
        assert_eq!(sent.waited(Instant::now()), LONG, "the client takes its time");
        body.frame().await.unwrap().unwrap();
        assert_eq!(sent.waited(Instant::now()), 2 * LONG);
    }

    #[tokio::test]
    async fn the_resources_are_released_with_the_last_piece() {
        let held = Arc::new(());
        let count = || Arc::strong_count(&held);
        let bytes: Vec<u8> = (0..=3 * PIECE).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let sent = Arc::new(Progress::default());
        let mut body = Body::new(Sending::new(Body::from(bytes.clone()), Arc::clone(&held), Arc::clone(&sent)));
        assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            pieces.push(frame.unwrap().into_data().unwrap());
            assert!(pieces.last().unwrap().len() <= PIECE);
        }
        drop(body);
        assert_eq!(sent.bytes.load(Ordering::Relaxed), bytes.len() as u64);
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
