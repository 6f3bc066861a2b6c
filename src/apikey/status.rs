//! The status of an `ApiKey`, computed from the plan. It is written only when it changes (L6), with the UID as a precondition (S4), and field by field,
//! because `lastUsedTime` belongs to the HTTP API and must not be overwritten.

use jiff::Timestamp;
use json_patch::Patch;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::plan::Plan;
use crate::resources::conditions::{self, types};
use crate::resources::{ApiKey, ApiKeyStatus};
use crate::runtime::patch;

/// Computes the status from the plan.
pub fn compute(key: &ApiKey, plan: &Plan, now: Timestamp) -> Option<ApiKeyStatus> {
    let ready = plan.ready.as_ref()?;
    let mut status = key.status.clone().unwrap_or_default();
    let generation = key.metadata.generation;
    status.observed_generation = generation;
    status.secret_name.clone_from(&plan.secret_name);
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    conditions::set(&mut status.conditions, types::READY, ready.status, ready.reason, &ready.message, generation, &now);
    conditions::set_stalled(&mut status.conditions, ready.status, ready.reason, &ready.message, generation, &now);
    Some(status)
}

/// The patch from the current status to the new one; `None` if they are equal.
pub fn patch(key: &ApiKey, new: &ApiKeyStatus) -> Option<Patch> {
    let mut operations = vec![patch::same_uid(&key.metadata)];
    let Some(old) = &key.status else {
        operations.push(patch::add(["status"], json!(new)));
        return Some(Patch(operations));
    };
    let mut set = |field: &str, old: Value, new: Value| {
        if old == new {
            return;
        }
        operations.push(if new.is_null() { patch::remove(["status", field]) } else { patch::add(["status", field], new) });
    };
    set("observedGeneration", json!(old.observed_generation), json!(new.observed_generation));
    set("secretName", json!(old.secret_name), json!(new.secret_name));
    set("conditions", json!(old.conditions), json!(new.conditions));
    (operations.len() > 1).then(|| Patch(operations))
}

/// Whether the reason of `Ready` has changed, which emits an event.
pub fn reason_changed(key: &ApiKey, new: &ApiKeyStatus) -> bool {
    let reason = |s: Option<&ApiKeyStatus>| s.and_then(|s| s.conditions.iter().find(|c| c.type_ == types::READY)).map(|c| c.reason.clone());
    reason(key.status.as_ref()) != reason(Some(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apikey::plan::{Next, Ready};
    use crate::resources::reasons::Reason;

    fn plan(reason: Reason, secret: Option<&str>) -> Plan {
        let ready = Ready { status: secret.is_some(), reason, message: "why".to_owned() };
        Plan { next: Next::Finished, ready: Some(ready), secret_name: secret.map(str::to_owned) }
    }

    #[test]
    fn a_status_is_written_once_and_never_overwrites_the_last_use() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut key = ApiKey::default();
        key.metadata.generation = Some(1);
        let first = compute(&key, &plan(Reason::Issued, Some("s")), at(100)).unwrap();
        assert!(reason_changed(&key, &first) && patch(&key, &first).is_some());
        key.status = Some(first);
        let again = compute(&key, &plan(Reason::Issued, Some("s")), at(200)).unwrap();
        assert!(patch(&key, &again).is_none() && !reason_changed(&key, &again));
        if let Some(status) = &mut key.status {
            status.last_used_time = Some(Time(at(150)));
        }
        let expired = compute(&key, &plan(Reason::Expired, None), at(300)).unwrap();
        let patch = serde_json::to_string(&patch(&key, &expired)).unwrap();
        assert!(patch.contains("/status/secretName") && !patch.contains("lastUsed") && !patch.contains(r#""path":"/status","#), "{patch}");
    }
}
