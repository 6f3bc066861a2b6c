//! Authenticates the HTTP API, which reads archives for callers that it has authorized: the token of a pod of its ServiceAccount, for an audience
//! that no other endpoint accepts. An unknown answer must never authenticate.

use std::collections::HashMap;
use std::time::Duration;

use kube::Client;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::auth;
use crate::runtime::client::CallError;

/// Audience of the API's tokens for this endpoint.
pub const AUDIENCE: &str = "computer-operator.dev/archive-read";
/// How long a result is cached: an export reads thousands of objects.
const REMEMBER: Duration = Duration::from_secs(60);

/// Who may read archives here.
pub enum Readers {
    /// Nobody: there is no HTTP API.
    Nobody,
    /// Pods with this user name.
    Pods {
        /// API client.
        client: Client,
        /// `system:serviceaccount:NAMESPACE:NAME`.
        user: String,
        /// Digests of tokens that were accepted, and until when.
        known: Mutex<HashMap<[u8; 32], Instant>>,
    },
    /// One token, for tests.
    #[cfg(test)]
    Fixed(&'static str),
}

impl Readers {
    /// Pods of this ServiceAccount in the operator's namespace. Without one: nobody.
    pub fn new(client: Client, namespace: &str, account: Option<&str>) -> Self {
        account.map_or(Self::Nobody, |account| Self::Pods {
            client,
            user: format!("system:serviceaccount:{namespace}:{account}"),
            known: Mutex::default(),
        })
    }

    /// Whether this is the token of a reader.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn accept(&self, token: &str) -> Result<bool, CallError> {
        let (client, user, known) = match self {
            Self::Nobody => return Ok(false),
            #[cfg(test)]
            Self::Fixed(good) => return Ok(token == *good),
            Self::Pods { client, user, known } => (client, user, known),
        };
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let remembered = || known.lock().get(&key).is_some_and(|until| *until > Instant::now());
        if remembered() {
            return Ok(true);
        }
        let accepted = auth::review(client, token, AUDIENCE, user).await?.is_some();
        if accepted {
            let mut known = known.lock();
            known.retain(|_, until| *until > Instant::now());
            known.insert(key, Instant::now() + REMEMBER);
        }
        Ok(accepted)
    }
}
