//! The published error object, used for every error on every path: `{detail, status, title, metadata?}` as `application/json`. `detail` says what is
//! wrong and what to do. It must never contain a token or reveal an object that the caller may not see.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

use crate::runtime::client::{CallError, ErrorClass, classify};

/// An error response.
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

/// A number instead of an integer, as published.
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

/// Parts of messages that show that a rule of an admin rejected the request, rather than that this server lacks a permission.
const ADMISSION_REJECTIONS: [&str; 4] = ["ValidatingAdmissionPolicy", "admission webhook", "exceeded quota", "unknown for quota"];

/// Why a request was rejected or failed.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    detail: String,
    metadata: Option<(&'static str, serde_json::Value)>,
}

impl ApiError {
    /// An error with any status code. `detail` says what to do.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), metadata: None }
    }

    /// 400: the request is invalid.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 401, with the same text for every reason, so that a caller learns nothing about an invalid token.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "missing or invalid credential: send the header `Authorization: Bearer` with a computer's key, a token of an ApiKey, or a token that the cluster trusts",
        )
    }

    /// 403: the caller may see the object, but not do this.
    pub fn forbidden(verb: &str, resource: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            format!("you do not have permission to {verb} {resource} in this namespace: ask an admin for a role with that verb"),
        )
    }

    /// 404, the same for a missing object and for one that the caller may not see.
    pub fn not_found(kind: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("the {kind} does not exist, or you do not have permission to see it"))
    }

    /// 409.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 500: the request failed, or its outcome is unknown.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    /// 501: no agent is connected that could serve the request.
    pub fn no_agent(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{what} is not supported: no agent is connected to this API. Use the agent that runs on the computer"),
        )
    }

    /// Adds metadata for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.metadata = Some((key, value.into()));
        self
    }

    /// The same detail as 500.
    #[must_use]
    pub fn into_internal(self) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, ..self }
    }

    /// The status code.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Converts a failed request to the API server. `doing` describes the operation, which the caller is permitted to do.
    pub fn from_call(error: &CallError, kind: &str, doing: &str) -> Self {
        let class = classify(error);
        let message = match error {
            CallError::Kube(kube::Error::Api(status)) => status.message.clone(),
            _ => String::new(),
        };
        match class {
            ErrorClass::NotFound => Self::not_found(kind),
            ErrorClass::Conflict => {
                Self::conflict(format!("{doing} failed: another client changed the {kind} at the same time. Read it and retry"))
            }
            ErrorClass::Invalid => Self::invalid(message),
            ErrorClass::NamespaceTerminating => {
                Self::conflict("the namespace is being deleted, so nothing can be created or changed in it. Use another namespace")
            }
            // The caller sees the message of an admission policy, but not that this server lacks a permission.
            ErrorClass::Forbidden if ADMISSION_REJECTIONS.iter().any(|by| message.contains(by)) => Self::conflict(message),
            ErrorClass::Forbidden => {
                tracing::error!(error = %error, "{doing} failed: this server lacks a permission");
                Self::internal(format!(
                    "{doing} failed: this server lacks a permission, so a retry does not help. Report the x-request-id to the admin of the cluster"
                ))
            }
            ErrorClass::Unauthorized | ErrorClass::Transient | ErrorClass::Timeout => {
                tracing::error!(class = class.label(), error = %error, "{doing} failed");
                Self::internal(format!(
                    "{doing} failed: the Kubernetes API did not respond as expected, so the outcome is unknown. Retry the request"
                ))
            }
        }
    }
}

impl ApiError {
    /// The published error object.
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
    fn a_missing_object_and_an_invisible_one_have_the_same_error() {
        let gone = kube::core::Status { code: 404, reason: "NotFound".into(), ..Default::default() };
        let error = ApiError::from_call(&CallError::Kube(kube::Error::Api(Box::new(gone))), "computer", "reading it");
        assert_eq!(error, ApiError::not_found("computer"));
    }

    /// The message of a real API server (1.37) with the chart's policy.
    #[test]
    fn deletion_protection_is_409_with_the_message_of_the_policy() {
        let message = "computers.computer-operator.dev \"kept\" is forbidden: ValidatingAdmissionPolicy 'co-deletion-protection' with binding 'co-deletion-protection' denied request: spec.deletionProtection is true. To delete the Computer, first run";
        let refused = kube::core::Status { code: 403, reason: "Forbidden".into(), message: message.into(), ..Default::default() };
        let error = ApiError::from_call(&CallError::Kube(kube::Error::Api(Box::new(refused))), "computer", "deleting it");
        assert_eq!((error.status(), error.detail.as_str()), (StatusCode::CONFLICT, message));
    }

    #[test]
    fn an_unknown_outcome_is_reported_as_500() {
        assert_eq!(ApiError::from_call(&CallError::Timeout, "computer", "deleting it").status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
