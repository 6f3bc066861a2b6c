//! Create, update, patch and delete, with the rules that the promises depend on: versions, UIDs, preconditions, finalizers, grace periods.

use std::sync::Arc;

use base64::Engine as _;
use serde_json::{Value, json};

use super::failure::{Answer, Failure};
use super::kinds::{self, Kind, Meta};
use super::state::{Actor, State};
use super::value::{deleting, finalizers, label, name, namespace, selected, text, uid};

/// The options of a DELETE.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub grace: Option<i64>,
    pub propagation: Option<String>,
}

/// How the body of an update is to be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The object without its status, if the status is written through a subresource.
    Main,
    /// Its status only.
    Status,
}

impl State {
    pub fn read(&self, kind: Kind, namespace: &str, name: &str) -> Answer {
        self.get(kind, namespace, name).map(|v| (**v).clone()).ok_or_else(|| Failure::not_found(kinds::meta(kind), name))
    }

    pub fn list(&self, kind: Kind, within: &str, selector: &str) -> Value {
        let meta = kinds::meta(kind);
        let inside = |v: &&Arc<Value>| within.is_empty() || namespace(v) == within;
        let items: Vec<Value> = self.all(kind).filter(inside).filter(|v| selected(v, selector)).map(|v| (**v).clone()).collect();
        json!({"apiVersion": meta.api_version(), "kind": format!("{}List", meta.kind),
            "metadata": {"resourceVersion": self.rv().to_string()}, "items": items})
    }

    pub fn create(&mut self, actor: Actor, kind: Kind, within: &str, mut body: Value, dry_run: bool) -> Answer {
        let meta = kinds::meta(kind);
        if text(&body, "/metadata/name").is_none() {
            let Some(prefix) = text(&body, "/metadata/generateName") else {
                return Err(Failure::bad_request("name or generateName is required".to_owned()));
            };
            let made = format!("{prefix}{:05}", self.rv() % 100_000);
            body["metadata"]["name"] = json!(made);
        }
        let wanted = name(&body).to_owned();
        if meta.namespaced {
            let Some(space) = self.get("namespaces", "", within) else { return Err(Failure::not_found(kinds::meta("namespaces"), within)) };
            if deleting(space) {
                return Err(Failure::terminating(meta, &wanted, within));
            }
            body["metadata"]["namespace"] = json!(within);
        }
        if let Some(there) = self.get(kind, within, &wanted) {
            return Err(Failure::already_exists(meta, &wanted, deleting(there)));
        }
        self.prepare(meta, &mut body);
        if dry_run {
            return Ok(body);
        }
        Ok((*self.commit(actor, kind, None, body)).clone())
    }

