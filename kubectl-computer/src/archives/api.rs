//! Requests to the HTTP API. The token must never be printed, and never leave this machine without TLS.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::answer::Answer;
use super::args::ApiFlags;
use super::fault::{Cost, Fault};
use super::pace::{Pace, WAITS, Waits};
use super::target::Target;
use super::token::Token;
use crate::args::Global;
use crate::screen;
use crate::text::plain;

/// How long the API may be silent, and how often it is asked again.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time without a byte of a list.
    pub list: Duration,
    /// Longest time without a byte of an archive or of what it contains.
    pub read: Duration,
    /// Waits between requests.
    pub waits: Waits,
}

/// The API is silent while the operator reads from the store, on whatever line, and while it repeats a read that fails, for ten minutes. A peer that is gone is
/// noticed earlier, by [`ALIVE`].
const LIMITS: Limits = Limits { list: Duration::from_secs(60), read: Duration::from_secs(900), waits: WAITS };
/// Time without a byte after which the system asks whether the peer is there.
const ALIVE: Duration = Duration::from_secs(30);
/// Largest page of a list.
const PAGE: usize = 16 << 20;
/// Largest document of an archive: millions of sessions.
const DOCUMENT: usize = 1 << 30;

/// The HTTP API.
pub struct HttpApi {
    client: Client,
    base: Url,
    token: Token,
    /// The limits.
    pub limits: Limits,
    /// The namespace of the computer.
    pub namespace: String,
}

/// A deletion, as the API lists it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    /// Id of the computer.
    pub computer_id: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The state.
    pub state: String,
    /// When it began, Unix milliseconds.
    pub deleted_at: i64,
    /// Its archive.
    pub archive: Option<Archived>,
}

/// What is listed about an archive.
#[derive(Clone, Debug, Deserialize)]
pub struct Archived {
    /// Sessions.
    pub sessions: i64,
    /// Bytes in the store.
    pub bytes: i64,
}

#[derive(Deserialize)]
struct Page {
    deletions: Vec<Deletion>,
    pagination: Pagination,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pagination {
    next_cursor: Option<String>,
}

impl HttpApi {
    /// As the flags and the environment say.
    ///
    /// # Errors
    /// When the API or a token is missing.
    pub async fn connect(global: &Global, flags: &ApiFlags) -> Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let Some(url) = &flags.api else {
            bail!("which HTTP API? Set --api or COMPUTER_API_URL to its URL; the admin of the cluster knows it")
        };
        let base = base(url)?;
        let ca = flags.api_ca.as_ref().map(|file| std::fs::read(file).with_context(|| format!("read {}", file.display()))).transpose()?;
        let (token, namespace) = Token::find(global, flags).await?;
        Self::new(base, token, namespace, ca.as_deref(), LIMITS)
    }

    /// `ca`: certificates of authorities beside those of the system, as PEM.
    fn new(base: Url, token: Token, namespace: String, ca: Option<&[u8]>, limits: Limits) -> Result<Self> {
        let mut client =
            Client::builder().connect_timeout(Duration::from_secs(10)).tcp_keepalive(ALIVE).redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = ca {
            client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        Ok(Self { client: client.build()?, base, token, limits, namespace })
    }

    /// An API of a test.
    #[cfg(test)]
    pub fn of(url: &str, token: Token, limits: Limits) -> Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self::new(base(url)?, token, "team".to_owned(), None, limits)
    }

    /// Sends a GET for a download or a part of it.
    ///
    /// # Errors
    /// When there is no answer, or the answer is an error.
    pub async fn read(&self, target: &Target, headers: &[(&str, String)]) -> Result<Answer, Fault> {
        self.get(&target.path(), &[], headers, self.limits.read).await
    }

    /// What an archive contains.
    ///
    /// # Errors
    /// When the request fails, or the answer is incomplete.
    pub async fn document(&self, target: &Target) -> Result<serde_json::Value> {
        let document = self.json(&target.document(), &[], (self.limits.read, DOCUMENT)).await;
        document.with_context(|| format!("listing {target} failed"))
    }

