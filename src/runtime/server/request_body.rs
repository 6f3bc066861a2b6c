//! The body of a request, which knows whether it has been read to its end. A connection cannot be reused while a part of a request is unread: hyper closes it
//! after the response, so the response must say so. Otherwise a client may send its next request on a connection that is being closed, and cannot know
//! whether that request was served (RFC 9112, 9.6).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response};
use hyper::body::{Body, Frame, SizeHint};

/// The body of a request.
#[derive(Debug)]
pub struct Received<B> {
    body: B,
    unread: Unread,
}

/// Whether a part of the body of a request is still unread. Clones share it.
#[derive(Clone, Debug)]
pub struct Unread(Arc<AtomicBool>);

impl<B: Body> Received<B> {
    /// Wraps the body of a request.
    pub fn of(request: Request<B>) -> (Request<Self>, Unread) {
        let unread = Unread(Arc::new(AtomicBool::new(!request.body().is_end_stream())));
        let shared = unread.clone();
        (request.map(|body| Self { body, unread }), shared)
    }
}

impl Unread {
    /// Announces in the response that the connection will be closed, if the request was not read to its end.
    pub fn announce<T>(&self, mut response: Response<T>) -> Response<T> {
        if self.0.load(Ordering::Relaxed) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl<B: Body + Unpin> Body for Received<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.unread.0.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
