//! Requests to the HTTP API. The token must never be printed, and never leave this machine without TLS.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::args::ApiFlags;
use super::token::Token;
use crate::args::Global;
use crate::text::plain;

/// Longest time without a byte of a list.
const LIST_SILENCE: Duration = Duration::from_secs(60);
/// Longest time without a byte of an archive. The API is silent while the operator reads from the store, on whatever line, and while it repeats a read that fails, for
/// ten minutes. A peer that is gone is noticed earlier, by [`ALIVE`].
pub const SILENCE: Duration = Duration::from_secs(900);
/// Time without a byte after which the system asks whether the peer is there.
const ALIVE: Duration = Duration::from_secs(30);

/// The HTTP API.
pub struct HttpApi {
    client: Client,
    base: Url,
    token: Token,
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
        Self::new(base, token, namespace, ca.as_deref())
    }

    /// `ca`: certificates of authorities beside those of the system, as PEM.
    fn new(base: Url, token: Token, namespace: String, ca: Option<&[u8]>) -> Result<Self> {
        let mut client = Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE)
            .tcp_keepalive(ALIVE)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = ca {
            client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        Ok(Self { client: client.build()?, base, token, namespace })
    }

    /// An API of a test.
    #[cfg(test)]
    pub fn of(url: &str, token: Token) -> Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self::new(base(url)?, token, "team".to_owned(), None)
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// When there is no answer, or the answer is an error: a [`Refusal`].
    pub async fn get(&self, path: &[&str], query: &[(&str, &str)], headers: &[(&str, String)]) -> Result<Response> {
        self.send(Method::GET, path, query, headers).await
    }

    /// The headers that the answer to a GET would have.
    ///
    /// # Errors
    /// As [`HttpApi::get`].
    pub async fn head(&self, path: &[&str]) -> Result<HeaderMap> {
        match self.send(Method::HEAD, path, &[], &[]).await {
            Ok(answer) => Ok(answer.headers().clone()),
            // The answer to a HEAD has no body that says why.
            Err(error) if error.is::<Refusal>() => Ok(self.send(Method::GET, path, &[], &[]).await?.headers().clone()),
            Err(error) => Err(error),
        }
    }

    /// Sends a request, once more with a new token if the token is refused, and makes an error of an error.
    async fn send(&self, method: Method, path: &[&str], query: &[(&str, &str)], headers: &[(&str, String)]) -> Result<Response> {
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
        loop {
            let token = self.token.current();
            let mut request = self.client.request(method.clone(), url.clone()).bearer_auth(&token);
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            let answer = request.send().await.map_err(reqwest::Error::without_url).context("the request to the HTTP API failed")?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            if answer.status() != StatusCode::UNAUTHORIZED || !self.token.renew(&token).await? {
                return Err(Refusal::of(answer).await.into());
            }
        }
    }

    /// A JSON document.
    ///
    /// # Errors
    /// As [`HttpApi::get`]; also when it is incomplete.
    pub async fn json<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T> {
        let answer = self.get(path, query, &[]).await?;
        answer.json().await.map_err(reqwest::Error::without_url).context("the answer of the HTTP API is incomplete or not understood")
    }

    /// All deletions of the namespace, the newest first.
    ///
    /// # Errors
    /// As [`HttpApi::get`].
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
    /// As [`HttpApi::get`].
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
            let page = tokio::time::timeout(LIST_SILENCE, self.json(&["deletions"], &query));
            let page: Page = page.await.context("the HTTP API accepts the request and does not answer")??;
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

/// An answer that is an error.
#[derive(Debug)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// After which time the API asks to repeat the request.
    pub retry_after: Option<Duration>,
    detail: String,
}

impl Refusal {
    async fn of(answer: Response) -> Self {
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let status = answer.status();
        let body: serde_json::Value = answer.json().await.unwrap_or_default();
        let detail = plain(body["detail"].as_str().unwrap_or("without a reason"));
        Self { status, retry_after, detail }
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "the HTTP API answers {}: {}", self.status, self.detail)?;
        match self.status {
            StatusCode::UNAUTHORIZED => f.write_str(". The token is unknown, revoked or expired: get a new one and repeat the command"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_sent_in_plain_text_to_another_machine() {
        for url in [
            "https://computers.example",
            "https://computers.example/prefix/",
            "http://127.0.0.1:8000",
            "http://localhost:8000",
            "http://[::1]:8000",
        ] {
            assert!(base(url).is_ok(), "{url}");
        }
        for url in ["http://computers.example", "http://127.0.0.1.example", "ftp://localhost", "https://user:secret@host", "computers"] {
            assert!(base(url).is_err(), "{url}");
        }
    }
}
