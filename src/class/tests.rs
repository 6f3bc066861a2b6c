use axum::http::{Request, Response};
use kube::client::Body;

use super::*;

/// An API server that responds to every dry run of a pod with `answer`; `None` accepts it.
fn server(answer: fn(&Value) -> Option<(u16, &'static str)>) -> Shared {
    let service = tower::service_fn(move |request: Request<Body>| async move {
        let query = request.uri().query().unwrap_or_default().to_owned();
        assert_eq!(query, "fieldValidation=Strict&dryRun=All", "nothing is created, and no field is dropped");
        let body = request.into_body().collect_bytes().await?.to_vec();
        let pod: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(pod["metadata"]["generateName"], "class-dry-run-", "the admission policy allows only this name");
        assert!(pod["metadata"]["name"].is_null() && pod["spec"]["containers"][0]["image"].is_string(), "{pod}");
        let Some((code, message)) = answer(&pod) else { return Ok(Response::new(Body::from(body))) };
        let reason = match code {
            403 => "Forbidden",
            422 => "Invalid",
            _ => "InternalError",
        };
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message});
        Ok::<_, kube::Error>(Response::builder().status(code).body(Body::from(status.to_string().into_bytes())).unwrap())
    });
    let settings = Settings { namespace: "op".into(), image: "operator".into(), ..Settings::default() };
    Shared { sources: Sources::default(), client: Client::new(service, "op"), settings }
}

