//! Whose turn it is on one connection: the peer's, which is to send a request, or ours, who answer it. The stream, which has the time
//! limits, and the service, which sees the requests, share it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::connections::Seat;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A request's head is being read, or the first one is waited for.
    Head = 0,
    /// Nothing has come since the last answer was sent.
    Idle = 1,
    /// A request is being answered.
    Answering = 2,
    /// The whole answer has been written, but for what is still buffered.
    Answered = 3,
}

/// The state of one connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Turn {
    seat: Arc<Seat>,
    /// How often the stage has changed, times four, and the stage.
    state: Arc<AtomicU64>,
}

impl Turn {
    /// Of a new connection.
    pub fn new(seat: Arc<Seat>) -> Self {
        Self { seat, state: Arc::default() }
    }

    /// The stage, and a number that is another one after each change.
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

    /// All that was written is on its way, and nothing of a next request has come: called by the stream when it is flushed.
    pub fn flushed(&self) {
        if self.stage().0 == Stage::Answered {
            self.set(Stage::Idle);
            self.seat.waits();
        }
    }

    /// The first bytes of a request have come.
    pub fn heard(&self) {
        if self.stage().0 == Stage::Idle {
            self.set(Stage::Head);
        }
    }

    /// A request is there.
    pub fn begins(&self) {
        self.seat.busy();
        self.set(Stage::Answering);
    }

    // Stages of one connection change in its own task only.
    fn set(&self, stage: Stage) {
        let changes = self.state.load(Ordering::Relaxed) / 4 + 1;
        self.state.store(changes * 4 + stage as u64, Ordering::Relaxed);
    }
}

/// The body of an answer; when it is dropped, hyper has all of it.
pub struct Answering {
    body: Body,
    turn: Turn,
}

impl Answering {
    /// Any answer with a body that tells the turn of its end.
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
