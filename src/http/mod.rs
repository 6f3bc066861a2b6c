//! `computer-operator api`: serves the published v0 Computers API on top of the custom resources.
//!
//! Handlers only read, create, patch and delete custom resources, with UID preconditions, and only as RBAC permits the caller. Any replica can serve any
//! request: no state is kept between requests, and nothing may be cached that could outlive a revocation. Requests that arrive at the same time may share
//! the response to a request to the Kubernetes API that is sent after all of them have arrived (`coalesce.rs`).

pub mod access;
mod ahead;
pub mod api_metrics;
pub mod archives;
pub mod auth;
mod coalesce;
pub mod computers;
pub mod config;
pub mod error;
mod extract;
#[cfg(test)]
mod hostile_input_tests;
mod last_used;
mod lived_in;
pub mod middleware;
pub mod openapi;
mod page_limits;
mod response_body;
#[cfg(test)]
mod round_trips_tests;
mod runbooks;
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
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;

use self::config::Config;
use self::error::ApiError;
use crate::archive::remote::Remote;
use crate::runtime::{client, health, server, signal};

/// Time that requests in flight have to finish at shutdown.
pub const DRAIN: Duration = Duration::from_secs(25);

/// Maximum size of a request head in bytes: a token of 16 KiB and the headers that proxies add.
pub const HEAD: usize = 32 * 1024;

/// State shared by all handlers.
pub struct Shared {
    /// Kubernetes client with this server's own permissions.
    pub client: Client,
    /// Namespace of the operator, which contains the records.
    pub namespace: String,
    /// Audience that tokens of `ServiceAccounts` must have.
    pub audience: String,
    /// Audience of the Kubernetes API server itself.
    pub cluster_audience: String,
    /// Maximum size of a request body in bytes.
    pub max_body: usize,
    /// Time limit for receiving a request body.
    pub read_limit: Duration,
    /// One slot per request in flight, held until its response has been sent.
    pub slots: Arc<Semaphore>,
    /// Limits how many slots each tenant may hold.
    pub shares: Arc<tenant_limits::Shares>,
    /// Limits how many responses of any size are sent, and how many each tenant may have.
    pub exports: Arc<tenant_limits::Shares>,
    /// Where archives are read; `None` if that is not configured.
    pub archives: Option<Arc<Remote>>,
    /// Slots for requests that wait for the end of a deletion, so that two tenants with their halves cannot occupy all slots.
    pub waiting: Semaphore,
    /// Bounds the pages of computers in memory, because tenants decide how large their objects are.
    pub computer_pages: page_limits::Pages,
    /// The same for sessions; separate, so that large sessions never delay the creation of a computer.
    pub session_pages: page_limits::Pages,
    /// Limits how often the keys of computers write sessions.
    pub session_writes: sessions::pace::Pace,
    /// Cancelled at shutdown: waiting requests return.
    pub stop: CancellationToken,
    /// Verifications of credentials, by the digest of the token.
    pub credentials: auth::Verifications,
    /// Reads of namespaces for verifications, by name.
    pub namespaces: auth::Namespaces,
    /// Reads of objects whose caller's permission is being reviewed.
    pub ahead: ahead::Ahead,
    /// Records when an `ApiKey` was last used.
    pub last_used: last_used::LastUsed,
    /// Metrics of the HTTP API.
    pub metrics: api_metrics::Metrics,
}

impl Shared {
    /// Creates the state from the configuration.
    pub fn new(client: Client, config: &Config, stop: CancellationToken) -> Self {
        let archives = config.archives(&client).map(Arc::new);
        Self {
            client,
            namespace: config.namespace.clone(),
            audience: config.audience.clone(),
            cluster_audience: config.cluster_audience.clone(),
            max_body: config.max_body_bytes as usize,
            read_limit: config.read_limit(),
            slots: Arc::new(Semaphore::new(config.max_in_flight as usize)),
            shares: tenant_limits::Shares::new(config.max_in_flight as usize, tenant_limits::ANSWERS),
            exports: tenant_limits::Shares::of_exports(config.max_in_flight as usize),
            archives,
            waiting: Semaphore::new((config.max_in_flight as usize / 4).max(1)),
            computer_pages: page_limits::Pages::default(),
            session_pages: page_limits::Pages::default(),
            session_writes: sessions::pace::Pace::default(),
            stop,
            credentials: auth::Verifications::default(),
            namespaces: auth::Namespaces::default(),
            ahead: ahead::Ahead::default(),
            last_used: last_used::LastUsed::default(),
            metrics: api_metrics::Metrics::default(),
        }
    }
}

/// The routes with their `OpenAPI` description.
pub(crate) fn routes() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::with_openapi(openapi::base()).merge(computers::routes()).merge(archives::routes()).merge(sessions::routes())
}

/// The complete router, including error responses.
pub fn router(shared: Arc<Shared>) -> Router {
    let (router, mut description) = routes().split_for_parts();
    openapi::complete(&mut description);
    with_layers(router.merge(openapi::routes(&description)).merge(runbooks::routes()), shared)
}

/// Adds the fallbacks and layers that apply to all routes.
fn with_layers(router: Router<Arc<Shared>>, shared: Arc<Shared>) -> Router {
    let unknown = || async {
        ApiError::new(StatusCode::NOT_FOUND, "this path does not exist: see /docs or /openapi.json for the available operations")
    };
    let wrong = || async {
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not support the method: see /docs or /openapi.json for the available operations",
        )
    };
    router
        .method_not_allowed_fallback(wrong)
        .fallback(unknown)
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(Arc::clone(&shared), middleware::observe))
        .with_state(shared)
}

