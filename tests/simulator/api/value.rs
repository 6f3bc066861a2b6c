//! Accessors for objects that are JSON. Every check reads every object after every change, so these are most of a run's time.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The field at a path like `/metadata/uid`. `Value::pointer` allocates for every name, because one may be escaped.
pub fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    if path.contains('~') || !path.starts_with('/') {
        return value.pointer(path);
    }
    path.split('/').skip(1).try_fold(value, |value, name| match value {
        Value::Object(map) => map.get(name),
        Value::Array(list) => list.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}

pub fn text<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    at(value, path).and_then(Value::as_str)
}

/// A stored object and what it was parsed to. It keeps the object, so no other can take its address.
type Parsed = (Arc<Value>, Option<Arc<dyn Any + Send + Sync>>);

/// As many objects as one run has at a time, and some of its past.
const REMEMBERED: usize = 64;

thread_local! {
    static TYPED: RefCell<HashMap<*const Value, Parsed>> = RefCell::default();
}

/// The object as one of the operator's types, if it is one. A stored object never changes: each is parsed once, as the type of its kind.
/// The second type that an object is asked for would be `None`.
pub fn typed<T: DeserializeOwned + Send + Sync + 'static>(object: &Arc<Value>) -> Option<Arc<T>> {
    TYPED.with_borrow_mut(|known| {
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let parse = || T::deserialize(&**object).ok().map(|parsed| Arc::new(parsed) as Arc<dyn Any + Send + Sync>);
        let (_, parsed) = known.entry(Arc::as_ptr(object)).or_insert_with(|| (Arc::clone(object), parse()));
        parsed.clone()?.downcast().ok()
    })
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
    let list = at(value, "/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|f| f.as_str().map(str::to_owned)).collect()
}

pub fn has_finalizer(value: &Value, finalizer: &str) -> bool {
    let list = at(value, "/metadata/finalizers").and_then(Value::as_array);
    list.is_some_and(|l| l.iter().any(|f| f == finalizer))
}

pub fn label<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    at(value, "/metadata/labels")?.get(key)?.as_str()
}

/// UIDs of the owners.
pub fn owners(value: &Value) -> Vec<String> {
    let list = at(value, "/metadata/ownerReferences").and_then(Value::as_array);
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
