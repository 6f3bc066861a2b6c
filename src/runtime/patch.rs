//! JSON patches.

use serde_json::Value;

/// A JSON patch from literal operations.
pub fn patch(operations: &[Value]) -> json_patch::Patch {
    // The operations are literals of this crate; one that is not an operation would make an empty patch, and its test fail.
    serde_json::from_value(Value::Array(operations.to_vec())).unwrap_or_default()
}
