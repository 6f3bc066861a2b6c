//! Archives as the HTTP API sees them: through the reading half of the operator's ingest endpoint, with the API's own token. The API has no
//! credentials of the store. What is read is checked against its digest here as well, because this module is a store like any other.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Response, StatusCode};

use super::ingest::keep_alive::{self, Outcome};
use super::ingest::reads::NAMESPACE;
use super::ingest::tls::SERVER_NAME;
use super::manifest::MAX_BYTES;
use super::store::Store;
use crate::runtime::client::call;

/// Longest silence of the endpoint. It sends a line every few seconds while it waits for room or reads from the store (`ingest/keep_alive.rs`), so however
/// long these take, it is not silent (L8).
const SILENCE: Duration = Duration::from_secs(15);
/// Longest pause before a request that was one too many is repeated.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest line with an outcome.
const LINE: usize = 64 * 1024;

/// Why a manifest cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// The store has none.
    #[error("there is no archive")]
    Missing,
    /// It is of version 1, which is not read here.
    #[error("the archive is of version 1")]
    Old,
    /// It is damaged in the store.
    #[error("the archive is damaged in the store")]
    Damaged,
    /// No answer, or a temporary failure. For the log.
    #[error("{0}")]
    Unavailable(String),
}

/// Where the endpoint is.
#[derive(Clone)]
pub enum Endpoint {
    /// At `HOST:PORT`.
    Address(String),
    /// A Service, whose address is read for each connection: a cluster may have no DNS, and a Service may be created again.
    Service {
        /// The Services of its namespace.
        services: Box<Api<Service>>,
        /// Its name.
        name: String,
        /// The port.
        port: u16,
    },
}

impl Endpoint {
    /// `HOST:PORT`, or `service/NAME:PORT` for a Service in this namespace.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn parse(text: &str, client: &kube::Client, namespace: &str) -> std::result::Result<Self, String> {
        let port = port(text)?;
        let name = text.strip_prefix("service/").and_then(|rest| rest.rsplit_once(':')).map(|(name, _)| name.to_owned());
        let services = || Box::new(Api::namespaced(client.clone(), namespace));
        Ok(name.map_or_else(|| Self::Address(text.to_owned()), |name| Self::Service { services: services(), name, port }))
    }

    fn port(&self) -> u16 {
        match self {
            Self::Address(at) => port(at).unwrap_or_default(),
            Self::Service { port, .. } => *port,
        }
    }

    async fn find(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let (services, name, port) = match self {
            Self::Address(at) => return Ok(tokio::net::lookup_host(at).await?.collect()),
            Self::Service { services, name, port } => (services, name, *port),
        };
        let spec = call(services.get(name)).await?.spec.unwrap_or_default();
        let all = spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
        let found: Vec<_> = all.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, port)).collect();
        anyhow::ensure!(!found.is_empty(), "Service {name} has no address");
        Ok(found)
    }
}

/// The port of an endpoint.
///
/// # Errors
/// When there is none.
pub fn port(text: &str) -> std::result::Result<u16, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    let host = host.strip_prefix("service/").unwrap_or(host);
    let usable = !host.is_empty() && !host.contains('/');
    port.parse().ok().filter(|_| usable).ok_or_else(|| format!("{text:?} is neither HOST:PORT nor service/NAME:PORT"))
}

/// The reading half of the ingest endpoint, and how to reach it.
pub struct Remote {
    endpoint: Endpoint,
    ca: PathBuf,
    token: PathBuf,
    /// The client, and the certificate that it trusts.
    client: Mutex<Option<(Vec<u8>, Client)>>,
}

impl Remote {
    /// The endpoint, whose certificate is in the file `ca`, with the token in the file `token`. Both are read again for each request: the kubelet renews
    /// them.
    pub fn new(endpoint: Endpoint, ca: PathBuf, token: PathBuf) -> Self {
        Self { endpoint, ca, token, client: Mutex::default() }
    }

    /// The endpoint as a store that can only be read, with the share of this namespace. Memory is bounded by its readers, as for any store.
    pub fn store(self: &Arc<Self>, namespace: &str) -> Store {
        Store::behind_endpoint(Arc::new(Objects(Arc::clone(self), namespace.to_owned())))
    }

