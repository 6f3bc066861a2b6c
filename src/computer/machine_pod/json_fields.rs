//! Access to the fields of a pod as JSON. A field that is null counts as missing, as the API server sees it. A field of the wrong type is an
//! error with its path; it must never be replaced.

use serde_json::{Map, Value};

/// The fields of an object.
pub(super) type Fields = Map<String, Value>;

/// Sets a field that is missing.
pub(super) fn fill(fields: &mut Fields, name: &str, value: impl Into<Value>) {
    let field = fields.entry(name).or_insert(Value::Null);
    if field.is_null() {
        *field = value.into();
    }
}

/// A field that is an object, created if it is missing. `path`: of the object that has the field.
pub(super) fn object<'a>(fields: &'a mut Fields, name: &str, path: &str) -> Result<&'a mut Fields, String> {
    fill(fields, name, Fields::new());
    fields.get_mut(name).and_then(Value::as_object_mut).ok_or_else(|| format!("{path}.{name} must be an object"))
}

/// A field that is a list, created if it is missing.
pub(super) fn list<'a>(fields: &'a mut Fields, name: &str, path: &str) -> Result<&'a mut Vec<Value>, String> {
    fill(fields, name, Vec::<Value>::new());
    fields.get_mut(name).and_then(Value::as_array_mut).ok_or_else(|| format!("{path}.{name} must be a list"))
}

/// A field that is a list of objects.
pub(super) fn objects<'a>(fields: &'a mut Fields, name: &str, path: &str) -> Result<Vec<&'a mut Fields>, String> {
    let items = list(fields, name, path)?.iter_mut().enumerate();
    items.map(|(i, item)| item.as_object_mut().ok_or_else(|| format!("{path}.{name}[{i}] must be an object"))).collect()
}

/// Refuses fields that are not in `known`.
pub(super) fn only(fields: &Fields, path: &str, known: &[&str]) -> Result<(), String> {
    match fields.iter().find(|(name, value)| !value.is_null() && !known.contains(&name.as_str())) {
        Some((name, _)) => Err(format!("{path}.{name} is not a field of a pod template of a ComputerClass. Fix or remove it")),
        None => Ok(()),
    }
}