    /// Sends a GET, once more with a new token if the token is refused.
    async fn get(&self, path: &[&str], query: &[(&str, &str)], headers: &[(&str, String)], idle: Duration) -> Result<Answer, Fault> {
        let url = self.url(path, query).map_err(Fault::Lasting)?;
        let mut renewed = false;
        loop {
            let token = self.token.current();
            let mut request = self.client.get(url.clone()).bearer_auth(&token);
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            let response = tokio::time::timeout(idle, request.send()).await.map_err(|_| Fault::idle(idle))?;
            let answer = Answer::new(response.map_err(Fault::network)?, idle);
            if answer.status().is_success() {
                return Ok(answer);
            }
            // Once only: a new token that is refused as well has no right, and a ServiceAccount always has another one.
            if renewed || answer.status() != StatusCode::UNAUTHORIZED {
                return Err(Fault::refused(answer).await);
            }
            renewed = true;
            let new = self.token.renew(&token).await.context("the token was rejected, and a new one could not be obtained");
            if !new.map_err(|error| Fault::passing(error, Cost::High))? {
                return Err(Fault::refused(answer).await);
            }
        }
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Url> {
        let mut url = self.base.clone();
        // Each part is encoded as a whole: the id of a session may contain anything.
        url.path_segments_mut()
            .map_err(|()| anyhow::anyhow!("the URL of the API has no path"))?
            .pop_if_empty()
            .extend(["api", "v0"])
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    /// A JSON document, in one of a few requests.
    async fn json<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)], (idle, most): (Duration, usize)) -> Result<T> {
        let mut pace = Pace::new(self.limits.waits.short());
        loop {
            let answer = match self.get(path, query, &[], idle).await {
                Ok(answer) => answer.all(most).await,
                Err(fault) => Err(fault),
            };
            match answer {
                Ok(bytes) => {
                    return serde_json::from_slice(&bytes)
                        .context("cannot parse the response of the HTTP API: it may come from a proxy or from another version");
                }
                Err(fault) => pace.pause(fault, screen::note).await.map_err(Fault::error)?,
            }
        }
    }

    /// All deletions of the namespace, the newest first.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn deletions(&self) -> Result<Vec<Deletion>> {
        let mut all = Vec::new();
        let keep = |deletion: Deletion| {
            all.push(deletion);
            None::<()>
        };
        self.search(keep).await?;
        Ok(all)
    }

    /// The newest deletion like this. Later pages are not asked for.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn deletion(&self, like: impl Fn(&Deletion) -> bool) -> Result<Option<Deletion>> {
        self.search(|deletion| Some(deletion).filter(&like)).await
    }

    /// Shows each deletion, the newest first, until one gives a result.
    async fn search<T>(&self, mut show: impl FnMut(Deletion) -> Option<T>) -> Result<Option<T>> {
        let mut cursor = String::new();
        loop {
            let mut query = vec![("namespace", self.namespace.as_str()), ("limit", "100")];
            if !cursor.is_empty() {
                query.push(("cursor", &cursor));
            }
            let page = self.json(&["deletions"], &query, (self.limits.list, PAGE)).await;
            let page: Page = page.with_context(|| format!("listing the deletions of namespace {} failed", plain(&self.namespace)))?;
            if let Some(found) = page.deletions.into_iter().find_map(&mut show) {
                return Ok(Some(found));
            }
            match page.pagination.next_cursor {
                Some(next) => cursor = next,
                None => return Ok(None),
            }
        }
    }
}

/// The URL, if a token may be sent there.
fn base(url: &str) -> Result<Url> {
    let base: Url = url.parse().with_context(|| format!("{} is not a URL", plain(url)))?;
    let here = matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    ensure!(base.scheme() == "https" || (base.scheme() == "http" && here), "use https://: the token would be readable on the way");
    ensure!(base.username().is_empty() && base.password().is_none(), "the URL must not contain a password");
    Ok(base)
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
