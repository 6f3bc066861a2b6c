//! The archive pod's client of the ingest endpoint. It must never end a request that makes progress: bytes are sent, or the operator sends
//! a line, as it does every few seconds while it works on the request.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::{Body, Client, RequestBuilder, StatusCode};
use tokio::time::Instant;

use super::chunks::Blob;
use super::home_size::{self, SoFar};
use super::ingest::keep_alive;
use super::ingest::tls::SERVER_NAME;
use super::manifest::SMALL;
use super::transport::{counted, still};
use crate::runtime::ingest_url;

/// How long one request is repeated after its first failure before the pod gives up. The operator then creates another archive pod, which reads the whole home again.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longest pause between two attempts.
const PAUSE: Duration = Duration::from_secs(30);
/// Longest time without progress.
const SILENCE: Duration = Duration::from_secs(120);
/// Bytes of a body that are written at once: progress is measured in these.
const PART: usize = 64 * 1024;
/// The answer when so many wait for their turn that this request must come back.
const BUSY: StatusCode = StatusCode::TOO_MANY_REQUESTS;
/// Longest answer that is read, bytes.
const LONGEST: usize = 64 * 1024;

/// Sends to the ingest endpoint.
pub struct Sender {
    client: Client,
    base: String,
    token: PathBuf,
    silence: Duration,
    patience: Duration,
}

impl Sender {
    /// For one computer; the token is in a file.
    ///
    /// # Errors
    /// When the certificate cannot be used.
    pub fn new(url: &str, ca: &str, uid: &str, token: &Path) -> anyhow::Result<Self> {
        // The certificate is for a name: the address may change.
        let address = ingest_url::socket(url);
        let named = address.map(|address| format!("https://{SERVER_NAME}:{}", address.port()));
        let client = address.map_or_else(Client::builder, |address| Client::builder().resolve(SERVER_NAME, address));
        let client = client
            .tls_certs_only([reqwest::Certificate::from_pem(ca.as_bytes()).context("INGEST_CA")?])
            .connect_timeout(Duration::from_secs(5))
            // The default ends a connection whose peer reads nothing for 30 s, but a request waits for its turn with its body unread.
            .tcp_user_timeout(None)
            .no_proxy()
            .build()?;
        let base = format!("{}/ingest/v2/{uid}", named.as_deref().unwrap_or(url).trim_end_matches('/'));
        Ok(Self { client, base, token: token.to_owned(), silence: SILENCE, patience: PATIENCE })
    }

    /// With other limits, for tests.
    #[cfg(test)]
    #[must_use]
    pub fn with_limits(self, silence: Duration, patience: Duration) -> Self {
        Self { silence, patience, ..self }
    }

