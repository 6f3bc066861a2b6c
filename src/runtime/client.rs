//! The API client and the classes of its failures. Every call has its own timeout. An unknown outcome must never count as a success, and only
//! the API server's own answer that an object does not exist proves its absence (S3).

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::USER_AGENT;
use kube::api::{Api, ListParams};
use kube::client::ClientBuilder;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::clock::ListenLayer;
use super::request_metrics::Counted;
use crate::guards::{self, Guard};

/// Longest time that one request may take; with [`connect`], retries inside kube included.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);
const WRITE: Duration = Duration::from_secs(30);
/// The net below [`call`], for what is not called through it: longer than any watch is silent (290 s and kube's 5 s on top).
const READ: Duration = Duration::from_secs(310);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server refused, or the connection failed.
    #[error("{}", said(.0))]
    Kube(kube::Error),
    /// No answer in time: whether it took effect is not known.
    #[error("no answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
}

impl CallError {
    /// How long the API server asks to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        let Self::Kube(kube::Error::Api(status)) = self else { return None };
        let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        Self::Kube(error)
    }
}

/// The API server's own message, once: kube adds the whole Status as Rust prints it, and users read this in conditions.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

/// Class of a failure: decides the condition that users see, and how soon it is retried (DESIGN.md 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// 404 with reason `NotFound`: the API server says that the object does not exist. Any other 404 (a proxy's, a path that is
    /// not served because the kind is not installed) proves nothing and is [`ErrorClass::Transient`].
    NotFound,
    /// 409: another client changed the object first, or a precondition does not hold.
    Conflict,
    /// 422, 400: the object or patch is invalid.
    Invalid,
    /// 403 because the namespace is being deleted, not because a permission is missing.
    NamespaceTerminating,
    /// 403: a permission is missing, or an admission policy rejects the request.
    Forbidden,
    /// 401.
    Unauthorized,
    /// 429, 5xx, connection failures, responses that cannot be parsed.
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

/// A client from KUBECONFIG or the pod's ServiceAccount. Its requests are counted ([`super::request_metrics`]), and its responses set the
/// clock ([`super::clock`]). kube retries 429, 503 and 504 inside a call, which is right for a caller that waits for one answer: an HTTP
/// client or a person.
///
/// # Errors
/// When neither is there, or it cannot be used.
pub async fn connect() -> Result<Client, ConnectError> {
    build(tuned(Config::infer().await.map_err(Box::new)?))
}

/// The same without retries inside a call, for the operator. A reconcile has a backoff of its own, per UID. Hidden retries would hold
/// a worker for [`CALL_TIMEOUT`], report a 429 as "no answer", and count it as a request without a code.
///
/// # Errors
/// As [`connect`].
pub async fn connect_without_retries() -> Result<Client, ConnectError> {
    build(without_retries(tuned(Config::infer().await.map_err(Box::new)?)))
}

fn without_retries(mut config: Config) -> Config {
    config.default_retry = false;
    config
}

fn build(config: Config) -> Result<Client, ConnectError> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&Counted::layer()).with_layer(&ListenLayer).build())
}

/// Time limits and our name. kube sets neither a limit on reading nor a user agent.
fn tuned(mut config: Config) -> Config {
    config.connect_timeout = Some(CONNECT);
    config.write_timeout = Some(WRITE);
    config.read_timeout = Some(READ);
    // Otherwise the time that a pooled connection was idle would count.
    config.reset_reader_on_write = true;
    config.headers.push((USER_AGENT, HeaderValue::from_static(concat!("computer-operator/", env!("CARGO_PKG_VERSION")))));
    config
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

/// What `pick` takes out of a list that is read in pages: memory must not grow with what tenants or the cluster hold.
///
/// # Errors
/// As [`call`], for any page.
pub async fn list<K, T>(api: &Api<K>, page: u32, pick: impl Fn(K) -> Option<T>) -> Result<Vec<T>, CallError>
where
    K: Clone + DeserializeOwned + Debug,
{
    list_in_turn(api, page, &Semaphore::const_new(1), pick).await
}

/// As [`list`]; never more pages are in memory at the same time than there are `turns`, for all callers together.
///
/// # Errors
/// As [`list`].
pub async fn list_in_turn<K, T>(api: &Api<K>, page: u32, turns: &Semaphore, pick: impl Fn(K) -> Option<T>) -> Result<Vec<T>, CallError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let (mut params, mut picked) = (ListParams::default().limit(page), Vec::new());
    loop {
        // The semaphore is never closed.
        let _turn = turns.acquire().await;
        let answer = call(api.list(&params)).await?;
        picked.extend(answer.items.into_iter().filter_map(&pick));
        let Some(next) = answer.metadata.continue_.filter(|next| !next.is_empty()) else { return Ok(picked) };
        params = params.continue_token(&next);
    }
}

