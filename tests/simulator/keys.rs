//! The keys of computers, as their users have them: in the operator's Secrets, and decided about by the code that the HTTP API uses.

use std::collections::BTreeSet;

use base64::Engine as _;
use computer_operator::credentials::Key;
use computer_operator::credentials::verify::decide;
use jiff::Timestamp;
use serde_json::Value;

use crate::api::State;
use crate::api::value::{text, typed, uid};
use crate::checks;

/// The hashes of the keys that the tenant can use: the Secret exists, and the key authenticates.
pub fn usable(state: &State) -> BTreeSet<String> {
    let keys = state.all("secrets").filter(|secret| state.observer.owns(uid(secret))).filter_map(|secret| token(secret));
    keys.filter(|key| authenticates(state, key)).map(|key| key.hash()).collect()
}

/// The real decision about a key, on the current objects of the API server. The overlap of a rotation never ends here.
pub fn authenticates(state: &State, key: &Key) -> bool {
    let id = &key.computer;
    let computer = state.get("computers", &id.namespace, &id.name).and_then(typed);
    let space = state.get("namespaces", "", &id.namespace).and_then(typed);
    let record = checks::record(state, &id.uid);
    decide(key, record.as_deref(), computer.as_deref(), space.as_deref(), Timestamp::MIN).is_ok()
}

/// The key in a Secret of the operator.
pub fn token(secret: &Value) -> Option<Key> {
    let data = text(secret, "/data/token")?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(data).ok()?;
    Key::parse(std::str::from_utf8(&bytes).ok()?)
}
