//! When an `ApiKey` was last used, in its status, to the hour: at most one write an hour and key, whatever its traffic. Verification
//! has just read the status live, so no replica needs to know what another wrote. Best effort: no request waits for it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::credentials::verify_api_key::Verified;
use crate::resources::ApiKey;
use crate::runtime::client::{CallError, call};
use crate::runtime::clock;

/// Seconds within which a use is not written again.
const GRANULARITY: i64 = 3600;
/// A write that was tried is not tried again for so long, whatever came of it.
const PAUSE: Duration = Duration::from_secs(600);
/// Keys whose last try is remembered; when all of them are recent, a further one is not written.
const REMEMBERED: usize = 4096;

/// What was tried lately, by UID.
#[derive(Default)]
pub struct LastUsed(Mutex<HashMap<String, Instant>>);

impl LastUsed {
    /// Notes a use; writes it when the last one on record is old.
    pub fn note(&self, client: &Client, verified: &Verified) {
        let now = clock::now();
        if !due(verified.last_used.as_ref(), now) || !self.may_try(&verified.id.uid, Instant::now()) {
            return;
        }
        let (client, verified) = (client.clone(), verified.clone());
        tokio::spawn(async move {
            if let Err(error) = write(&client, &verified, now).await {
                tracing::debug!(namespace = verified.id.namespace, name = verified.id.name, %error, "the last use was not written");
            }
        });
    }

    /// Whether a write may be tried now; if so, that is remembered.
    fn may_try(&self, uid: &str, now: Instant) -> bool {
        // A map of times is whole at any time.
        let mut tried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Whether the last use on record is older than what is told.
fn due(last: Option<&Time>, now: Timestamp) -> bool {
    last.is_none_or(|last| now.duration_since(last.0).as_secs() >= GRANULARITY)
}

/// Of two replicas that write at once, the second finds the value changed and lets it be.
async fn write(client: &Client, verified: &Verified, now: Timestamp) -> Result<(), CallError> {
    let patch = crate::runtime::patch::patch(&[
        json!({"op": "test", "path": "/metadata/uid", "value": verified.id.uid}),
        json!({"op": "test", "path": "/status/lastUsedTime", "value": verified.last_used}),
        json!({"op": "add", "path": "/status/lastUsedTime", "value": Time(now)}),
    ]);
    let api: Api<ApiKey> = Api::namespaced(client.clone(), &verified.id.namespace);
    call(api.patch_status(&verified.id.name, &PatchParams::default(), &Patch::<()>::Json(patch))).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_written_once_an_hour() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert!(due(None, at(0)));
        assert!(!due(Some(&Time(at(0))), at(GRANULARITY - 1)));
        assert!(due(Some(&Time(at(0))), at(GRANULARITY)));
    }

    #[test]
    fn a_write_that_fails_is_not_tried_with_every_request_and_memory_has_a_bound() {
        let (used, now) = (LastUsed::default(), Instant::now());
        assert!(used.may_try("a", now) && !used.may_try("a", now) && used.may_try("b", now));
        assert!(used.may_try("a", now + PAUSE));
        for i in 0..2 * REMEMBERED {
            used.may_try(&i.to_string(), now + PAUSE);
        }
        assert!(used.0.lock().unwrap().len() <= REMEMBERED && !used.may_try("late", now + PAUSE));
        assert!(used.may_try("late", now + 2 * PAUSE), "room comes back");
    }
}