/// The class of a failure. Pure.
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
        404 if status.reason == "NotFound" || !guards::on(Guard::TypedNotFound) => ErrorClass::NotFound,
        409 => ErrorClass::Conflict,
        400 | 405 | 406 | 413 | 415 | 422 => ErrorClass::Invalid,
        _ => ErrorClass::Transient,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::{Request, Response};
    use k8s_openapi::api::core::v1::Pod;
    use kube::client::Body;

    use super::*;

    /// What a GET of a pod comes to when the server answers with this.
    async fn class(code: u16, body: &'static str) -> ErrorClass {
        let service = tower::service_fn(move |_: Request<Body>| async move {
            Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(body.as_bytes().to_vec())).unwrap())
        });
        let pods: Api<Pod> = Api::namespaced(Client::new(service, "t"), "t");
        classify(&call(pods.get("x")).await.unwrap_err())
    }

    #[tokio::test]
    async fn a_namespace_that_is_going_is_not_a_missing_right() {
        let terminating = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"x\" is forbidden: unable to create new content in namespace t because it is being terminated","reason":"Forbidden","details":{"name":"x","kind":"pods","causes":[{"reason":"NamespaceTerminating","message":"namespace t is being terminated","field":"metadata.namespace"}]},"code":403}"#;
        assert_eq!(class(403, terminating).await, ErrorClass::NamespaceTerminating);
        let rights = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"x\" is forbidden: User \"u\" cannot get resource \"pods\"","reason":"Forbidden","details":{"name":"x","kind":"pods"},"code":403}"#;
        assert_eq!(class(403, rights).await, ErrorClass::Forbidden);
    }

    #[tokio::test]
    async fn only_the_servers_own_word_is_an_absence() {
        let gone = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"x\" not found","reason":"NotFound","details":{"name":"x","kind":"pods"},"code":404}"#;
        assert_eq!(class(404, gone).await, ErrorClass::NotFound);
        // The kind is not installed; a proxy; an answer without a reason; one that was cut off.
        for unknown in ["404 page not found\n", "<html>nginx</html>", "", r#"{"status":"Failure","code":404}"#, &gone[..60]] {
            assert_eq!(class(404, unknown).await, ErrorClass::Transient, "{unknown}");
        }
    }

    #[tokio::test]
    async fn every_code_has_a_class_and_what_is_unknown_is_transient() {
        for (code, reason, expected) in [
            (401, "Unauthorized", ErrorClass::Unauthorized),
            (409, "Conflict", ErrorClass::Conflict),
            (409, "AlreadyExists", ErrorClass::Conflict),
            (422, "Invalid", ErrorClass::Invalid),
            (400, "BadRequest", ErrorClass::Invalid),
            (410, "Expired", ErrorClass::Transient),
            (429, "TooManyRequests", ErrorClass::Transient),
            (500, "InternalError", ErrorClass::Transient),
            (503, "ServiceUnavailable", ErrorClass::Transient),
        ] {
            let status = format!(r#"{{"kind":"Status","status":"Failure","message":"","reason":"{reason}","code":{code}}}"#);
            let status = serde_json::from_str::<kube::core::Status>(&status).unwrap();
            assert_eq!(classify(&kube::Error::Api(Box::new(status)).into()), expected, "{code} {reason}");
        }
        assert_eq!(class(200, "not json").await, ErrorClass::Transient, "a response that cannot be parsed is no success");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_a_timeout() {
        let error = call(std::future::pending::<Result<(), kube::Error>>()).await.unwrap_err();
        assert_eq!(classify(&error), ErrorClass::Timeout);
    }

    /// B7: with kube's own retries a 429 that lasts was a timeout after 15 s.
    #[tokio::test]
    async fn the_operators_client_passes_a_429_on_at_once_with_the_wait_that_the_server_asks_for() {
        use axum::routing::get;
        let hits = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counted = std::sync::Arc::clone(&hits);
        let busy = r#"{"kind":"Status","status":"Failure","reason":"TooManyRequests","message":"busy","details":{"retryAfterSeconds":7},"code":429}"#;
        let answer = move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            async move { (axum::http::StatusCode::TOO_MANY_REQUESTS, busy) }
        };
        let app = axum::Router::new().route("/api/v1/namespaces/t/pods/x", get(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let pods: Api<Pod> = Api::namespaced(build(without_retries(tuned(config))).unwrap(), "t");
        let error = call(pods.get("x")).await.unwrap_err();
        assert_eq!((classify(&error), error.retry_after()), (ErrorClass::Transient, Some(Duration::from_secs(7))), "{error}");
        assert_eq!(hits.load(std::sync::atomic::Ordering::SeqCst), 1);
        server.abort();
    }

    #[test]
    fn the_net_below_the_calls_is_longer_than_a_silent_watch() {
        let config = tuned(Config::new("https://127.0.0.1:6443".parse().unwrap()));
        assert!(config.read_timeout.unwrap() > Duration::from_secs(295) && config.reset_reader_on_write);
        assert!(config.headers.iter().any(|(name, value)| name == USER_AGENT && value.to_str().unwrap().starts_with("computer-operator/")));
    }
}
