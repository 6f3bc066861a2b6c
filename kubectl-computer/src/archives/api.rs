//! Requests to the HTTP API. The token must never be printed, and never leave this machine without TLS.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use reqwest::{Client, Response, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::args::ApiFlags;
use crate::args::Global;
use crate::cluster::{Cluster, explained};
use crate::text::plain;

/// Longest time without a byte. The API is silent while the operator reads from the store, on whatever line, and while it repeats a read that fails, for
/// ten minutes. A peer that is gone is noticed earlier, by [`ALIVE`].
pub const SILENCE: Duration = Duration::from_secs(900);
/// Time without a byte after which the system asks whether the peer is there.
const ALIVE: Duration = Duration::from_secs(30);

/// The HTTP API.
pub struct HttpApi {
    client: Client,
    base: Url,
    token: String,
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
    /// As the flags and the environment say. The cluster is asked only for what they do not say.
    ///
    /// # Errors
    /// When the API or a token is missing.
    pub async fn connect(global: &Global, flags: &ApiFlags) -> Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let Some(url) = &flags.api else {
            bail!("which HTTP API? Set --api or COMPUTER_API_URL to its URL; the admin of the cluster knows it")
        };
        let base = base(url)?;
        let given = match &flags.token_file {
            Some(file) => Some(std::fs::read_to_string(file).with_context(|| format!("read the token in {}", file.display()))?),
            None if flags.service_account.is_none() => std::env::var("COMPUTER_API_TOKEN").ok(),
            None => None,
        };
        let (token, namespace) = match (given, &global.namespace) {
            (Some(token), Some(namespace)) => (token, namespace.clone()),
            (given, _) => {
                let cluster = Cluster::connect(global).await?;
                let token = match given {
                    Some(token) => token,
                    None => requested(&cluster, flags).await?,
                };
                (token, cluster.namespace)
            }
        };
        let mut client = Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE)
            .tcp_keepalive(ALIVE)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(file) = &flags.api_ca {
            let pem = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem)?);
        }
        Ok(Self { client: client.build()?, base, token: token.trim().to_owned(), namespace })
    }

    /// Sends a GET, and makes an error of an error.
    ///
    /// # Errors
    /// When there is no answer, or the answer is an error.
    pub async fn get(&self, path: &[&str], query: &[(&str, &str)], headers: &[(&str, String)]) -> Result<Response> {
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
        let mut request = self.client.get(url).bearer_auth(&self.token);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let answer = request.send().await.map_err(reqwest::Error::without_url).context("the request to the HTTP API failed")?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body: serde_json::Value = answer.json().await.unwrap_or_default();
        bail!("the HTTP API answers {status}: {}", plain(body["detail"].as_str().unwrap_or("without a reason")))
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
            let page: Page = self.json(&["deletions"], &query).await?;
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

/// A new token of a ServiceAccount.
async fn requested(cluster: &Cluster, flags: &ApiFlags) -> Result<String> {
    let Some(name) = &flags.service_account else {
        bail!(
            "which token? Set COMPUTER_API_TOKEN or --token-file to the token of an ApiKey, or --service-account to a ServiceAccount in namespace {} \
             that may get computers/archive",
            cluster.namespace
        )
    };
    let wanted: TokenRequest =
        serde_json::from_value(serde_json::json!({"spec": {"audiences": [flags.audience], "expirationSeconds": 3600}}))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let made = accounts.create_token_request(name, &PostParams::default(), &wanted).await.map_err(explained)?;
    Ok(made.status.context("the API server returned no token")?.token)
}

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