fn class(template: &Value, spec: &Value) -> ComputerClass {
    let mut all = json!({"podTemplate": {"spec": template}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": "c", "generation": 1}, "spec": all})).unwrap()
}

fn plain() -> Value {
    json!({"containers": [{"name": "a", "image": "i"}]})
}

#[tokio::test]
async fn a_class_needs_valid_session_paths_unless_it_disables_the_archive() {
    let shared = server(|_| None);
    for (policy, paths, reason) in [
        ("Required", json!([]), Reason::NoSessionPaths),
        ("None", json!([]), Reason::Accepted),
        ("Required", json!(["."]), Reason::Accepted),
        ("Required", json!(["./"]), Reason::InvalidSessionPath),
        ("Required", json!([".claude", "./a"]), Reason::InvalidSessionPath),
    ] {
        let class = class(&plain(), &json!({"sessionPaths": paths, "archive": {"policy": policy}}));
        assert_eq!(check(&class, &shared).await.unwrap().reason, reason);
    }
}

/// L1: a machine can run as root where its namespace allows it, but its archive pod also runs as root, in the operator's namespace.
#[tokio::test]
async fn a_class_whose_archive_pods_are_rejected_is_not_accepted() {
    let restricted = |pod: &Value| {
        let root = pod["spec"]["securityContext"]["runAsUser"] == 0 || pod["spec"]["containers"][0]["securityContext"]["runAsUser"] == 0;
        root.then_some((403, "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true"))
    };
    let shared = server(restricted);
    let root = json!({"securityContext": {"runAsUser": 0}, "containers": [{"name": "a", "image": "i"}]});
    let container = json!({"containers": [{"name": "a", "image": "i", "securityContext": {"runAsUser": 0}}]});
    for template in [root, container] {
        for policy in ["Required", "BestEffort"] {
            let verdict = check(&class(&template, &json!({"archive": {"policy": policy}})), &shared).await.unwrap();
            assert_eq!((verdict.accepted, verdict.reason), (false, Reason::ArchiveNotPossible));
            for part in ["runAsUser 0", "namespace op", "spec.archive.policy to None", "violates PodSecurity"] {
                assert!(verdict.message.contains(part), "{}", verdict.message);
            }
        }
        let verdict = check(&class(&template, &json!({"archive": {"policy": "None"}})), &shared).await.unwrap();
        assert_eq!((verdict.accepted, verdict.reason), (true, Reason::NotRestricted));
    }
    assert_eq!(check(&class(&plain(), &json!({})), &shared).await.unwrap().reason, Reason::Accepted);
}

/// The archive pod of a privileged machine is not privileged.
#[tokio::test]
async fn a_privileged_machine_can_be_archived() {
    let shared = server(|pod| {
        let privileged = pod["spec"]["containers"][0]["securityContext"]["privileged"] == true;
        privileged.then_some((403, "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": privileged"))
    });
    let template = json!({"containers": [{"name": "a", "image": "i", "securityContext": {"privileged": true}}]});
    let verdict = check(&class(&template, &json!({})), &shared).await.unwrap();
    assert_eq!((verdict.accepted, verdict.reason), (true, Reason::NotRestricted));
}

/// L2: a class has a verdict whatever the API server responds.
#[tokio::test]
async fn a_class_has_a_verdict_even_if_a_quota_or_a_policy_rejects_the_dry_run() {
    let exceeded = server(|_| Some((403, "pods \"x\" is forbidden: exceeded quota: q")));
    let incomplete = server(|_| Some((403, "pods \"x\" is forbidden: failed quota: q: must specify limits.cpu")));
    for shared in [exceeded, incomplete] {
        assert_eq!(check(&class(&plain(), &json!({})), &shared).await.unwrap().reason, Reason::Accepted);
    }
    let shared = server(|_| Some((403, "admission webhook \"labels.example\" denied the request: no owner")));
    let mut unknown = class(&plain(), &json!({}));
    let verdict = check(&unknown, &shared).await.unwrap();
    assert_eq!((verdict.accepted, verdict.reason), (false, Reason::CheckRefused));
    assert!(verdict.message.contains("no owner"), "{}", verdict.message);
    let known = |generation| Verdict { message: String::new(), ..accepted() }.into_status(&class(&plain(), &json!({})), generation);
    unknown.status = Some(known(1));
    assert!(check(&unknown, &shared).await.is_err(), "an accepted class stays accepted and is checked again");
    unknown.status = Some(known(0));
    assert_eq!(check(&unknown, &shared).await.unwrap().reason, Reason::CheckRefused, "the spec has changed since it was accepted");
}

/// A misspelt `runtimeClassName` would run an untrusted agent without its sandbox.
#[tokio::test]
async fn fields_of_the_template_reach_the_dry_run_and_are_refused_with_their_path() {
    let shared = server(|pod| {
        let unknown = !pod["spec"]["runtimeClassname"].is_null();
        unknown.then_some((
            400,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.runtimeClassname\"",
        ))
    });
    let template = json!({"runtimeClassname": "gvisor", "containers": [{"name": "a", "image": "i"}]});
    let verdict = check(&class(&template, &json!({})), &shared).await.unwrap();
    assert_eq!((verdict.accepted, verdict.reason), (false, Reason::InvalidPodTemplate));
    assert!(verdict.message.contains("unknown field \"spec.runtimeClassname\""), "{}", verdict.message);
}

/// Machines do not run in the operator's namespace: its `LimitRange` and ServiceAccounts decide nothing, and hide nothing.
#[tokio::test]
async fn what_only_the_operators_namespace_refuses_does_not_hide_the_rest() {
    let local = |pod: &Value| {
        if pod["spec"]["serviceAccountName"] == "team" {
            return Some((403, "pods \"x\" is forbidden: error looking up service account op/team: serviceaccount \"team\" not found"));
        }
        let big = pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "1Gi";
        big.then_some((403, "pods \"x\" is forbidden: maximum memory usage per Container is 512Mi, but limit is 1Gi"))
    };
    let template = |user: i64| {
        json!({"serviceAccountName": "team", "securityContext": {"runAsUser": user},
            "containers": [{"name": "a", "image": "i", "resources": {"limits": {"memory": "1Gi"}}}]})
    };
    let verdict = check(&class(&template(1000), &json!({})), &server(local)).await.unwrap();
    assert_eq!((verdict.accepted, verdict.reason), (true, Reason::Accepted));
    let shared = server(|pod| {
        let root = pod["spec"]["securityContext"]["runAsUser"] == 0;
        let big = pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "1Gi";
        let refused = big.then_some((403, "pods \"x\" is forbidden: maximum memory usage per Container is 512Mi, but limit is 1Gi"));
        refused
            .or_else(|| root.then_some((403, "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true")))
    });
    assert_eq!(check(&class(&template(0), &json!({})), &shared).await.unwrap().reason, Reason::ArchiveNotPossible);
    let none = json!({"archive": {"policy": "None"}});
    assert_eq!(check(&class(&template(0), &none), &shared).await.unwrap().reason, Reason::NotRestricted);
}

/// The archive pod does run there: the class can be used, and its condition says that deletions wait for the `LimitRange`.
#[tokio::test]
async fn a_limit_range_that_refuses_archive_pods_is_in_the_condition() {
    let shared = server(|_| Some((403, "pods \"x\" is forbidden: maximum memory usage per Container is 256Mi, but limit is 512Mi")));
    let verdict = check(&class(&plain(), &json!({})), &shared).await.unwrap();
    assert_eq!((verdict.accepted, verdict.reason), (true, Reason::Accepted));
    assert!(verdict.message.contains("deletions of its computers are blocked until a LimitRange in namespace op"), "{}", verdict.message);
}

/// L2: a webhook that does not answer left a new class without any condition.
#[tokio::test]
async fn a_check_that_fails_is_in_the_condition_and_changes_no_verdict() {
    let shared = server(|_| Some((500, "failed calling webhook \"w.example\": context deadline exceeded")));
    let mut unknown = class(&plain(), &json!({}));
    let (verdict, failed) = judge(&unknown, &shared).await;
    let verdict = verdict.unwrap();
    assert_eq!((verdict.accepted, verdict.reason, failed.is_some()), (false, Reason::CheckFailed, true));
    assert!(verdict.message.contains("failed calling webhook"), "{}", verdict.message);
    unknown.status = Some(verdict.into_status(&unknown, 1));
    assert_eq!(judge(&unknown, &shared).await.0.unwrap().reason, Reason::CheckFailed, "a failed check is no verdict");
    for known in [accepted(), refused(Reason::InvalidPodTemplate, "")] {
        unknown.status = Some(known.into_status(&unknown, 1));
        let (verdict, failed) = judge(&unknown, &shared).await;
        assert!(verdict.is_none() && failed.is_some(), "the verdict stays, and the check is repeated");
    }
}

impl Verdict {
    fn into_status(self, class: &ComputerClass, generation: i64) -> ComputerClassStatus {
        let mut class = class.clone();
        class.metadata.generation = Some(generation);
        status(&class, &self, Timestamp::UNIX_EPOCH)
    }
}

/// A status quotes messages of the API server, which may differ on each attempt.
#[test]
fn a_class_is_queued_when_its_spec_changes_and_not_when_its_status_does() {
    let (_, changed) = Controller::default().listener();
    let class = |uid: &str, generation: i64, version: &str| -> ComputerClass {
        let metadata = json!({"name": "c", "uid": uid, "generation": generation, "resourceVersion": version});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"podTemplate": {}}})).unwrap()
    };
    let applied = |class| changed(&watcher::Event::Apply(class)).len();
    assert_eq!(changed(&watcher::Event::InitApply(class("a", 1, "1"))), ["c"]);
    assert_eq!((applied(class("a", 1, "2")), applied(class("a", 2, "3")), applied(class("a", 2, "4"))), (0, 1, 0));
    assert_eq!(applied(class("b", 2, "5")), 1, "another class of the same name");
    assert_eq!(changed(&watcher::Event::InitApply(class("b", 2, "5"))), ["c"], "the relist before may have failed");
    assert!(changed(&watcher::Event::Delete(class("b", 2, "6"))).is_empty());
    assert_eq!(applied(class("b", 2, "7")), 1, "nothing is remembered of a deleted class");
}
