//! What an older version of the operator does to the records of a newer one.

use serde_json::{Value, json};

use crate::{ApiKeyRecordSpec, ComputerRecordSpec};

/// The same with a field in every object that no version knows.
fn newer(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let known = fields.iter().map(|(name, field)| {
                // The keys of `started` are ids of steps, and tolerations are a type of Kubernetes: neither has unknown fields.
                let of_others = matches!(name.as_str(), "started" | "tolerations");
                (name.clone(), if of_others { field.clone() } else { newer(field) })
            });
            known.chain([("ofTomorrow".to_owned(), json!({"a": [1]}))]).collect()
        }
        Value::Array(all) => all.iter().map(newer).collect(),
        other => other.clone(),
    }
}

fn record() -> Value {
    let (at, second) = ("2026-11-28T10:00:00.000000Z", "2026-11-28T10:00:00Z");
    json!({
        "namespace": "t", "computer": "c", "provider": "Managed", "className": "k",
        "snapshot": {"archive": {"policy": "Required", "unreadableFiles": "Block", "onNamespaceDeletion": "Wait"},
            "deadlines": {"stopPodsSeconds": 1, "archiveSessionsSeconds": 2, "deleteVolumesSeconds": 3}, "runAsUser": 1000,
            "tolerations": [{"key": "k"}]},
        "state": {
            "phase": "Deleting", "credential": "Revoked", "keyHash": "h",
            "ending": {"cause": "TimeToLiveExpired", "at": at}, "crashLoop": {"pods": 1, "last": "Error"},
            "children": {"claimName": "home", "claimUid": "u", "pods": [{"name": "machine", "uid": "p"}],
                "volume": {"name": "pv", "uid": "v", "originalReclaimPolicy": "Delete"}},
            "deletion": {"deletedAt": second, "cause": "ComputerDeleted", "started": {"delete-volumes": at}, "handedOff": false,
                "custody": {"claimUid": "c", "attempt": 1},
                "archive": {"manifestDigest": "d", "sessions": 1, "bytes": 2, "problems": 0},
                "receipt": {"digest": "d", "at": at},
                "steps": {}},
        },
    })
}

/// An older version reads the record, changes what it knows, and replaces the whole. A rollback must lose nothing.
#[test]
fn fields_of_a_newer_version_are_written_back() {
    let mut of_tomorrow = newer(&record());
    // The keys are the ids of the steps: the unknown field is in a step, not beside one.
    of_tomorrow["state"]["deletion"]["steps"] =
        json!({"stop-pods": {"result": "Verified", "detail": "", "at": "2026-11-28T10:00:00.000000Z", "ofTomorrow": 1}});
    let read: ComputerRecordSpec = serde_json::from_value(of_tomorrow.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), of_tomorrow);
    let mut key = newer(&json!({"namespace": "t", "apiKey": "k", "serviceAccountName": "s",
        "token": {"state": "Live", "hash": "h", "serviceAccountUID": "u", "secret": {"name": "n", "uid": "u"}},
        "retired": [{"name": "o"}]}));
    let read: ApiKeyRecordSpec = serde_json::from_value(key.take()).unwrap();
    let again = serde_json::to_value(&read).unwrap();
    assert_eq!(again.to_string().matches("ofTomorrow").count(), 4, "{again}");
}
