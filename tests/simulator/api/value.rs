//! Accessors for objects that are JSON.

use serde_json::Value;

pub fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

pub fn uid(value: &Value) -> &str {
    text(value, "/metadata/uid").unwrap_or_default()
}

pub fn name(value: &Value) -> &str {
    text(value, "/metadata/name").unwrap_or_default()
}

pub fn namespace(value: &Value) -> &str {
    text(value, "/metadata/namespace").unwrap_or_default()
}

pub fn deleting(value: &Value) -> bool {
    text(value, "/metadata/deletionTimestamp").is_some()
}

pub fn finalizers(value: &Value) -> Vec<String> {
    let list = value.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|f| f.as_str().map(str::to_owned)).collect()
}

pub fn has_finalizer(value: &Value, finalizer: &str) -> bool {
    let list = value.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.is_some_and(|l| l.iter().any(|f| f == finalizer))
}

pub fn label<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.pointer("/metadata/labels")?.get(key)?.as_str()
}

/// UIDs of the owners.
pub fn owners(value: &Value) -> Vec<String> {
    let list = value.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|o| text(o, "/uid").map(str::to_owned)).collect()
}

/// Whether a selector of the form `key=value,key` matches the object. `key` alone requires that the label exists.
pub fn selected(value: &Value, selector: &str) -> bool {
    let fits = |part: &str| match part.split_once('=') {
        Some((key, wanted)) => label(value, key) == Some(wanted.trim_start_matches('=')),
        None => label(value, part).is_some(),
    };
    selector.is_empty() || selector.split(',').all(fits)
}
