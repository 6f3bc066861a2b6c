//! HTTP to the archive store without a total time limit. A request must never end because it is large or the connection is slow, only when
//! it makes no progress. `object_store` and `reqwest` only have time limits for whole requests, counted from the start of the request.
//!
//! Progress is a part of the request body that the connection has accepted, or a frame of the response that has arrived.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::Method;
use axum::http::header::CONTENT_LENGTH;
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService};
use tokio::time::{Instant, Sleep};

mod client;

use client::Client;

/// Size of the parts in which a body is written: progress is measured in these.
const GRAIN: usize = 64 * 1024;
/// The slowest connection that is waited for while the kernel sends its buffer, bytes per second. The kernel buffers a few megabytes and
/// does not report how much of them has been sent.
const SLOWEST: u64 = 64 * 1024;

/// How long a request may make no progress.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Between two parts of a body, and for an answer.
    pub silence: Duration,
    /// For the answer to a POST, which completes an upload: some stores then copy the whole object.
    pub answer: Duration,
}

impl Default for Idle {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), answer: Duration::from_secs(300) }
    }
}

/// Creates clients with idle limits only.
#[derive(Debug)]
pub struct IdleConnector {
    /// The limits.
    pub idle: Idle,
    /// A PEM file of certificate authorities that are trusted in addition to those of the system.
    pub ca_file: Option<PathBuf>,
}

impl HttpConnector for IdleConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = Client::new(options.clone(), self.ca_file.clone())
            .map_err(|why| object_store::Error::Generic { store: "S3", source: why.into() })?;
        Ok(HttpClient::new(IdleService { client, idle: self.idle }))
    }
}

#[derive(Debug)]
struct IdleService {
    client: Client,
    idle: Idle,
}

#[async_trait::async_trait]
impl HttpService for IdleService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = if request.method() == Method::POST { self.idle.answer } else { self.idle.silence };
        let size = request.body().content_length();
        let taken = Arc::new(AtomicU64::new(0));
        let request = observed(request, &taken).await?;
        let response = tokio::select! {
            response = self.client.current().execute(request) => response.map_err(failed)?,
            () = stalled(&taken, size as u64, self.idle.silence, answer) => return Err(timed_out()),
        };
        let (parts, body) = axum::http::Response::<reqwest::Body>::from(response).into_parts();
        let body = HttpResponseBody::new(body.map_err(failed));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(IdleBody { body, silence: self.idle.silence, timer: None })))
    }
}

/// The kind determines what `object_store` retries.
fn failed(error: reqwest::Error) -> HttpError {
    use std::io::ErrorKind;
    let mut kind = match () {
        () if error.is_timeout() => HttpErrorKind::Timeout,
        () if error.is_connect() => HttpErrorKind::Connect,
        () if error.is_decode() => HttpErrorKind::Decode,
        () => HttpErrorKind::Unknown,
    };
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source.filter(|_| kind == HttpErrorKind::Unknown) {
        if let Some(cause) = cause.downcast_ref::<hyper::Error>()
            && (cause.is_closed() || cause.is_incomplete_message() || cause.is_body_write_aborted())
        {
            kind = HttpErrorKind::Request;
        }
        if let Some(cause) = cause.downcast_ref::<std::io::Error>() {
            kind = match cause.kind() {
                ErrorKind::TimedOut => HttpErrorKind::Timeout,
                ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
                    HttpErrorKind::Interrupted
                }
                _ => kind,
            };
        }
        source = cause.source();
    }
    HttpError::new(kind, error.without_url())
}

/// Ends when the body of a request makes no progress for `silence`, or when no answer arrives within `answer` after the whole body was
/// written.
async fn stalled(taken: &AtomicU64, size: u64, silence: Duration, answer: Duration) {
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        let limit = if seen < size { silence } else { answer + Duration::from_secs(size.min(16 << 20) / SLOWEST) };
        tokio::time::sleep_until(since + limit.min(silence)).await;
        let now = taken.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() >= limit {
            return;
        } else {
            tokio::time::sleep_until(since + limit).await;
        }
    }
}

/// The same request with a body that counts the bytes that the connection accepts. The connection accepts only what it has room for.
async fn observed(request: HttpRequest, taken: &Arc<AtomicU64>) -> Result<reqwest::Request, HttpError> {
    let (parts, mut body) = request.into_parts();
    let url = parts.uri.to_string().parse().map_err(|e| HttpError::new(HttpErrorKind::Unknown, std::io::Error::other(format!("{e}"))))?;
    let mut request = reqwest::Request::new(parts.method, url);
    *request.headers_mut() = parts.headers;
    let size = body.content_length();
    if size == 0 {
        return Ok(request);
    }
    let mut grains = Vec::with_capacity(size / GRAIN + 1);
    while let Some(frame) = body.frame().await {
        let Ok(mut bytes) = frame?.into_data() else { continue };
        while !bytes.is_empty() {
            grains.push(Ok(bytes.split_to(GRAIN.min(bytes.len()))));
        }
    }
    // A stream has no length.
    request.headers_mut().entry(CONTENT_LENGTH).or_insert(size.into());
    *request.body_mut() = Some(reqwest::Body::wrap_stream(counted(futures::stream::iter(grains), Arc::clone(taken))));
    Ok(request)
}

/// A response whose reader waits a limited time for each frame. Time between two reads does not count.
struct IdleBody {
    body: HttpResponseBody,
    silence: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Body for IdleBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.timer = None;
            return Poll::Ready(frame);
        }
        let silence = this.silence;
        ready!(this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence))).as_mut().poll(context));
        Poll::Ready(Some(Err(timed_out())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn timed_out() -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, std::io::Error::new(std::io::ErrorKind::TimedOut, "no progress in time"))
}

/// A body that counts the bytes that are read from it, in small parts.
pub fn counted<S>(body: S, taken: Arc<AtomicU64>) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send
where
    S: futures::Stream<Item = std::io::Result<Bytes>> + Send,
{
    body.inspect(move |part| {
        taken.fetch_add(part.as_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
    })
}

/// Ends when `taken` did not change for `silence`.
pub async fn still(taken: &AtomicU64, silence: Duration) {
    let mut seen = taken.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(silence).await;
        let now = taken.load(Ordering::Relaxed);
        if now == seen {
            return;
        }
        seen = now;
    }
}