    /// Sets the defaults of the API server and its admission.
    fn prepare(&mut self, meta: &Meta, body: &mut Value) {
        let stamp = self.stamp(0);
        let new_uid = self.new_uid();
        body["apiVersion"] = json!(meta.api_version());
        body["kind"] = json!(meta.kind);
        if let Some(metadata) = body["metadata"].as_object_mut() {
            for given in ["deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "uid", "generation", "selfLink"] {
                metadata.remove(given);
            }
            metadata.insert("uid".to_owned(), json!(new_uid));
            metadata.insert("creationTimestamp".to_owned(), json!(stamp));
        }
        if meta.is_ours() || meta.plural == "pods" {
            body["metadata"]["generation"] = json!(1);
        }
        if meta.status
            && let Some(map) = body.as_object_mut()
        {
            map.remove("status");
        }
        kinds::fill_defaults(meta.plural, body);
        match meta.plural {
            "pods" => {
                body["status"] = json!({"phase": "Pending"});
                if body["spec"]["terminationGracePeriodSeconds"].is_null() {
                    body["spec"]["terminationGracePeriodSeconds"] = json!(30);
                }
            }
            "persistentvolumeclaims" => {
                body["status"] = json!({"phase": "Pending"});
                protect(body, "kubernetes.io/pvc-protection");
            }
            "persistentvolumes" => {
                body["status"] = json!({"phase": "Pending"});
                protect(body, "kubernetes.io/pv-protection");
            }
            "namespaces" => {
                body["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name(body));
                body["spec"] = json!({"finalizers": ["kubernetes"]});
                body["status"] = json!({"phase": "Active"});
            }
            "secrets" => encode(body),
            _ => {}
        }
    }

    /// A PUT, or the result of a PATCH.
    pub fn update(&mut self, actor: Actor, kind: Kind, within: &str, wanted: &str, body: Value, part: Part) -> Answer {
        let meta = kinds::meta(kind);
        let Some(current) = self.get(kind, within, wanted).cloned() else { return Err(Failure::not_found(meta, wanted)) };
        if let Some(given) = text(&body, "/metadata/uid").filter(|u| *u != uid(&current)) {
            let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {}", uid(&current));
            let key = format!("/registry/{}/{kind}/{within}/{wanted}", meta.group);
            let error = format!("StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {why}");
            return Err(Failure::conflict(meta, wanted, &error));
        }
        let version = text(&body, "/metadata/resourceVersion").unwrap_or_default();
        if !version.is_empty() && Some(version) != text(&current, "/metadata/resourceVersion") {
            return Err(Failure::modified(meta, wanted));
        }
        let mut new = merged(meta, &current, body, part);
        if actor.is_operator() && self.undone_until.is_some_and(|until| tokio::time::Instant::now() < until) {
            undo(kind, &current, &mut new);
        }
        let old = finalizers(&current);
        let added: Vec<String> = finalizers(&new).into_iter().filter(|f| !old.contains(f)).collect();
        if deleting(&current) && !added.is_empty() {
            return Err(Failure::new_finalizers(meta, wanted, &added));
        }
        if new == *current {
            return Ok(new);
        }
        if meta.is_ours() && part == Part::Main && new["spec"] != current["spec"] {
            new["metadata"]["generation"] = json!(current["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
        }
        Ok(self.settle(actor, kind, current, new))
    }

    /// Stores a new state; removes the object if it is being deleted and has no finalizers left.
    pub(super) fn settle(&mut self, actor: Actor, kind: Kind, current: Arc<Value>, new: Value) -> Value {
        let ended =
            deleting(&new) && finalizers(&new).is_empty() && new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0;
        let held = kind == "namespaces" && new["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if ended && !held {
            let mut answer = new.clone();
            answer["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
            self.remove(actor, kind, current, new);
            return answer;
        }
        (*self.commit(actor, kind, Some(current), new)).clone()
    }

    pub fn json_patch(&mut self, actor: Actor, key: (Kind, &str, &str), patch: &Value, part: Part) -> Answer {
        let (kind, within, wanted) = key;
        let mut value = self.read(kind, within, wanted)?;
        let operations: json_patch::Patch =
            serde_json::from_value(patch.clone()).map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))?;
        json_patch::patch(&mut value, &operations).map_err(|_| Failure::patch())?;
        self.update(actor, kind, within, wanted, value, part)
    }

    pub fn merge_patch(&mut self, actor: Actor, key: (Kind, &str, &str), patch: &Value, part: Part) -> Answer {
        let (kind, within, wanted) = key;
        let mut value = self.read(kind, within, wanted)?;
        json_patch::merge(&mut value, patch);
        self.update(actor, kind, within, wanted, value, part)
    }

    pub fn delete(&mut self, actor: Actor, kind: Kind, within: &str, wanted: &str, options: &DeleteOptions) -> Answer {
        let meta = kinds::meta(kind);
        let Some(current) = self.get(kind, within, wanted).cloned() else { return Err(Failure::not_found(meta, wanted)) };
        preconditions(meta, wanted, &current, options)?;
        if actor.is_operator() && !options.dry_run && options.grace != Some(0) {
            self.observer.asked_to_delete(uid(&current), format!("{kind} {wanted}"));
        }
        let new = self.marked(kind, &current, options);
        let removed =
            finalizers(&new).is_empty() && new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0 && kind != "namespaces";
        if !options.dry_run {
            if removed {
                self.remove(actor, kind, Arc::clone(&current), new.clone());
            } else if new != *current {
                return Ok((*self.commit(actor, kind, Some(current), new)).clone());
            }
        }
        if !removed || meta.returns_object {
            return Ok(new);
        }
        let mut details = json!({"name": wanted, "kind": meta.plural, "uid": uid(&current)});
        if !meta.group.is_empty() {
            details["group"] = json!(meta.group);
        }
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}))
    }

    /// The object marked as being deleted.
    fn marked(&self, kind: Kind, current: &Value, options: &DeleteOptions) -> Value {
        let mut new = current.clone();
        let finalizer = match options.propagation.as_deref() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer.filter(|_| !deleting(current)) {
            protect(&mut new, finalizer);
        }
        let mut grace = 0;
        if kind == "pods" {
            let ended = matches!(text(current, "/status/phase"), Some("Failed" | "Succeeded"));
            let own = current["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
            let unplaced = text(current, "/spec/nodeName").is_none();
            grace = if ended || unplaced { 0 } else { options.grace.unwrap_or(own) };
        }
        let before = current["metadata"]["deletionGracePeriodSeconds"].as_i64();
        if !deleting(current) || before.is_some_and(|b| grace < b) {
            if !deleting(current) || grace > 0 {
                new["metadata"]["deletionTimestamp"] = json!(self.stamp(grace));
            }
            if kind != "namespaces" {
                new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            }
            if kind == "namespaces" {
                new["status"]["phase"] = json!("Terminating");
            }
            if new["metadata"]["generation"].is_i64() && !deleting(current) {
                new["metadata"]["generation"] = json!(new["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
            }
        }
        new
    }
}

/// A mutating webhook that removes additions: finalizers of Computers, and marks on volumes.
fn undo(kind: Kind, current: &Value, new: &mut Value) {
    match kind {
        "computers" => {
            let old = finalizers(current);
            let kept: Vec<String> = finalizers(new).into_iter().filter(|f| old.contains(f)).collect();
            if !finalizers(new).is_empty() {
                new["metadata"]["finalizers"] = json!(kept);
            }
            // The API server does not store an empty list.
            if kept.is_empty() && current["metadata"]["finalizers"].is_null() {
                new["metadata"].as_object_mut().map(|m| m.remove("finalizers"));
            }
        }
        "persistentvolumes" => {
            for field in ["labels", "annotations"] {
                let before = current["metadata"][field].clone();
                match (before, new["metadata"].as_object_mut()) {
                    (Value::Null, Some(metadata)) => drop(metadata.remove(field)),
                    (before, _) => new["metadata"][field] = before,
                }
            }
            new["spec"]["persistentVolumeReclaimPolicy"] = current["spec"]["persistentVolumeReclaimPolicy"].clone();
        }
        _ => {}
    }
}

fn preconditions(meta: &Meta, wanted: &str, current: &Value, options: &DeleteOptions) -> Result<(), Failure> {
    if let Some(given) = options.uid.as_deref().filter(|u| *u != uid(current)) {
        let what = format!("the UID in the precondition ({given}) does not match the UID in record ({})", uid(current));
        return Err(Failure::precondition(meta, wanted, &format!("{what}. The object might have been deleted and then recreated")));
    }
    let version = text(current, "/metadata/resourceVersion").unwrap_or_default();
    if let Some(given) = options.resource_version.as_deref().filter(|v| *v != version) {
        let what = format!("the ResourceVersion in the precondition ({given}) does not match the ResourceVersion in record ({version})");
        return Err(Failure::precondition(meta, wanted, &format!("{what}. The object might have been modified")));
    }
    Ok(())
}

/// The new state of an object: fields that an update may not change are kept from the current one.
fn merged(meta: &Meta, current: &Value, mut body: Value, part: Part) -> Value {
    if part == Part::Status {
        let mut new = current.clone();
        match body.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => drop(new.as_object_mut().and_then(|m| m.remove("status"))),
        }
        kinds::fill_defaults(meta.plural, &mut new);
        return new;
    }
    if meta.status {
        match current.get("status") {
            Some(status) => body["status"] = status.clone(),
            None => drop(body.as_object_mut().and_then(|m| m.remove("status"))),
        }
    }
    body["apiVersion"] = current["apiVersion"].clone();
    body["kind"] = current["kind"].clone();
    let kept =
        ["uid", "creationTimestamp", "resourceVersion", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "namespace"];
    if let Some(metadata) = body["metadata"].as_object_mut() {
        for field in kept {
            metadata.remove(field);
            if let Some(value) = current["metadata"].get(field) {
                metadata.insert(field.to_owned(), value.clone());
            }
        }
        metadata.retain(|_, v| !matches!(v, Value::Array(a) if a.is_empty()) && !matches!(v, Value::Object(o) if o.is_empty()));
    }
    kinds::fill_defaults(meta.plural, &mut body);
    encode(&mut body);
    body
}

fn protect(body: &mut Value, finalizer: &str) {
    let mut list = finalizers(body);
    if !list.iter().any(|f| f == finalizer) {
        list.push(finalizer.to_owned());
    }
    body["metadata"]["finalizers"] = json!(list);
}

/// `stringData` of a Secret becomes `data`.
fn encode(body: &mut Value) {
    let Some(Value::Object(plain)) = body.as_object_mut().and_then(|m| m.remove("stringData")) else { return };
    for (key, value) in plain {
        let bytes = value.as_str().unwrap_or_default().as_bytes();
        body["data"][key] = json!(base64::engine::general_purpose::STANDARD.encode(bytes));
    }
}

/// The UID label of the operator's objects.
pub fn computer_of(value: &Value) -> Option<&str> {
    label(value, computer_operator::resources::UID_LABEL)
}
