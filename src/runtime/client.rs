//! The API client and the classes of its failures. Every call has a timeout of its own: kube retries 429, 503 and 504 inside a
//! call for as long as they last. An unknown outcome is a failure, never a success.

use std::future::Future;
use std::time::Duration;

use kube::{Client, Config};

/// Longest time that one request may take, retries inside kube included.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server refused, or the connection failed.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// No answer in time: whether it took effect is not known.
    #[error("no answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
}

/// Class of a failure: decides the condition that users see, and how soon it is tried again (design 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// 404.
    NotFound,
    /// 409: somebody else was faster, or a precondition does not hold.
    Conflict,
    /// 422, 400: the object or patch is refused as it is.
    Invalid,
    /// 403 because the namespace is going: not a matter of rights.
    NamespaceTerminating,
    /// 403: a right is missing, or an admission policy refuses.
    Forbidden,
    /// 401.
    Unauthorized,
    /// 429, 5xx, connection failures.
    Transient,
    /// No answer.
    Timeout,
}

impl ErrorClass {
    /// Bounded metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::NamespaceTerminating => "namespace_terminating",
            Self::Forbidden => "forbidden",
            Self::Unauthorized => "unauthorized",
            Self::Transient => "transient",
            Self::Timeout => "timeout",
        }
    }
}

/// A client from KUBECONFIG or the pod's ServiceAccount.
///
/// # Errors
/// When neither is there.
pub async fn connect() -> Result<Client, ConnectError> {
    let mut config = Config::infer().await.map_err(Box::new)?;
    config.connect_timeout = Some(Duration::from_secs(5));
    Ok(Client::try_from(config)?)
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No configuration.
    #[error(transparent)]
    Config(#[from] Box<kube::config::InferConfigError>),
    /// The configuration cannot be used.
    #[error(transparent)]
    Client(#[from] kube::Error),
}

/// One call with [`CALL_TIMEOUT`].
///
/// # Errors
/// As the call, or [`CallError::Timeout`].
pub async fn call<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::Timeout),
    }
}

/// The class of a failure.
pub fn classify(error: &CallError) -> ErrorClass {
    let kube::Error::Api(status) = (match error {
        CallError::Timeout => return ErrorClass::Timeout,
        CallError::Kube(error) => error,
    }) else {
        return ErrorClass::Transient;
    };
    let causes = status.details.iter().flat_map(|d| d.causes.iter());
    let terminating = causes.into_iter().any(|c| c.reason == "NamespaceTerminating");
    match status.code {
        403 if terminating => ErrorClass::NamespaceTerminating,
        401 => ErrorClass::Unauthorized,
        403 => ErrorClass::Forbidden,
        404 => ErrorClass::NotFound,
        409 => ErrorClass::Conflict,
        400 | 405 | 406 | 413 | 415 | 422 => ErrorClass::Invalid,
        _ => ErrorClass::Transient,
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    fn class(json: &str) -> ErrorClass {
        let status: kube::core::Status = serde_json::from_str(json).expect("a Status");
        classify(&CallError::Kube(kube::Error::Api(Box::new(status))))
    }

    #[test]
    fn a_namespace_that_is_going_is_not_a_missing_right() {
        let terminating = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"pods \"x\" is forbidden: unable to create new content in namespace t because it is being terminated","reason":"Forbidden","details":{"name":"x","kind":"pods","causes":[{"reason":"NamespaceTerminating","message":"namespace t is being terminated","field":"metadata.namespace"}]},"code":403}"#;
        assert_eq!(class(terminating), ErrorClass::NamespaceTerminating);
        assert_eq!(class(r#"{"status":"Failure","message":"no","reason":"Forbidden","code":403}"#), ErrorClass::Forbidden);
    }

    #[test]
    fn only_a_404_is_not_found_and_what_is_unknown_is_transient() {
        for (code, expected) in [
            (404, ErrorClass::NotFound),
            (409, ErrorClass::Conflict),
            (422, ErrorClass::Invalid),
            (500, ErrorClass::Transient),
            (429, ErrorClass::Transient),
        ] {
            assert_eq!(class(&format!(r#"{{"status":"Failure","message":"","reason":"","code":{code}}}"#)), expected);
        }
        assert_eq!(classify(&CallError::Timeout), ErrorClass::Timeout);
    }
}
