//! `computer-operator api`: the published v0 Computers API in front of the custom resources.
//!
//! Handlers only read, create, patch and delete custom resources, with UID preconditions, as what RBAC lets the caller do. Any
//! replica serves any request: nothing is kept between two of them, and nothing is cached that could outlive a revocation.

pub mod access;
pub mod auth;
pub mod computers;
pub mod config;
pub mod error;
mod extract;
#[cfg(test)]
mod hostile_input_tests;
mod last_used;
pub mod middleware;
pub mod openapi;
mod page_limits;
mod response_body;
pub mod sessions;
pub mod tenant_limits;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;

use self::config::Config;
use self::error::ApiError;
use crate::runtime::{client, health, server, signal};

/// What is under way at the end has this long to finish.
pub const DRAIN: Duration = Duration::from_secs(25);

/// Longest request head, bytes: a token of 16 KiB, and what proxies add.
pub const HEAD: usize = 32 * 1024;

/// What all handlers share.
pub struct Shared {
    /// The API client, with this server's own rights.
    pub client: Client,
    /// Namespace of the operator: the records.
    pub namespace: String,
    /// Audience of the tokens of `ServiceAccounts`.
    pub audience: String,
    /// The API server's own audience.
    pub cluster_audience: String,
    /// Longest body, bytes.
    pub max_body: usize,
    /// Longest time for a body.
    pub read_limit: Duration,
    /// A slot for each request in flight, until its answer is sent.
    pub slots: Arc<Semaphore>,
    /// How many of them each tenant holds.
    pub shares: Arc<tenant_limits::Shares>,
    /// Those of them that may wait for the end of a deletion: two tenants with their halves must not leave nothing for others.
    pub waiting: Semaphore,
    /// A turn for each page of computers that is in memory: tenants decide how large their objects are.
    pub computer_pages: page_limits::Pages,
    /// The same for sessions: large ones keep nobody from creating a computer.
    pub session_pages: page_limits::Pages,
    /// The process is to end: nobody is kept waiting.
    pub stop: CancellationToken,
    /// Writes when an `ApiKey` was last used.
    pub last_used: last_used::LastUsed,
    /// Figures.
    pub figures: middleware::Figures,
}

impl Shared {
    /// What the configuration says.
    pub fn new(client: Client, config: &Config, stop: CancellationToken) -> Self {
        Self {
            client,
            namespace: config.namespace.clone(),
            audience: config.audience.clone(),
            cluster_audience: config.cluster_audience.clone(),
            max_body: config.max_body_bytes as usize,
            read_limit: config.read_limit(),
            slots: Arc::new(Semaphore::new(config.max_in_flight as usize)),
            shares: tenant_limits::Shares::new(config.max_in_flight as usize, tenant_limits::ANSWERS),
            waiting: Semaphore::new((config.max_in_flight as usize / 4).max(1)),
            computer_pages: page_limits::Pages::default(),
            session_pages: page_limits::Pages::default(),
            stop,
            last_used: last_used::LastUsed::default(),
            figures: middleware::Figures::default(),
        }
    }
}

/// The routes with their description.
pub(crate) fn routes() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::with_openapi(openapi::base()).merge(computers::routes()).merge(sessions::routes())
}

/// Everything that is served, errors included.
pub fn router(shared: Arc<Shared>) -> Router {
    let (router, mut description) = routes().split_for_parts();
    openapi::complete(&mut description);
    dressed(router.merge(openapi::routes(&description)), shared)
}

/// Routes with what is around every one of them.
fn dressed(router: Router<Arc<Shared>>, shared: Arc<Shared>) -> Router {
    let unknown = || async { ApiError::new(StatusCode::NOT_FOUND, "no such path: /openapi.json lists what there is, /docs explains it") };
    let wrong = || async { ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method: see /openapi.json") };
    router
        .method_not_allowed_fallback(wrong)
        .fallback(unknown)
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(Arc::clone(&shared), middleware::observe))
        .with_state(shared)
}

