//! Records in the status of an `ApiKey` when it was last used, with a granularity of one hour: at most one write per hour and key, whatever its traffic.
//! Verification has just read the status live, so replicas need no coordination. Best effort: a request must never wait for it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::credentials::verify_api_key::Verified;
use crate::resources::ApiKey;
use crate::runtime::client::{CallError, call};
use crate::runtime::clock;
use crate::runtime::patch;

/// Seconds within which the last use is not written again.
const GRANULARITY: i64 = 3600;
/// Minimum time between two attempts to write, whatever their outcome.
const PAUSE: Duration = Duration::from_secs(600);
/// Maximum number of keys whose last attempt is remembered. If all are recent, no further key is written.
const REMEMBERED: usize = 4096;

/// Recent attempts by UID.
#[derive(Default)]
pub struct LastUsed(Mutex<HashMap<String, Instant>>);

impl LastUsed {
    /// Notes a use, and writes it if the recorded one is old.
    pub fn note(&self, client: &Client, verified: &Verified) {
        let now = clock::now();
        if !due(verified.last_used.as_ref(), now) || !self.may_try(&verified.id.uid, Instant::now()) {
            return;
        }
        let (client, verified) = (client.clone(), verified.clone());
        tokio::spawn(async move {
            if let Err(error) = write(&client, &verified, now).await {
                tracing::debug!(namespace = verified.id.namespace, name = verified.id.name, %error, "cannot record the last use of an ApiKey");
            }
        });
    }

    /// Whether an attempt may be made now. If so, it is remembered.
    fn may_try(&self, uid: &str, now: Instant) -> bool {
        let mut tried = self.0.lock();
        let recent = |at: &Instant| now.saturating_duration_since(*at) < PAUSE;
        if tried.get(uid).is_some_and(recent) {
            return false;
        }
        if tried.len() >= REMEMBERED {
            tried.retain(|_, at| recent(at));
        }
        if tried.len() >= REMEMBERED {
            return false;
        }
        tried.insert(uid.to_owned(), now);
        true
    }
}

/// Whether the recorded use is older than the granularity.
fn due(last: Option<&Time>, now: Timestamp) -> bool {
    last.is_none_or(|last| now.duration_since(last.0).as_secs() >= GRANULARITY)
}

/// Writes the last use. If two replicas write at the same time, the test of the second one fails, which is harmless.
async fn write(client: &Client, verified: &Verified, now: Timestamp) -> Result<(), CallError> {
    let patch = json_patch::Patch(vec![
        patch::test(["metadata", "uid"], json!(verified.id.uid)),
        patch::test(["status", "lastUsedTime"], json!(verified.last_used)),
        patch::add(["status", "lastUsedTime"], json!(Time(now))),
    ]);
    let api: Api<ApiKey> = Api::namespaced(client.clone(), &verified.id.namespace);
    call(api.patch_status(&verified.id.name, &PatchParams::default(), &Patch::<()>::Json(patch))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_written_once_per_hour() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert!(due(None, at(0)));
        assert!(!due(Some(&Time(at(0))), at(GRANULARITY - 1)));
        assert!(due(Some(&Time(at(0))), at(GRANULARITY)));
    }

    #[test]
    fn a_failed_write_is_not_retried_with_every_request_and_memory_is_bounded() {
        let (used, now) = (LastUsed::default(), Instant::now());
        assert!(used.may_try("a", now) && !used.may_try("a", now) && used.may_try("b", now));
        assert!(used.may_try("a", now + PAUSE));
        for i in 0..2 * REMEMBERED {
            used.may_try(&i.to_string(), now + PAUSE);
        }
        assert!(used.0.lock().len() <= REMEMBERED && !used.may_try("late", now + PAUSE));
        assert!(used.may_try("late", now + 2 * PAUSE), "old attempts are forgotten");
    }
}
