//! The state of one connection: whether the client has to send a request or the server has to answer it. It is shared by the stream, which enforces time
//! limits, and the service, which sees the requests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::connections::Seat;

/// The stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A request head is being read, or the first request is awaited.
    Head = 0,
    /// Nothing has been received since the last response was sent.
    Idle = 1,
    /// A request is being answered.
    Answering = 2,
    /// The whole response has been written, except for buffered bytes.
    Answered = 3,
}

/// The state of one connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Turn {
    seat: Arc<Seat>,
    /// The number of changes times four, plus the stage.
    state: Arc<AtomicU64>,
}

impl Turn {
    /// The state of a new connection.
    pub fn new(seat: Arc<Seat>) -> Self {
        Self { seat, state: Arc::default() }
    }

    /// The stage, and a number that changes with it.
    pub fn stage(&self) -> (Stage, u64) {
        let now = self.state.load(Ordering::Relaxed);
        let stage = match now % 4 {
            0 => Stage::Head,
            1 => Stage::Idle,
            2 => Stage::Answering,
            _ => Stage::Answered,
        };
        (stage, now)
    }

    /// The stream has been flushed: after a response the connection is idle.
    pub fn flushed(&self) {
        if self.stage().0 == Stage::Answered {
            self.set(Stage::Idle);
            self.seat.waits();
        }
    }

    /// Bytes of a request have been received.
    pub fn received(&self) {
        if self.stage().0 == Stage::Idle {
            self.set(Stage::Head);
        }
    }

    /// A request has been received.
    pub fn begins(&self) {
        self.seat.busy();
        self.set(Stage::Answering);
    }

    // Only the task of the connection changes its stage.
    fn set(&self, stage: Stage) {
        let changes = self.state.load(Ordering::Relaxed) / 4 + 1;
        self.state.store(changes * 4 + stage as u64, Ordering::Relaxed);
    }
}

/// The body of a response. When it is dropped, hyper has taken all of it.
pub struct Answering {
    body: Body,
    turn: Turn,
}

impl Answering {
    /// Wraps a response, so that the end of its body changes the stage.
    pub fn wrap<E>(answer: Result<Response<Body>, E>, turn: Turn) -> Response<Self>
    where
        E: Into<std::convert::Infallible>,
    {
        let answer = answer.unwrap_or_else(|never| match never.into() {});
        answer.map(|body| Self { body, turn })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.turn.set(Stage::Answered);
    }
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering").field("turn", &self.turn).finish_non_exhaustive()
    }
}
