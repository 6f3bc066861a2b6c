//! A record that version b296e59 wrote. The operator's own tests use this file, too.

use serde_json::{Value, json};

/// The record of a deletion as b296e59 wrote it, after these steps.
pub fn record_of_b296e59(finished: usize) -> Value {
    let at = "2026-11-27T10:00:07Z";
    let outcomes = [
        ("revoke-credentials", "Verified", "the key is revoked and its Secret is gone"),
        ("stop-pods", "Verified", "every container has stopped, pods and claim are gone"),
        ("archive-sessions", "Verified", "1 sessions, 12 bytes, manifest sha256:d"),
        ("delete-volumes", "Verified", "volume pv is gone"),
    ];
    let steps: serde_json::Map<_, _> = outcomes[..finished]
        .iter()
        .map(|(id, result, detail)| ((*id).to_owned(), json!({"result": result, "detail": detail, "at": at})))
        .collect();
    let mut deletion = json!({"deletedAt": "2026-11-27T10:00:00Z", "cause": "ComputerDeleted", "steps": steps, "handedOff": false});
    if let Some((id, ..)) = outcomes.get(finished) {
        deletion["started"] = json!({*id: at});
    }
    if finished >= 3 {
        deletion["custody"] = json!({"claimUid": "custody", "podUid": "archive", "attempt": 1});
        deletion["archive"] = json!({"manifestDigest": "d", "sessions": 1, "bytes": 12, "problems": 0});
    }
    json!({
        "phase": "Deleting", "credential": "Revoked", "keyHash": "h",
        "children": {"claimName": "home", "claimUid": "claim", "secretName": "key", "secretUid": "secret",
            "pods": [{"name": "machine", "uid": "pod", "node": "n"}],
            "volume": {"name": "pv", "uid": "pv-uid", "originalReclaimPolicy": "Delete", "storageClassName": "standard"}},
        "deletion": deletion,
    })
}
