//! Requests to an API server that refuses them or returns long lists.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;

use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::resources::DELETION_FINALIZER;
use crate::runtime::patch;

fn applier<F>(answer: F) -> (Applier, tempfile::TempDir)
where
    F: Fn(&Request<Body>) -> (u16, Value) + Clone + Send + Sync + 'static,
{
    let service = tower::service_fn(move |request: Request<Body>| {
        let (code, body) = answer(&request);
        async move { Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap()) }
    });
    let folder = tempfile::tempdir().unwrap();
    let (checked, _) = tokio::sync::mpsc::channel(1);
    let archives = Arc::new(Archives::open(&format!("file://{}", folder.path().display()), checked).unwrap());
    (Applier::new(Client::new(service, "op"), archives, "op".to_owned()), folder)
}

fn computer(version: &str) -> Value {
    json!({"metadata": {"name": "c", "namespace": "t", "uid": "u", "resourceVersion": version, "finalizers": [DELETION_FINALIZER]}, "spec": {}})
}

fn denied() -> (u16, Value) {
    (422, json!({"kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422, "message": "policy 'fence' denied request: no"}))
}

/// L2: an admission policy refuses with the same code as a failed test operation. A retry does not help, so a user must see it.
#[tokio::test]
async fn a_patch_that_a_policy_refuses_is_not_a_conflict() {
    for (live, class) in [("pv-uid", ErrorClass::Invalid), ("another", ErrorClass::Conflict)] {
        let (applier, _folder) = applier(move |request| match request.method().as_str() {
            "PATCH" => denied(),
            _ => (200, json!({"metadata": {"name": "pv", "uid": live}})),
        });
        let patch =
            json_patch::Patch(vec![patch::test(["metadata", "uid"], json!("pv-uid")), patch::add(["metadata", "labels"], json!({}))]);
        let action = Action::Patch { subject: Subject::volume("pv"), patch };
        let error = applier.apply(action, &View::of(computer("1"))).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(class == ErrorClass::Conflict || error.to_string().contains("denied"), "{error}");
    }
}

#[tokio::test]
async fn a_release_that_a_policy_refuses_is_reported() {
    let (applier, _folder) = applier(|request| if request.method() == "PATCH" { denied() } else { (200, computer("1")) });
    let error = applier.apply(Action::ReleaseFinalizer, &View::of(computer("1"))).await.unwrap_err();
    assert!(error.class() == ErrorClass::Invalid && error.to_string().contains("denied"), "{error}");
}

/// S6: two leaders may create a pod of one name. The one that deletes its own must not take the other one, which the record names, for gone.
#[tokio::test]
async fn a_delete_that_meets_another_object_shows_that_one() {
    let conflict =
        || (409, json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409, "message": "the UID differs"}));
    // A Secret is read by a dry run of its deletion.
    let refused = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (applier, _folder) = applier(move |request| match (request.method().as_str(), request.uri().path().contains("/secrets/")) {
        ("DELETE", false) => conflict(),
        ("DELETE", true) if !refused.swap(true, std::sync::atomic::Ordering::Relaxed) => conflict(),
        _ => (200, json!({"metadata": {"name": "x", "namespace": "t", "uid": "other"}})),
    });
    let delete = |subject| Action::Delete { subject, uid: "mine".to_owned() };
    let view = View::of(computer("1"));
    let Effect::Learned(_, pod) = applier.apply(delete(Subject::pod("t", "x")), &view).await.unwrap() else { panic!("learned") };
    assert!(matches!(&pod, Fact::Pod(pod) if pod.metadata.uid.as_deref() == Some("other")), "{pod:?}");
    let Effect::Learned(_, claim) = applier.apply(delete(Subject::claim("t", "x")), &view).await.unwrap() else { panic!("learned") };
    assert!(matches!(&claim, Fact::Claim(claim) if claim.metadata.uid.as_deref() == Some("other")), "{claim:?}");
    let Effect::Learned(_, secret) = applier.apply(delete(Subject::secret("t", "x")), &view).await.unwrap() else { panic!("learned") };
    assert_eq!(secret, Fact::Gone);
}

/// A deletion cannot be undone. With a stale cache, the time to live may have been extended meanwhile.
#[tokio::test]
async fn a_deletion_that_the_operator_starts_applies_only_to_the_version_that_it_read() {
    let asked: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let (applier, _folder) = applier(move |request| {
        seen.lock().unwrap().push(request.method().to_string());
        let conflict =
            json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409, "message": "the precondition does not hold"});
        if request.method() == "DELETE" { (409, conflict) } else { (200, computer("2")) }
    });
    let mut seen = computer("1");
    seen["spec"]["timeToLiveSeconds"] = json!(60);
    let view = View::of(seen);
    let params = deletion_of(&view);
    let preconditions = params.preconditions.unwrap();
    assert_eq!((preconditions.uid.as_deref(), preconditions.resource_version.as_deref()), (Some("u"), Some("1")));
    let Effect::Computer(Some(found)) = applier.apply(Action::DeleteComputer, &view).await.unwrap() else { panic!("a Computer") };
    assert_eq!(found.metadata.resource_version.as_deref(), Some("2"), "the next plan uses the live object");
    assert_eq!(*asked.lock().unwrap(), ["DELETE", "GET"]);
}