    /// The manifest of the newest archive of a computer of this namespace.
    ///
    /// # Errors
    /// See [`Unread`].
    pub async fn manifest(&self, namespace: &str, uid: &str) -> std::result::Result<Vec<u8>, Unread> {
        self.small(namespace, &format!("/read/v1/{uid}/manifest")).await
    }

    /// The digest of the manifest that the deletion of a computer has verified, by its receipt in the store.
    ///
    /// # Errors
    /// [`Unread::Missing`] without a receipt that names one, or [`Unread::Unavailable`].
    pub async fn verified(&self, namespace: &str, uid: &str) -> std::result::Result<String, Unread> {
        let digest = self.small(namespace, &format!("/read/v1/{uid}/verified")).await?;
        Ok(String::from_utf8_lossy(&digest).into_owned())
    }

    /// An object of at most the size of a manifest.
    async fn small(&self, namespace: &str, path: &str) -> std::result::Result<Vec<u8>, Unread> {
        let unavailable = |error: &dyn std::fmt::Display| Unread::Unavailable(error.to_string());
        let (outcome, mut parts) = self.object(namespace, path).await.map_err(|e| unavailable(&e))?;
        match outcome.0 {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(Unread::Missing),
            StatusCode::GONE => return Err(Unread::Old),
            StatusCode::UNPROCESSABLE_ENTITY => return Err(Unread::Damaged),
            _ => return Err(unavailable(&refused(&outcome))),
        }
        let mut bytes = Vec::new();
        while let Some(part) = tokio::time::timeout(SILENCE, parts.next()).await.map_err(|e| unavailable(&e))? {
            let part = part.map_err(|e| unavailable(&e))?;
            if bytes.len() + part.len() > MAX_BYTES {
                return Err(unavailable(&"the ingest endpoint sent more than a manifest"));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    /// The outcome of a request for an object, and its bytes. It may take any time until there is one, but the endpoint must not be silent. When too many
    /// wait there, the request is repeated: that is no failure.
    async fn object(&self, namespace: &str, path: &str) -> anyhow::Result<(Outcome, BoxStream<'static, Result<Bytes>>)> {
        let mut pause = Duration::from_millis(250);
        loop {
            let answer = self.once(namespace, path).await?;
            if answer.0.0 != StatusCode::TOO_MANY_REQUESTS {
                return Ok(answer);
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSE);
        }
    }

    async fn once(&self, namespace: &str, path: &str) -> anyhow::Result<(Outcome, BoxStream<'static, Result<Bytes>>)> {
        let mut answer = self.get(namespace, path).await?;
        if !answer.headers().contains_key(keep_alive::HEADER) {
            // It was refused before any work. Only these say why: an operator of an earlier version, or a proxy, answers 404 for a path that it does
            // not know, and that is not the absence of an archive.
            let known = [StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
            let status = Some(answer.status()).filter(|status| known.contains(status)).unwrap_or(StatusCode::BAD_GATEWAY);
            return Ok(((status, String::new()), futures::stream::empty().boxed()));
        }
        let mut line = Vec::new();
        let end = loop {
            let part = tokio::time::timeout(SILENCE, answer.chunk()).await;
            let part = part.map_err(|_| anyhow::anyhow!("the ingest endpoint is silent"))?.map_err(reqwest::Error::without_url)?;
            let part = part.ok_or_else(|| anyhow::anyhow!("the ingest endpoint closed the connection before it answered"))?;
            let beats = if line.is_empty() { part.iter().take_while(|byte| **byte == b'\n').count() } else { 0 };
            line.extend_from_slice(&part[beats..]);
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            anyhow::ensure!(line.len() <= LINE, "the ingest endpoint sent no outcome");
        };
        let first = Bytes::from(line.split_off(end + 1));
        let outcome =
            keep_alive::outcome(&String::from_utf8_lossy(&line)).ok_or_else(|| anyhow::anyhow!("the ingest endpoint sent no outcome"))?;
        let rest = answer.bytes_stream().map_err(|e| generic(e.without_url()));
        Ok((outcome, futures::stream::iter([Ok(first)]).chain(rest).boxed()))
    }

    async fn get(&self, namespace: &str, path: &str) -> anyhow::Result<Response> {
        let token = std::fs::read_to_string(&self.token).map_err(|e| anyhow::anyhow!("the token for the ingest endpoint: {e}"))?;
        // The certificate is for this name, wherever the endpoint is.
        let url = format!("https://{SERVER_NAME}:{}{path}", self.endpoint.port());
        let request = self.client()?.get(url).bearer_auth(token.trim()).header(keep_alive::HEADER, "1").header(NAMESPACE, namespace);
        let answer = tokio::time::timeout(SILENCE, request.send()).await;
        // The path contains the id of a computer.
        Ok(answer.map_err(|_| anyhow::anyhow!("the ingest endpoint does not answer"))?.map_err(reqwest::Error::without_url)?)
    }

    /// A client that trusts the certificate as it is now: the operator creates it when it starts for the first time.
    fn client(&self) -> anyhow::Result<Client> {
        let pem = std::fs::read(&self.ca).map_err(|e| anyhow::anyhow!("the certificate of the ingest endpoint: {e}"))?;
        // A new value is complete before it is stored.
        let mut known = self.client.lock();
        if let Some((_, client)) = known.as_ref().filter(|(trusted, _)| *trusted == pem) {
            return Ok(client.clone());
        }
        let client = Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&pem)?])
            .dns_resolver(Arc::new(Always(self.endpoint.clone())))
            .connect_timeout(Duration::from_secs(5))
            .pool_max_idle_per_host(4)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        *known = Some((pem, client.clone()));
        Ok(client)
    }
}

/// Resolves every name to the address of the endpoint.
struct Always(Endpoint);

impl Resolve for Always {
    fn resolve(&self, _: Name) -> Resolving {
        let at = self.0.clone();
        Box::pin(async move { Ok(Box::new(at.find().await?.into_iter()) as Addrs) })
    }
}

/// The endpoint as an object store, and the namespace whose share it uses.
struct Objects(Arc<Remote>, String);

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the ingest endpoint")
    }
}

