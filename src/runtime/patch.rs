//! JSON patches (RFC 6902) from typed operations. A path is a list of keys, so a key with a `/` needs no escaping, and a patch cannot be
//! malformed. This matters because a patch without operations succeeds and has no fence. Nothing here knows a kind.

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

fn path<'a>(keys: impl IntoIterator<Item: Into<Token<'a>>>) -> PointerBuf {
    PointerBuf::from_tokens(keys)
}

/// The patch applies only if this field has this value.
pub fn test<'a>(keys: impl IntoIterator<Item: Into<Token<'a>>>, value: Value) -> PatchOperation {
    PatchOperation::Test(TestOperation { path: path(keys), value })
}

/// Sets a field, whether it exists or not; inserts into a list.
pub fn add<'a>(keys: impl IntoIterator<Item: Into<Token<'a>>>, value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: path(keys), value })
}

/// Sets a field that exists.
pub fn replace<'a>(keys: impl IntoIterator<Item: Into<Token<'a>>>, value: Value) -> PatchOperation {
    PatchOperation::Replace(ReplaceOperation { path: path(keys), value })
}

/// Removes a field that exists.
pub fn remove<'a>(keys: impl IntoIterator<Item: Into<Token<'a>>>) -> PatchOperation {
    PatchOperation::Remove(RemoveOperation { path: path(keys) })
}

/// The patch applies only to the object with this UID (S4).
pub fn same_uid(metadata: &ObjectMeta) -> PatchOperation {
    test(["metadata", "uid"], json!(metadata.uid))
}

/// The patch applies only to the version of the object that was read.
pub fn same_version(metadata: &ObjectMeta) -> PatchOperation {
    test(["metadata", "resourceVersion"], json!(metadata.resource_version))
}

/// Replaces the status of the object with this UID.
pub fn status(metadata: &ObjectMeta, status: Value) -> Patch {
    Patch(vec![same_uid(metadata), add(["status"], status)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_a_slash_is_one_key() {
        let mut object = json!({"metadata": {"uid": "u", "labels": {"example.com/a": "1"}}});
        let meta = ObjectMeta { uid: Some("u".to_owned()), ..ObjectMeta::default() };
        let patch = Patch(vec![same_uid(&meta), remove(["metadata", "labels", "example.com/a"]), add(["status"], json!({"x": 1}))]);
        json_patch::patch(&mut object, &patch).unwrap();
        assert_eq!(object, json!({"metadata": {"uid": "u", "labels": {}}, "status": {"x": 1}}));
        assert!(json_patch::patch(&mut object, &Patch(vec![same_uid(&ObjectMeta::default())])).is_err(), "no UID is not any UID");
    }
}