/// Serves until SIGTERM or SIGINT, and a little longer: whoever still sends new requests, because the withdrawal of the endpoint has not
/// reached it, is served. Then what is in flight is finished.
///
/// # Errors
/// When the configuration or the API server cannot be used.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let (told, stop) = (CancellationToken::new(), CancellationToken::new());
    signal::stop_on_signal(told.clone());
    let client = client::connect().await.context("no Kubernetes API: set KUBECONFIG or run inside a cluster")?;
    let shared = Arc::new(Shared::new(client, &config, stop.clone()));
    let mut tasks = JoinSet::new();
    let figures = Arc::clone(&shared);
    let ready = health::serve(config.metrics_bind, Arc::new(move || figures.figures.text()), stop.clone(), &mut tasks).await?;
    let acceptor = match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => {
            let current = tls::Current::load(cert, key).context("the certificate")?;
            tasks.spawn(Arc::clone(&current).keep_fresh(stop.clone()));
            Some(current.acceptor())
        }
        _ => None,
    };
    let listener = TcpListener::bind(config.bind).await.with_context(|| format!("listening on {}", config.bind))?;
    tracing::info!(address = %config.bind, tls = acceptor.is_some(), "serving the HTTP API");
    tokio::select! {
        () = told.cancelled() => return Ok(()),
        () = answering(&shared) => ready.set(true),
    }
    tasks.spawn(close(told, ready, config.shutdown_delay(), stop.clone()));
    server::run(listener, acceptor, router(shared), config.limits(), stop).await;
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Not ready from the moment that the process is told to end; closed when those who send the requests have had the time to notice.
async fn close(told: CancellationToken, ready: health::Ready, delay: Duration, stop: CancellationToken) {
    told.cancelled().await;
    ready.set(false);
    tokio::time::sleep(delay).await;
    stop.cancel();
}

/// Waits until requests can be answered: the API server is there, and lets us ask who somebody is and what they may.
async fn answering(shared: &Shared) {
    let mut said = false;
    loop {
        let user = auth::Caller::User(auth::User { name: "system:anonymous".into(), ..auth::User::default() });
        let target = access::Target { resource: "computers", namespace: &shared.namespace, name: None };
        match access::may(shared, &user, "list", target).await {
            Ok(_) => return,
            Err(_) if said => {}
            Err(_) => {
                tracing::warn!("not ready: the API server does not answer, or this ServiceAccount may not create SubjectAccessReviews");
                said = true;
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::body::Body;
    use axum::http::{Request, Response};
    use axum::routing::get;
    use clap::Parser;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    /// What is set by default.
    pub(crate) fn config() -> Config {
        Cli::parse_from(["api"]).config
    }

    /// A server whose API server answers nothing at all.
    pub(crate) fn shared() -> Arc<Shared> {
        let nobody = tower::service_fn(|_: Request<kube::client::Body>| async {
            Err::<Response<kube::client::Body>, _>(std::io::Error::other("down"))
        });
        Arc::new(Shared::new(Client::new(nobody, "default"), &config(), CancellationToken::new()))
    }

    /// A server whose API server answers with this code and body.
    pub(crate) fn shared_with(
        answer: impl Fn(&Request<kube::client::Body>) -> (u16, serde_json::Value) + Clone + Send + Sync + 'static,
    ) -> Arc<Shared> {
        let server = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (code, body) = answer(&request);
            let response = Response::builder().status(code).body(kube::client::Body::from(body.to_string().into_bytes())).unwrap();
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        Arc::new(Shared::new(Client::new(server, "default"), &config(), CancellationToken::new()))
    }

    async fn answer(router: Router, path: &str, token: &str) -> (StatusCode, serde_json::Value) {
        let request = Request::get(path).header("authorization", format!("Bearer {token}")).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert!(response.headers().contains_key("x-request-id"));
        let status = response.status();
        (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
    }

    async fn broken() -> &'static str {
        panic!("a secret")
    }

    #[tokio::test]
    async fn a_handlers_panic_is_an_error_like_any_other_and_says_nothing_of_it() {
        let router = Router::new().route("/broken", get(broken));
        let (status, body) = answer(dressed(router, shared()), "/broken", "x").await;
        assert_eq!(
            (status, &body["status"], &body["title"]),
            (StatusCode::INTERNAL_SERVER_ERROR, &500.into(), &"Internal Server Error".into())
        );
        assert!(body["detail"].as_str().unwrap().contains("x-request-id") && !body.to_string().contains("secret"), "{body}");
    }

    /// Not knowing is neither 401, which would tell a client to throw its key away, nor a way in.
    #[tokio::test]
    async fn a_credential_that_cannot_be_verified_is_500() {
        let uid = "0b4f9f3e-5d1c-4a53-8a0e-3a9c0f8f6f11".to_owned();
        let computer = crate::credentials::ComputerId { namespace: "t".into(), name: "c".into(), uid };
        let key = crate::credentials::Key::new(computer, [1; 32]).token();
        for token in [key.as_str(), "a.b.c"] {
            let (status, body) = answer(router(shared()), "/api/v0/computers", token).await;
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{body}");
        }
        assert_eq!(answer(router(shared()), "/api/v0/computers", "x").await.0, StatusCode::UNAUTHORIZED);
    }
}