/// UID and digest in the key of a chunk. The endpoint chooses among its copies.
fn named(location: &Path) -> Option<(&str, &str)> {
    let (uid, name) = location.as_ref().strip_prefix("archives/")?.split_once("/chunks/")?;
    let digest = name.strip_suffix(".zst")?;
    (!uid.contains('/') && super::manifest::is_digest(digest)).then_some((uid, digest))
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "the ingest endpoint", source: source.into() }
}

fn refused((status, why): &Outcome) -> String {
    format!("the ingest endpoint answered {status} {why}")
}

/// A body that is longer than its size is an error: it decides how much memory is used.
fn at_most(body: BoxStream<'static, Result<Bytes>>, size: u64) -> BoxStream<'static, Result<Bytes>> {
    let mut left = size;
    let counted = body.map(move |part| {
        let part = part?;
        left = left.checked_sub(part.len() as u64).ok_or_else(|| generic("sent more than the size of the object"))?;
        Ok(part)
    });
    counted.boxed()
}

fn missing(location: &Path) -> Error {
    Error::NotFound { path: location.to_string(), source: "the ingest endpoint does not have it, or it is damaged".into() }
}

fn read_only<T>() -> Result<T> {
    Err(generic("archives are only read here"))
}

#[async_trait]
impl ObjectStore for Objects {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Some((uid, digest)) = named(location) else { return Err(missing(location)) };
        if options.head || options.range.is_some() {
            return read_only();
        }
        let (outcome, body) =
            self.0.object(&self.1, &format!("/read/v1/{uid}/chunks/{digest}")).await.map_err(|e| generic(e.to_string()))?;
        match outcome.0 {
            StatusCode::OK => {}
            // What is damaged does not become right, so it is not asked for again.
            StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => return Err(missing(location)),
            _ => return Err(generic(refused(&outcome))),
        }
        let size = outcome.1.parse().map_err(|_| generic("sent no size"))?;
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: std::time::SystemTime::UNIX_EPOCH.into(),
            size,
            e_tag: None,
            version: None,
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(at_most(body, size)),
            meta,
            range: 0..size,
            attributes: object_store::Attributes::default(),
            extensions: axum::http::Extensions::default(),
        })
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        read_only()
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        read_only()
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        locations.map(|_| read_only()).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        futures::stream::once(async { read_only() }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        read_only()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        read_only()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