/// Serves until SIGTERM or SIGINT. New requests are still accepted for the shutdown delay, until clients have noticed that the endpoint was removed; then
/// requests in flight are finished.
///
/// # Errors
/// When the configuration is invalid or the Kubernetes API is unavailable.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let (signalled, stop) = (CancellationToken::new(), CancellationToken::new());
    signal::stop_on_signal(signalled.clone());
    let client = client::connect().await.context("cannot connect to the Kubernetes API: set KUBECONFIG or run inside a cluster")?;
    let shared = Arc::new(Shared::new(client, &config, stop.clone()));
    let mut tasks = JoinSet::new();
    let exposed = Arc::clone(&shared);
    let ready = health::serve(config.metrics_bind, Arc::new(move || exposed.metrics.text()), Vec::new(), stop.clone(), &mut tasks)?;
    let acceptor = match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => {
            let current = tls::Current::load(cert, key).context("cannot load the TLS certificate of the HTTP API")?;
            tasks.spawn(Arc::clone(&current).keep_fresh(stop.clone()));
            Some(current.acceptor())
        }
        _ => None,
    };
    let listener = server::listen(config.bind).with_context(|| format!("cannot listen on {}", config.bind))?;
    tracing::info!(address = %config.bind, tls = acceptor.is_some(), "serving the HTTP API");
    tokio::select! {
        () = signalled.cancelled() => return Ok(()),
        () = wait_until_able_to_authorize(&shared) => {}
    }
    ready.set(true);
    shared.metrics.set_ready(true);
    // Outside of the layers: a replica with many requests in flight is not removed from a load balancer, which would overload the others.
    let router = router(Arc::clone(&shared)).merge(health::probes(ready.clone()));
    tasks.spawn(close(signalled.clone(), ready, shared, config.shutdown_delay(), stop.clone()));
    beside(&mut tasks, server::run(listener, acceptor, router, config.limits(), stop), || signalled.is_cancelled()).await?;
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Serves beside these tasks. None of them ends before the process does: without one, the certificate would expire, or a signal would
/// be ignored, and nobody would see why.
///
/// # Errors
/// When a task has ended too early. The process exits, and Kubernetes restarts it.
async fn beside(tasks: &mut JoinSet<()>, serving: impl Future<Output = ()>, stopping: impl Fn() -> bool) -> anyhow::Result<()> {
    let mut serving = std::pin::pin!(serving);
    loop {
        tokio::select! {
            () = &mut serving => return Ok(()),
            Some(ended) = tasks.join_next() => anyhow::ensure!(stopping(), "a task of the HTTP API ended unexpectedly: {ended:?}"),
        }
    }
}

/// Reports "not ready" as soon as the signal arrives, and stops accepting requests after the shutdown delay.
async fn close(signalled: CancellationToken, ready: health::Ready, shared: Arc<Shared>, delay: Duration, stop: CancellationToken) {
    signalled.cancelled().await;
    ready.set(false);
    shared.metrics.set_ready(false);
    tokio::time::sleep(delay).await;
    stop.cancel();
}

/// Waits until requests can be served: the Kubernetes API is available and permits `SubjectAccessReviews`.
async fn wait_until_able_to_authorize(shared: &Shared) {
    let mut logged = false;
    loop {
        let user = auth::Caller::User(auth::User { name: "system:anonymous".into(), ..auth::User::default() });
        let target = access::Target { resource: "computers", namespace: &shared.namespace, name: None };
        match access::may(shared, &user, "list", target).await {
            Ok(_) => return,
            Err(_) if logged => {}
            Err(_) => {
                tracing::warn!(
                    "not ready: the Kubernetes API is unavailable, or this ServiceAccount may not create SubjectAccessReviews; retrying every second"
                );
                logged = true;
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

    /// C17: a task that dies must not be missed. The end of the process is no such death.
    #[tokio::test(start_paused = true)]
    async fn the_death_of_a_task_ends_the_process() {
        for stopping in [false, true] {
            let mut tasks = JoinSet::new();
            tasks.spawn(async {});
            let ended = beside(&mut tasks, tokio::time::sleep(Duration::from_secs(60)), || stopping).await;
            assert_eq!(ended.is_ok(), stopping, "{ended:?}");
        }
    }

    /// The default configuration.
    pub(crate) fn config() -> Config {
        Cli::parse_from(["api"]).config
    }

    /// State whose Kubernetes API is unavailable.
    pub(crate) fn shared() -> Arc<Shared> {
        let unavailable = tower::service_fn(|_: Request<kube::client::Body>| async {
            Err::<Response<kube::client::Body>, _>(std::io::Error::other("down"))
        });
        Arc::new(Shared::new(Client::new(unavailable, "default"), &config(), CancellationToken::new()))
    }

    /// State with this client of the Kubernetes API.
    pub(crate) fn shared_by(client: Client) -> Arc<Shared> {
        Arc::new(Shared::new(client, &config(), CancellationToken::new()))
    }

    /// State whose Kubernetes API responds with this code and body.
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
    async fn a_panic_of_a_handler_is_answered_with_500_and_reveals_nothing() {
        let router = Router::new().route("/broken", get(broken));
        let (status, body) = answer(with_layers(router, shared()), "/broken", "x").await;
        assert_eq!(
            (status, &body["status"], &body["title"]),
            (StatusCode::INTERNAL_SERVER_ERROR, &500.into(), &"Internal Server Error".into())
        );
        assert!(body["detail"].as_str().unwrap().contains("x-request-id") && !body.to_string().contains("secret"), "{body}");
    }

    /// An unknown outcome must not be 401, which would make a client discard its key, and must not authenticate.
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
