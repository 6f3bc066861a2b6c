//! The published error object, for every code on every path: `{detail, status, title, metadata?}` as `application/json`.
//! `detail` says what to do. It never holds a token, and nothing about what the caller may not see.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

use crate::runtime::client::{CallError, ErrorClass, classify};

/// An error as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Error)]
pub struct ErrorBody {
    /// Human-readable error message
    pub detail: String,
    /// HTTP status code
    #[schema(schema_with = number)]
    pub status: u16,
    /// HTTP status title
    pub title: String,
    /// Additional error metadata
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = free_form)]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// As published: a number, not an integer.
fn number() -> Object {
    ObjectBuilder::new().schema_type(Type::Number).description(Some("HTTP status code")).build()
}

fn free_form() -> Object {
    use utoipa::openapi::schema::AdditionalProperties;
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Additional error metadata"))
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .build()
}

/// What stands in the API server's words when it is an admin's rule that refuses, and not a right of this server that is missing.
const REFUSALS: [&str; 4] = ["ValidatingAdmissionPolicy", "admission webhook", "exceeded quota", "unknown for quota"];

/// Why a request is refused or failed.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    detail: String,
    metadata: Option<(&'static str, serde_json::Value)>,
}

impl ApiError {
    /// Any code with what to do.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), metadata: None }
    }

    /// 400: the request cannot be as it is.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 401. One text for every reason: a caller learns nothing about a token that is not good.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "no valid credential: send `Authorization: Bearer` with a computer's key, an ApiKey token, or a token that the cluster trusts",
        )
    }

    /// 403: seen, but not permitted.
    pub fn forbidden(verb: &str, resource: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, format!("you may not {verb} {resource} here: ask an admin for a role with that verb"))
    }

    /// 404, the same for what is not there and for what the caller may not see.
    pub fn not_found(kind: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no such {kind}, or you may not see it"))
    }

    /// 409.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 500: it failed, or whether it took effect is not known.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    /// 501: nothing behind this API can do it, and it does not pretend.
    pub fn no_agent(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{what}: no agent answers behind this API; talk to the one that runs on the computer"),
        )
    }

    /// With something for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.metadata = Some((key, value.into()));
        self
    }

    /// The code.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What the API server refused while `doing` something for a caller who may do it.
    pub fn from_call(error: &CallError, kind: &str, doing: &str) -> Self {
        let class = classify(error);
        let said = match error {
            CallError::Kube(kube::Error::Api(status)) => status.message.clone(),
            _ => String::new(),
        };
        match class {
            ErrorClass::NotFound => Self::not_found(kind),
            ErrorClass::Conflict => Self::conflict(format!("{doing}: somebody changed it at the same time; read it and try again")),
            ErrorClass::Invalid => Self::invalid(said),
            ErrorClass::NamespaceTerminating => Self::conflict("the namespace is being deleted: nothing can be created or changed in it"),
            // An admission policy's word is for the caller; a right that this server lacks is not.
            ErrorClass::Forbidden if REFUSALS.iter().any(|by| said.contains(by)) => Self::conflict(said),
            ErrorClass::Forbidden | ErrorClass::Unauthorized | ErrorClass::Transient | ErrorClass::Timeout => {
                tracing::error!(class = class.label(), error = %error, "{doing} failed");
                Self::internal(format!(
                    "{doing}: the cluster did not answer as it should, and it is not known whether it took effect; try again"
                ))
            }
        }
    }
}

impl ApiError {
    /// The published object.
    pub fn body(self) -> ErrorBody {
        let title = self.status.canonical_reason().unwrap_or("Error").to_owned();
        let metadata = self.metadata.map(|(key, value)| [(key.to_owned(), value)].into_iter().collect());
        ErrorBody { detail: self.detail, status: self.status.as_u16(), title, metadata }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_may_not_see_and_what_is_not_there_are_the_same() {
        let gone = kube::core::Status { code: 404, reason: "NotFound".into(), ..Default::default() };
        let error = ApiError::from_call(&CallError::Kube(kube::Error::Api(Box::new(gone))), "computer", "reading it");
        assert_eq!(error, ApiError::not_found("computer"));
    }

    /// The body is a real API server's (1.37), with the chart's policy.
    #[test]
    fn deletion_protection_is_409_with_the_policys_words() {
        let message = "computers.computer-operator.dev \"kept\" is forbidden: ValidatingAdmissionPolicy 'co-deletion-protection' with binding 'co-deletion-protection' denied request: deletion protection is on. Take it off first";
        let refused = kube::core::Status { code: 403, reason: "Forbidden".into(), message: message.into(), ..Default::default() };
        let error = ApiError::from_call(&CallError::Kube(kube::Error::Api(Box::new(refused))), "computer", "deleting it");
        assert_eq!((error.status(), error.detail.as_str()), (StatusCode::CONFLICT, message));
    }

    #[test]
    fn an_unknown_outcome_is_500() {
        assert_eq!(ApiError::from_call(&CallError::Timeout, "computer", "deleting it").status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