    /// Read for each request: the kubelet renews it.
    fn token(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(&self.token).context("the ingest token")?.trim().to_owned())
    }

    /// Stores a chunk. A chunk that exists already (from an earlier attempt) is not sent again, unless it is so small that the question costs as much: the
    /// operator reads it to answer, and is asked once. It shows what is then archived.
    ///
    /// # Errors
    /// When it is refused, or was not stored after some attempts.
    pub async fn chunk(&self, blob: &Blob, so_far: impl Fn() -> SoFar) -> anyhow::Result<()> {
        let url = format!("{}/chunks/{}", self.base, blob.chunk.digest);
        let ask = AtomicBool::new(blob.bytes.len() > SMALL);
        self.retry("chunk", || async {
            let so_far = so_far().value();
            if ask.load(Ordering::Relaxed) {
                let question = self.client.get(&url).header(home_size::HEADER, &so_far).header("content-length", 0);
                match self.send(question, futures::stream::empty()).await {
                    // The question comes back later.
                    Ok(busy @ (BUSY, _)) => return Ok(busy),
                    Ok(there @ (StatusCode::OK, _)) => return Ok(there),
                    // Without an answer the chunk is sent. An operator of an earlier version does not know the question.
                    _ => ask.store(false, Ordering::Relaxed),
                }
            }
            self.put(self.client.put(&url).header(home_size::HEADER, so_far), blob.bytes.clone()).await
        })
        .await
    }

    /// Stores the manifest.
    ///
    /// # Errors
    /// As [`Sender::chunk`].
    pub async fn manifest(&self, bytes: Vec<u8>) -> anyhow::Result<()> {
        let (url, bytes) = (format!("{}/manifest", self.base), Bytes::from(bytes));
        self.retry("manifest", || self.put(self.client.put(&url), bytes.clone())).await
    }

    async fn put(&self, request: RequestBuilder, bytes: Bytes) -> anyhow::Result<(StatusCode, String)> {
        let request = request.header("content-length", bytes.len());
        let parts: Vec<_> = (0..bytes.len()).step_by(PART).map(|at| Ok(bytes.slice(at..bytes.len().min(at + PART)))).collect();
        self.send(request, futures::stream::iter(parts)).await
    }

    /// Sends one request and waits for its outcome as long as it makes progress.
    async fn send<S>(&self, request: RequestBuilder, body: S) -> anyhow::Result<(StatusCode, String)>
    where
        S: futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let progress = Arc::new(AtomicU64::new(0));
        let body = Body::wrap_stream(counted(body, Arc::clone(&progress)));
        let request = request.bearer_auth(self.token()?).header(keep_alive::HEADER, "1").body(body);
        let answered = async {
            let answer = request.send().await?;
            let (status, progress_lines) = (answer.status(), answer.headers().contains_key(keep_alive::HEADER));
            let (mut text, mut parts) = (Vec::new(), answer.bytes_stream());
            while let Some(part) = parts.next().await {
                let part = part?;
                progress.fetch_add(part.len() as u64, Ordering::Relaxed);
                // Lines of progress carry no information once they have arrived.
                if text.iter().all(u8::is_ascii_whitespace) {
                    text.clear();
                }
                text.extend_from_slice(&part[..part.len().min(LONGEST.saturating_sub(text.len()))]);
            }
            let text = String::from_utf8_lossy(&text).into_owned();
            if !progress_lines {
                return Ok((status, text));
            }
            keep_alive::outcome(&text).context("the operator's answer is incomplete: the connection was closed")
        };
        tokio::select! {
            outcome = answered => outcome,
            () = still(&progress, self.silence) => bail!("no progress for {} s: the operator neither reads the request nor answers", self.silence.as_secs()),
        }
    }

    /// Retries temporary failures; a refusal is final for this attempt. Each request has the token of its time.
    async fn retry<F, R>(&self, what: &str, send: F) -> anyhow::Result<()>
    where
        F: Fn() -> R,
        R: Future<Output = anyhow::Result<(StatusCode, String)>>,
    {
        let (mut failing, mut pause, mut busy) = (None, Duration::from_secs(2), Duration::from_millis(250));
        loop {
            let error = match send().await {
                Ok((status, _)) if status.is_success() => return Ok(()),
                // That is no failure: the operator runs, and others have their turn first.
                Ok((BUSY, _)) => {
                    failing = None;
                    tokio::time::sleep(busy).await;
                    busy = (2 * busy).min(PAUSE);
                    continue;
                }
                Ok((status, text)) if status.is_client_error() && !may_pass(status) => {
                    bail!("the operator refused the {what}: {status} {text}");
                }
                Ok((status, text)) => anyhow::anyhow!("{status} {text}"),
                Err(error) => error,
            };
            // A large chunk may take longer than this on a slow line: only the time since the first failure counts.
            let last = failing.get_or_insert_with(Instant::now).elapsed() + pause > self.patience;
            println!("the {what} is not stored yet{}: {error:#}", if last { "" } else { ", retrying" });
            if last {
                return Err(error.context(format!("the {what} was not stored")));
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSE);
        }
    }
}

/// During an upgrade, a replica of the version before may answer: it does not know this address.
fn may_pass(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::REQUEST_TIMEOUT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
