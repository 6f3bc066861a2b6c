//! Counts the requests to the Kubernetes API by verb, resource and code; the budget of writes is measured with it (DESIGN.md 7). A label must never contain
//! a name, a namespace or a UID. With [`super::client::connect`], retries inside kube count as one request. A cancelled request has the code `none`.

use std::sync::LazyLock;
use std::task::{Context, Poll};

use axum::http::{Method, Request, Response, Uri};
use futures::future::BoxFuture;
use kube::client::Body;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tower::{Layer, Service};

/// Verb, resource and code of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Labels {
    verb: &'static str,
    resource: String,
    code: String,
}

/// The counter of this process; every client of [`super::client::connect`] counts here.
pub static REQUESTS: LazyLock<Family<Labels, Counter>> = LazyLock::new(Family::default);

/// The RBAC verb and the resource of a request; `None` if it is not a request for objects (discovery, health).
fn parse(method: &Method, uri: &Uri) -> Option<(&'static str, String)> {
    let mut parts = uri.path().split('/').filter(|p| !p.is_empty());
    match parts.next()? {
        "api" => parts.next()?,
        "apis" => parts.nth(1)?,
        _ => return None,
    };
    let mut rest: Vec<&str> = parts.collect();
    // `namespaces/NAME/RESOURCE` is a resource in a namespace; `namespaces/NAME` and its subresources are the namespace itself.
    if rest.len() > 2 && rest[0] == "namespaces" && !matches!(rest[2], "status" | "finalize") {
        rest.drain(..2);
    }
    let (resource, named) = (rest.first()?, rest.len() > 1);
    let watch = uri.query().is_some_and(|q| q.split('&').any(|p| p == "watch=true" || p == "watch=1"));
    let verb = match (method.as_str(), named) {
        ("GET", _) if watch => "watch",
        ("GET", true) => "get",
        ("GET", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => return None,
    };
    let resource = rest.get(2).map_or_else(|| (*resource).to_owned(), |sub| format!("{resource}/{sub}"));
    Some((verb, resource))
}

/// Counts one request when it ends, whether with a response or because its future is dropped (a timeout).
struct Count {
    verb: &'static str,
    resource: String,
    code: Option<u16>,
}

impl Drop for Count {
    fn drop(&mut self) {
        let code = self.code.map_or_else(|| "none".to_owned(), |c| c.to_string());
        REQUESTS.get_or_create(&Labels { verb: self.verb, resource: std::mem::take(&mut self.resource), code }).inc();
    }
}

/// A client service that counts requests.
#[derive(Clone, Debug)]
pub struct Counted<S>(S);

impl Counted<()> {
    /// The layer that adds it.
    pub fn layer() -> CountLayer {
        CountLayer
    }
}

/// See [`Counted::layer`].
#[derive(Clone, Copy, Debug)]
pub struct CountLayer;

impl<S> Layer<S> for CountLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted(inner)
    }
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let count = parse(request.method(), request.uri()).map(|(verb, resource)| Count { verb, resource, code: None });
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut count = count;
            let answer = answer.await;
            if let (Some(count), Ok(answer)) = (&mut count, &answer) {
                count.code = Some(answer.status().as_u16());
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Client;
    use kube::api::Api;

    use super::*;

    #[test]
    fn labels_contain_only_verb_and_resource_and_no_names() {
        for (method, uri, expected) in [
            (Method::GET, "/api/v1/namespaces/team-a/pods/box?", Some(("get", "pods"))),
            (Method::GET, "/api/v1/pods?limit=500", Some(("list", "pods"))),
            (Method::GET, "/api/v1/pods?watch=true&resourceVersion=1", Some(("watch", "pods"))),
            (Method::DELETE, "/api/v1/namespaces/team-a/secrets/s", Some(("delete", "secrets"))),
            (Method::GET, "/api/v1/namespaces/team-a", Some(("get", "namespaces"))),
            (Method::PUT, "/api/v1/namespaces/team-a/finalize", Some(("update", "namespaces/finalize"))),
            (Method::PATCH, "/apis/computer-operator.dev/v1alpha1/namespaces/t/computers/c/status", Some(("patch", "computers/status"))),
            (Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews", Some(("create", "tokenreviews"))),
            (Method::PATCH, "/api/v1/persistentvolumes/pv-1", Some(("patch", "persistentvolumes"))),
            (Method::GET, "/version", None),
            (Method::GET, "/apis", None),
            (Method::GET, "/", None),
        ] {
            let expected = expected.map(|(verb, resource)| (verb, resource.to_owned()));
            assert_eq!(parse(&method, &uri.parse().unwrap()), expected, "{method} {uri}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn responses_and_cancelled_requests_are_counted() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            if request.uri().path().ends_with("slow") {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::builder().status(404).body(Body::empty()).unwrap())
        });
        let api: Api<ConfigMap> = Api::namespaced(Client::new(Counted::layer().layer(service), "t"), "t");
        let count = |code: &str| {
            let labels = Labels { verb: "get", resource: "configmaps".to_owned(), code: code.to_owned() };
            REQUESTS.get_or_create(&labels).get()
        };
        assert!(api.get("missing").await.is_err());
        assert_eq!(count("404"), 1);
        assert!(tokio::time::timeout(Duration::from_secs(1), api.get("slow")).await.is_err());
        assert_eq!(count("none"), 1);
    }
}
