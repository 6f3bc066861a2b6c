//! A client that checks every response: a request id, JSON if there is a body, and exactly the published error object for every error.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub token: Option<String>,
    pub headers: Vec<(&'static str, String)>,
    pub body: Option<Vec<u8>>,
}

impl Ask {
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), token: None, headers: Vec::new(), body: None }
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    pub fn patch(path: impl Into<String>) -> Self {
        Self::new(Method::PATCH, path)
    }

    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// Sets the token of the caller.
    pub fn by(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.raw("application/json", body.to_string())
    }

    pub fn raw(mut self, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self.header("content-type", kind)
    }

    /// Sends the request to one server.
    pub async fn send(&self, http: &reqwest::Client, base: &str) -> Result<Answer> {
        let mut request = http.request(self.method.clone(), format!("{base}{}", self.path));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if let Some(body) = &self.body {
            request = request.body(body.clone());
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await?;
        let answer = Answer { status: status.as_u16(), body: serde_json::from_str(&text).unwrap_or_default(), headers, text };
        answer.check(status, &self.method)?;
        Ok(answer)
    }
}

/// A response that has passed the checks.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// Null if there is none.
    pub body: Value,
    pub text: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The detail of the error.
    pub fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }

    /// Requires a status code.
    pub fn is(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "{} instead of {status}: {}", self.status, self.text);
        Ok(self)
    }

    /// Requires an error whose detail contains these words.
    pub fn says(self, status: u16, words: &str) -> Result<Self> {
        let answer = self.is(status)?;
        ensure!(answer.detail().contains(words), "{:?} does not contain {words:?}", answer.detail());
        Ok(answer)
    }

    /// The body's field names.
    pub fn fields(&self) -> BTreeSet<&str> {
        self.body.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
    }

    fn check(&self, status: StatusCode, method: &Method) -> Result<()> {
        ensure!((1..=64).contains(&self.header("x-request-id").len()), "no request id: {self:?}");
        if status == StatusCode::NO_CONTENT || *method == Method::HEAD {
            ensure!(self.text.is_empty(), "unexpected body: {self:?}");
        }
        if status == StatusCode::NO_CONTENT {
            ensure!(self.headers.get("content-type").is_none() && self.headers.get("content-length").is_none(), "{self:?}");
        }
        if status.is_client_error() || status.is_server_error() {
            ensure!(self.header("content-type") == "application/json", "an error that is not JSON: {self:?}");
            if *method != Method::HEAD {
                self.check_error(status)?;
            }
        }
        Ok(())
    }

    /// Requires `{detail, status, title, metadata?}` without further fields.
    fn check_error(&self, status: StatusCode) -> Result<()> {
        let published = BTreeSet::from(["detail", "status", "title", "metadata"]);
        ensure!(self.fields().is_subset(&published), "more than the published error: {}", self.text);
        ensure!(self.body["detail"].as_str().is_some_and(|d| !d.is_empty()), "an error without a detail: {}", self.text);
        ensure!(self.body["status"].as_u64() == Some(status.as_u16().into()), "status is not {status}: {}", self.text);
        ensure!(self.body["title"].as_str() == status.canonical_reason(), "title is not that of {status}: {}", self.text);
        ensure!(self.body.get("metadata").is_none_or(Value::is_object), "metadata is not an object: {}", self.text);
        ensure!((status == StatusCode::UNAUTHORIZED) == (self.header("www-authenticate") == "Bearer"), "WWW-Authenticate: {self:?}");
        Ok(())
    }
}

/// Sends raw bytes and reads until the server closes the connection.
pub async fn raw(address: std::net::SocketAddr, bytes: &[u8]) -> Result<RawAnswer> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    let mut all = Vec::new();
    tokio::time::timeout(std::time::Duration::from_secs(30), stream.read_to_end(&mut all)).await??;
    RawAnswer::parse(&all)
}

/// A raw HTTP response.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl RawAnswer {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status =
            head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| anyhow::anyhow!("not an HTTP response: {head:?}"))?;
        Ok(Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
    }

    /// Requires the published error object.
    pub fn is_error(&self, status: u16) -> Result<()> {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        ensure!(self.status == status && body["status"] == status && body["detail"].is_string() && body["title"].is_string(), "{self:?}");
        ensure!(self.head.contains("content-type: application/json"), "{self:?}");
        Ok(())
    }
}
