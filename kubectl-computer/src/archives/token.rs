//! The token for the HTTP API, and where a new one comes from when it is refused: a download may take longer than a token lives. It must never be
//! printed, and never be an argument, which other users of the machine could see.

use std::fmt::{self, Debug, Formatter};
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};

use super::args::ApiFlags;
use crate::args::Global;
use crate::cluster::{Cluster, explained};

/// Seconds for which a token is asked for.
const SECONDS: i64 = 3600;

/// Where tokens come from.
enum Source {
    /// The environment: there is no other one.
    Given,
    /// A file, in which a kubelet or a tool of the tenant replaces it.
    File(PathBuf),
    /// The cluster.
    Account { cluster: Box<Cluster>, name: String, audience: String },
}

impl Source {
    /// A token. `None`: there is only the one that was given.
    async fn read(&self) -> Result<Option<String>> {
        let token = match self {
            Self::Given => return Ok(None),
            Self::File(file) => std::fs::read_to_string(file).with_context(|| format!("read the token in {}", file.display()))?,
            Self::Account { cluster, name, audience } => {
                let wanted: TokenRequest =
                    serde_json::from_value(serde_json::json!({"spec": {"audiences": [audience], "expirationSeconds": SECONDS}}))?;
                let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
                let made = accounts.create_token_request(name, &PostParams::default(), &wanted).await.map_err(explained)?;
                made.status.context("the API server returned no token")?.token
            }
        };
        Ok(Some(token.trim().to_owned()))
    }
}

/// The token, as long as it is accepted.
pub struct Token {
    source: Source,
    current: Mutex<String>,
}

/// Without the token.
impl Debug for Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// As the flags and the environment say, and the namespace of the computers. The cluster is asked only for what they do not say.
    ///
    /// # Errors
    /// When there is no token, or the namespace is not known.
    pub async fn find(global: &Global, flags: &ApiFlags) -> Result<(Self, String)> {
        let given =
            if flags.token_file.is_none() && flags.service_account.is_none() { std::env::var("COMPUTER_API_TOKEN").ok() } else { None };
        let source = match (&flags.token_file, &given) {
            (Some(file), _) => Some(Source::File(file.clone())),
            (None, Some(_)) => Some(Source::Given),
            (None, None) => None,
        };
        let (source, namespace) = match (source, &global.namespace) {
            (Some(source), Some(namespace)) => (source, namespace.clone()),
            (source, _) => {
                let cluster = Cluster::connect(global).await?;
                let namespace = cluster.namespace.clone();
                (source.map_or_else(|| account(cluster, flags), Ok)?, namespace)
            }
        };
        let first = match given {
            Some(given) => given.trim().to_owned(),
            None => source.read().await?.unwrap_or_default(),
        };
        Ok((Self { source, current: Mutex::new(first) }, namespace))
    }

    /// A token that nothing replaces.
    #[cfg(test)]
    pub fn given(token: &str) -> Self {
        Self { source: Source::Given, current: Mutex::new(token.to_owned()) }
    }

    /// A token in a file.
    #[cfg(test)]
    pub fn in_file(file: PathBuf) -> Self {
        Self { source: Source::File(file), current: Mutex::default() }
    }

    /// A token of a `ServiceAccount`.
    #[cfg(test)]
    pub fn of_account(cluster: Cluster, name: &str) -> Self {
        let source = Source::Account { cluster: Box::new(cluster), name: name.to_owned(), audience: "computer-operator".to_owned() };
        Self { source, current: Mutex::default() }
    }

    /// The token.
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Reads a new token after this one was refused, and says whether there is another one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn renew(&self, refused: &str) -> Result<bool> {
        let Some(new) = self.source.read().await?.filter(|new| new != refused) else { return Ok(false) };
        *self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = new;
        Ok(true)
    }
}

fn account(cluster: Cluster, flags: &ApiFlags) -> Result<Source> {
    let Some(name) = &flags.service_account else {
        bail!(
            "which token? Set COMPUTER_API_TOKEN or --token-file to the token of an ApiKey, or --service-account to a ServiceAccount in namespace {} \
             that may get computers/archive",
            cluster.namespace
        )
    };
    Ok(Source::Account { cluster: Box::new(cluster), name: name.clone(), audience: flags.audience.clone() })
}
