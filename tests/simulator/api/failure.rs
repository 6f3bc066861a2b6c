//! Refusals of the simulated API server, with the texts of the real one.

use serde_json::{Value, json};

use super::kinds::Meta;

/// A refusal: becomes a `Status`.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Value,
}

pub type Answer = Result<Value, Failure>;

impl Failure {
    fn new(code: u16, reason: &'static str, message: String, meta: &Meta, name: &str) -> Self {
        let mut details = json!({"name": name, "kind": meta.plural});
        if !meta.group.is_empty() {
            details["group"] = json!(meta.group);
        }
        Self { code, reason, message, details }
    }

    pub fn not_found(meta: &Meta, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", meta.resource()), meta, name)
    }

    pub fn already_exists(meta: &Meta, name: &str, deleting: bool) -> Self {
        let note = if deleting { "object is being deleted: " } else { "" };
        Self::new(409, "AlreadyExists", format!("{note}{} \"{name}\" already exists", meta.resource()), meta, name)
    }

    pub fn modified(meta: &Meta, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(meta, name, why)
    }

    pub fn conflict(meta: &Meta, name: &str, why: &str) -> Self {
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {} \"{name}\": {why}", meta.resource()), meta, name)
    }

    /// A precondition of a DELETE failed.
    pub fn precondition(meta: &Meta, name: &str, why: &str) -> Self {
        let mut failure = Self::conflict(meta, name, why);
        failure.message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", meta.qualified());
        failure.details["kind"] = json!(meta.kind);
        failure
    }

    pub fn terminating(meta: &Meta, name: &str, namespace: &str) -> Self {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut failure = Self::new(403, "Forbidden", format!("{} \"{name}\" is forbidden: {why}", meta.resource()), meta, name);
        failure.details["causes"] = json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace",
            "message": format!("namespace {namespace} is being terminated")}]);
        failure
    }

    pub fn forbidden(meta: &Meta, name: &str) -> Self {
        Self::new(403, "Forbidden", format!("{} \"{name}\" is forbidden: the simulation says so", meta.resource()), meta, name)
    }

    /// A JSON patch that cannot be applied, a failed `test` among them.
    pub fn patch() -> Self {
        let message = "the server rejected our request due to an error in our request".to_owned();
        Self { code: 422, reason: "Invalid", message, details: json!({}) }
    }

    pub fn new_finalizers(meta: &Meta, name: &str, added: &[String]) -> Self {
        let quoted: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
        let why = format!(
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            quoted.join(", ")
        );
        let mut failure = Self::new(422, "Invalid", format!("{} \"{name}\" is invalid: {why}", meta.qualified()), meta, name);
        failure.details["kind"] = json!(meta.kind);
        failure
    }

    pub fn bad_request(message: String) -> Self {
        Self { code: 400, reason: "BadRequest", message, details: json!({}) }
    }

    pub fn expired() -> Self {
        Self { code: 410, reason: "Expired", message: "too old resource version".to_owned(), details: json!({}) }
    }

    pub fn server(code: u16) -> Self {
        let reason = match code {
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        Self { code, reason, message: "the simulation says so".to_owned(), details: json!({}) }
    }

    pub fn body(&self) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "reason": self.reason, "details": self.details, "code": self.code})
    }
}
