//! The answers of an API server for the one archive pod of a measurement: the review of its token, the pod, and the record of its computer, which
//! names the pod. The operator's own code asks for them and decides by them.

use std::convert::Infallible;

use computer_operator::archive::ingest::auth::AUDIENCE;
use computer_operator::resources::UID_LABEL;
use http::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// UID of the computer.
pub const UID: &str = "123e4567-e89b-12d3-a456-426614174000";
/// Its namespace and name.
pub const COMPUTER: (&str, &str) = ("team", "box");
/// UID of the claim of its deletion.
pub const CLAIM: &str = "claim";
/// Namespace of the operator, and the ServiceAccount of archive pods.
pub const OPERATOR: (&str, &str) = ("operator", "archive");
/// The token of the archive pod.
pub const TOKEN: &str = "token";

const POD: (&str, &str) = ("pod", "pod-uid");

/// A client of these answers.
pub fn client() -> Client {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect_bytes().await.unwrap_or_default();
        let (status, answer) = answer(&path, &serde_json::from_slice(&body).unwrap_or_default());
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    });
    Client::new(service, OPERATOR.0)
}

fn answer(path: &str, body: &Value) -> (StatusCode, Value) {
    let name = path.rsplit('/').next().unwrap_or_default();
    let object = match name {
        "tokenreviews" => review(body["spec"]["token"] == TOKEN),
        _ if path.ends_with(&format!("/pods/{}", POD.0)) => pod(),
        UID => record(),
        _ => {
            let missing =
                json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": path});
            return (StatusCode::NOT_FOUND, missing);
        }
    };
    (StatusCode::OK, object)
}

fn review(good: bool) -> Value {
    let user = json!({
        "username": format!("system:serviceaccount:{}:{}", OPERATOR.0, OPERATOR.1),
        "extra": {"authentication.kubernetes.io/pod-name": [POD.0], "authentication.kubernetes.io/pod-uid": [POD.1]},
    });
    json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {},
        "status": {"authenticated": good, "audiences": [AUDIENCE], "user": user},
    })
}

fn pod() -> Value {
    let metadata = json!({"name": POD.0, "namespace": OPERATOR.0, "uid": POD.1, "labels": {UID_LABEL: UID}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": []}})
}

fn record() -> Value {
    let custody = json!({"claimUid": CLAIM, "podUid": POD.1});
    let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted", "custody": custody});
    json!({
        "apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerRecord",
        "metadata": {"name": UID, "namespace": OPERATOR.0},
        "spec": {"namespace": COMPUTER.0, "computer": COMPUTER.1, "state": {"deletion": deletion}},
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use computer_operator::archive::ingest::auth::{Access, Authenticator, PodTokens};

    /// The operator's authenticator accepts the archive pod's token and no other.
    #[tokio::test]
    async fn the_operator_accepts_the_pod() {
        let pods = PodTokens::new(client(), OPERATOR.0.to_owned(), OPERATOR.1.to_owned());
        let authenticator = Authenticator::Pods(pods.into());
        assert!(matches!(authenticator.access(TOKEN).await, Ok(Access::Pod(caller)) if caller.uid == UID && caller.custody_claim == CLAIM));
        assert!(matches!(authenticator.access("other").await, Ok(Access::Unknown)));
    }
}