/// A cluster may have any number of volumes; the operator's memory is limited.
#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let (applier, _folder) = applier(|request| {
        let query = request.uri().query().unwrap_or_default();
        assert!(query.contains("limit="), "{query}");
        let volume = |name: &str| json!({"metadata": {"name": name}, "spec": {"claimRef": {"uid": "claim"}}});
        let (next, item) = if query.contains("continue=") { (Value::Null, volume("second")) } else { (json!("more"), volume("first")) };
        (200, json!({"metadata": {"resourceVersion": "1", "continue": next}, "items": [item]}))
    });
    let subject = Subject::VolumesOfClaim { uid: "claim".into() };
    let Effect::Learned(_, fact) = applier.apply(Action::Read(subject), &View::of(computer("1"))).await.unwrap() else { panic!("learned") };
    assert_eq!(fact, Fact::Names(vec!["first".into(), "second".into()]));
}

fn conflict() -> (u16, Value) {
    (409, json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409, "message": "a proxy says no"}))
}

/// L6: something answers 409 to every write. Without an error there is no backoff, and nobody sees it.
#[tokio::test]
async fn a_conflict_although_nobody_has_changed_the_record_is_an_error() {
    let record =
        |version: &str| json!({"metadata": {"name": "u", "resourceVersion": version}, "spec": {"namespace": "t", "computer": "c"}});
    for (live, fails) in [("1", true), ("2", false)] {
        let (applier, _folder) = applier(move |request| if request.method() == "PUT" { conflict() } else { (200, record(live)) });
        let read = Box::new(serde_json::from_value(record("1")).unwrap());
        match applier.apply(Action::SaveRecord(read), &View::of(computer("1"))).await {
            Err(error) => {
                let quoted = error.to_string().contains("a proxy says no");
                assert!(fails && quoted && error.class() == ErrorClass::Conflict, "{error}");
            }
            Ok(effect) => assert!(!fails && matches!(effect, Effect::Overtaken(_))),
        }
    }
}

/// The same for a create: the name is taken, and nothing has it.
#[tokio::test]
async fn a_create_that_conflicts_with_nothing_is_an_error() {
    let missing = || (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"}));
    let claim = || json!({"metadata": {"name": "home", "namespace": "t", "uid": "another"}});
    for exists in [false, true] {
        let (applier, _folder) = applier(move |request| match request.method().as_str() {
            "POST" => conflict(),
            _ if exists => (200, claim()),
            _ => missing(),
        });
        let object = Object::Claim(Box::new(serde_json::from_value(claim()).unwrap()));
        let result = applier.apply(Action::Create(object), &View::of(computer("1"))).await;
        assert_eq!(result.is_ok(), exists, "{result:?}");
    }
}
