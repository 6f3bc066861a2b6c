//! HTTP to the archive store without a total time limit. A request ends when it makes no progress, never because it is large or the
//! line is slow: `object_store` and `reqwest` have limits for whole requests only, and count them from the start of the request.
//!
//! Progress is a part of the request body that was written to the connection, or a frame of the response that arrived.

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
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use tokio::time::{Instant, Sleep};

/// Size of the parts in which a body is written: the grain of its progress.
const GRAIN: usize = 64 * 1024;
/// The slowest line that is waited for while the kernel still sends what was handed to it, bytes a second. It takes a few megabytes at
/// once, and does not tell how much of them has left.
const SLOWEST: u64 = 64 * 1024;

/// How long a request may make no progress.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Between two parts of a body, and for an answer.
    pub silence: Duration,
    /// For the answer to a POST, the completion of an upload: some stores copy all of it then.
    pub answer: Duration,
}

impl Default for Idle {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), answer: Duration::from_secs(300) }
    }
}

/// Makes clients that have idle limits only.
#[derive(Debug)]
pub struct IdleConnector(pub Idle);

impl HttpConnector for IdleConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(&options.clone().with_timeout_disabled())?;
        Ok(HttpClient::new(IdleService { client, idle: self.0 }))
    }
}

#[derive(Debug)]
struct IdleService {
    client: HttpClient,
    idle: Idle,
}

#[async_trait::async_trait]
impl HttpService for IdleService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = if request.method() == Method::POST { self.idle.answer } else { self.idle.silence };
        let size = request.body().content_length();
        let written = Arc::new(AtomicU64::new(0));
        let request = observed(request, &written).await?;
        let response = tokio::select! {
            response = self.client.execute(request) => response?,
            () = stalled(&written, size as u64, self.idle.silence, answer) => return Err(timed_out()),
        };
        let (parts, body) = response.into_parts();
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(IdleBody { body, silence: self.idle.silence, timer: None })))
    }
}

/// Ends when the body of a request makes no progress for `silence`, or when no answer came for `answer` after all of it was written.
async fn stalled(written: &AtomicU64, size: u64, silence: Duration, answer: Duration) {
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        let limit = if seen < size { silence } else { answer + Duration::from_secs(size.min(16 << 20) / SLOWEST) };
        tokio::time::sleep_until(since + limit.min(silence)).await;
        let now = written.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() >= limit {
            return;
        } else {
            tokio::time::sleep_until(since + limit).await;
        }
    }
}

/// The same request, whose body counts what of it was written: a part is dropped when the connection is done with it.
async fn observed(request: HttpRequest, written: &Arc<AtomicU64>) -> Result<HttpRequest, HttpError> {
    let (mut parts, mut body) = request.into_parts();
    let size = body.content_length();
    if size == 0 {
        return Ok(HttpRequest::from_parts(parts, body));
    }
    let mut grains = Vec::with_capacity(size / GRAIN + 1);
    while let Some(frame) = body.frame().await {
        let Ok(mut bytes) = frame?.into_data() else { continue };
        while !bytes.is_empty() {
            let part = bytes.split_to(GRAIN.min(bytes.len()));
            grains.push(Bytes::from_owner(Grain { part, written: Arc::clone(written) }));
        }
    }
    // A body of many parts has no length of its own.
    parts.headers.entry(CONTENT_LENGTH).or_insert(size.into());
    Ok(HttpRequest::from_parts(parts, HttpRequestBody::from(grains.into_iter().collect::<object_store::PutPayload>())))
}

struct Grain {
    part: Bytes,
    written: Arc<AtomicU64>,
}

impl AsRef<[u8]> for Grain {
    fn as_ref(&self) -> &[u8] {
        &self.part
    }
}

impl Drop for Grain {
    fn drop(&mut self) {
        self.written.fetch_add(self.part.len() as u64, Ordering::Relaxed);
    }
}

/// A response whose reader waits for each frame only so long. The time that the reader itself takes does not count.
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

/// A body that counts what is taken of it, in small parts.
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
