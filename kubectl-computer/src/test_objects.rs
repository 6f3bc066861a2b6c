//! Objects for tests, as an API server would answer.

use computer_operator_api::{Computer, ComputerRecord};
use serde_json::{Value, json};

use crate::cluster::Answer;
use crate::observe::Observed;

/// The UID of the computer of the tests.
pub const UID: &str = "0b4f1c1e-6f0e-4a39-9a3b-111111111111";

/// The time of the tests.
pub fn now() -> jiff::Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

/// The computer `team-a/box`, with these fields instead of the usual ones, and its record.
pub fn observed(computer: Option<Value>, record: Option<Value>) -> Observed {
    let whole = |fields: Value, kind: &str, name: &str, namespace: &str| {
        let mut object = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "uid": UID, "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}, "spec": {}});
        merge(&mut object, fields);
        object
    };
    let computer = computer.map(|fields| serde_json::from_value::<Computer>(whole(fields, "Computer", "box", "team-a")).unwrap());
    let record = record.map(|state| {
        let fields = json!({"spec": {"namespace": "team-a", "computer": "box", "state": state}});
        serde_json::from_value::<ComputerRecord>(whole(fields, "ComputerRecord", UID, "operator")).unwrap()
    });
    Observed {
        now: now(),
        asked: "box".to_owned(),
        namespace: "team-a".to_owned(),
        computer: computer.map_or(Answer::Absent, Answer::Found),
        record: record.map_or(Answer::Absent, Answer::Found),
        class: Answer::Absent,
        events: Vec::new(),
        record_events: Vec::new(),
        may_override: None,
        operator_namespace: "operator".to_owned(),
    }
}

fn merge(object: &mut Value, fields: Value) {
    let (Value::Object(object), Value::Object(fields)) = (object, fields) else { return };
    for (key, value) in fields {
        match object.get_mut(&key) {
            Some(old) if old.is_object() => merge(old, value),
            _ => {
                object.insert(key, value);
            }
        }
    }
}
