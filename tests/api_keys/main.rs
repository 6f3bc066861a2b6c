//! `ApiKeys` on a real control plane with real operator processes: issued, used, rotated, expired and deleted, in a terminating namespace, with a
//! recreated ServiceAccount, and with operators that are killed at random. Needs Go, not root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Bench, SYSTEM, eventually};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use rand::Rng;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn api_keys_on_a_real_control_plane() {
    let bench = Bench::up().await;
    let scenes = async {
        a_token_is_issued_and_ends_with_its_key(&bench).await;
        a_rotation_replaces_the_token(&bench).await;
        an_expired_token_never_authenticates_again(&bench).await;
        a_recreated_service_account_does_not_revive_a_token(&bench).await;
        a_terminating_namespace_revokes_the_token(&bench).await;
        a_deleted_secret_is_reported_and_a_planted_one_kept(&bench).await;
        http_requests_use_the_rights_of_the_account_and_record_the_last_use(&bench).await;
        operators_killed_at_random_leave_one_valid_token_per_key(&bench).await;
        a_restarted_operator_writes_nothing(&bench).await;
        no_token_is_logged(&bench).await;
    };
    let finished = tokio::time::timeout(Duration::from_secs(900), scenes).await;
    assert!(finished.is_ok(), "not finished in time; log of the operators:\n{}", bench.logs());
}

/// The token is invalid from the moment of `kubectl delete`, even if no operator runs; then nothing is left.
async fn a_token_is_issued_and_ends_with_its_key(bench: &Bench) {
    bench.namespace("plain");
    let operator = bench.operator();
    bench.create("plain", "k", &json!({}));
    let token = bench.token("plain", "k").await;
    assert!(token.starts_with("coa_") && bench.authenticates(&token).await);
    let key = bench.ready_reason("plain", "k", "Issued").await;
    let record = bench.records().await.remove(0);
    assert_eq!((record.name_any(), record.namespace().as_deref()), (key.uid().unwrap(), Some(SYSTEM)));
    assert!(!serde_json::to_string(&(&record, &key)).unwrap().contains(&token[40..]), "only the hash is stored");
    for account in ["computer-operator", "computer-operator-api"] {
        let who = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
        assert!(bench.kubectl(&["auth", "can-i", "get", "secrets", "-n", "plain", &who], "").is_err(), "{account} can read Secrets");
    }
    drop(operator);
    bench.delete("plain", "k");
    assert!(!bench.authenticates(&token).await, "S2");
    assert!(bench.keys("plain").get("k").await.is_ok(), "the finalizer keeps the ApiKey");
    let _operator = bench.operator();
    bench.gone("plain", "k").await;
    assert!(!bench.authenticates(&token).await);
    // A new ApiKey with the same name is another key.
    bench.create("plain", "k", &json!({}));
    let another = bench.token("plain", "k").await;
    assert!(bench.authenticates(&another).await && !bench.authenticates(&token).await);
}

async fn a_rotation_replaces_the_token(bench: &Bench) {
    bench.namespace("rotated");
    let operator = bench.operator();
    bench.create("rotated", "k", &json!({}));
    let old = bench.token("rotated", "k").await;
    drop(operator);
    bench.change("rotated", "k", &json!({"rotation": "2026-11"}));
    assert!(!bench.authenticates(&old).await, "the old token is invalid before an operator has seen the rotation");
    let _operator = bench.operator();
    let new = bench.token("rotated", "k").await;
    assert!(bench.authenticates(&new).await && !bench.authenticates(&old).await);
    eventually("one Secret is left", || async {
        let left = bench.secrets("rotated").await.len();
        if left == 1 { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
}

async fn an_expired_token_never_authenticates_again(bench: &Bench) {
    bench.namespace("expired");
    let operator = bench.operator();
    let at = Timestamp::now() + SignedDuration::from_secs(8);
    bench.create("expired", "k", &json!({"expiresAt": at.to_string()}));
    let token = bench.token("expired", "k").await;
    if Timestamp::now() < at {
        assert!(bench.authenticates(&token).await || Timestamp::now() >= at);
    }
    let key = bench.ready_reason("expired", "k", "Expired").await;
    assert!(Timestamp::now() >= at && key.status.unwrap().secret_name.is_none() && bench.secrets("expired").await.is_empty());
    assert!(!bench.authenticates(&token).await);
    bench.change("expired", "k", &json!({"expiresAt": null}));
    bench.ready_reason("expired", "k", "Expired").await;
    assert!(!bench.authenticates(&token).await, "an expired token stays invalid");
    bench.change("expired", "k", &json!({"rotation": "again"}));
    let token = bench.token("expired", "k").await;
    drop(operator);
    bench.change("expired", "k", &json!({"expiresAt": "2020-01-01T00:00:00Z"}));
    assert!(!bench.authenticates(&token).await, "an expiry takes effect at once, without an operator");
}

async fn a_recreated_service_account_does_not_revive_a_token(bench: &Bench) {
    bench.namespace("account");
    let operator = bench.operator();
    bench.create("account", "k", &json!({}));
    let token = bench.token("account", "k").await;
    drop(operator);
    bench.kubectl(&["delete", "serviceaccount", "caller", "-n", "account"], "").unwrap();
    assert!(!bench.authenticates(&token).await, "the ServiceAccount was deleted");
    bench.account("account");
    assert!(!bench.authenticates(&token).await, "the ServiceAccount was recreated");
    let _operator = bench.operator();
    bench.ready_reason("account", "k", "ServiceAccountReplaced").await;
    bench.change("account", "k", &json!({"rotation": "2"}));
    let new = bench.token("account", "k").await;
    assert!(bench.authenticates(&new).await && !bench.authenticates(&token).await);
    bench.kubectl(&["delete", "serviceaccount", "caller", "-n", "account"], "").unwrap();
    bench.ready_reason("account", "k", "ServiceAccountDeleted").await;
}

/// The namespace is blocked by a foreign finalizer. The token is invalid nevertheless, and the operator removes its own finalizer.
async fn a_terminating_namespace_revokes_the_token(bench: &Bench) {
    bench.namespace("going");
    let operator = bench.operator();
    let stone = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stone", "namespace": "going", "finalizers": ["example.com/stone"]}});
    bench.apply(&stone.to_string());
    bench.create("going", "k", &json!({}));
    let token = bench.token("going", "k").await;
    drop(operator);
    bench.kubectl(&["delete", "namespace", "going", "--wait=false"], "").unwrap();
    assert!(!bench.authenticates(&token).await, "S2");
    let _operator = bench.operator();
    bench.gone("going", "k").await;
    bench
        .kubectl(&["patch", "configmap", "stone", "-n", "going", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "")
        .unwrap();
    bench.kubectl(&["wait", "--for=delete", "namespace/going", "--timeout=60s"], "").expect("L7");
    assert!(!bench.authenticates(&token).await);
}

async fn a_deleted_secret_is_reported_and_a_planted_one_kept(bench: &Bench) {
    bench.namespace("planted");
    let operator = bench.operator();
    bench.create("planted", "k", &json!({}));
    let token = bench.token("planted", "k").await;
    let ours = bench.secrets("planted").await.remove(0);
    let mut planted =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "planted", "namespace": "planted", "labels": ours.labels()}});
    bench.apply(&planted.to_string());
    // A tenant deletes the token's Secret and creates another one under its name.
    bench.kubectl(&["delete", "secret", &ours.name_any(), "-n", "planted"], "").unwrap();
    planted["metadata"]["name"] = json!(ours.name_any());
    bench.apply(&planted.to_string());
    drop(operator);
    let _operator = bench.operator();
    let key = bench.ready_reason("planted", "k", "SecretMissing").await;
    let message = &key.status.unwrap().conditions[0].message;
    assert!(message.contains("change spec.rotation") && bench.authenticates(&token).await, "{message}");
    bench.delete("planted", "k");
    eventually("the key is gone", || async {
        let found = bench.keys("planted").get_opt("k").await.map_err(|e| e.to_string())?;
        if found.is_none() { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!(bench.secrets("planted").await.len(), 2, "S5: Secrets that a tenant created are kept");
    assert!(!bench.authenticates(&token).await);
}

/// A request has the rights of the ServiceAccount, and any number of requests causes one write of the last use.
async fn http_requests_use_the_rights_of_the_account_and_record_the_last_use(bench: &Bench) {
    bench.namespace("http");
    let _operator = bench.operator();
    let (api, url) = bench.http();
    bench.create("http", "k", &json!({}));
    let token = bench.token("http", "k").await;
    let ask = async |token: &str| {
        let request = reqwest::Client::new().get(format!("{url}/api/v0/computers")).bearer_auth(token);
        request.send().await.map(|answer| answer.status().as_u16()).map_err(|e| e.to_string())
    };
    let without = eventually("the API responds", || async { ask(&token).await }).await;
    assert!(matches!(without, 403 | 404), "authenticated, but no role allows it: {without}");
    bench
        .kubectl(&["create", "role", "lister", "-n", "http", "--verb=get,list", "--resource=computers.computer-operator.dev"], "")
        .unwrap();
    bench.kubectl(&["create", "rolebinding", "lister", "-n", "http", "--role=lister", "--serviceaccount=http:caller"], "").unwrap();
    eventually("the role is in effect", || async {
        let code = ask(&token).await?;
        if code == 200 { Ok(()) } else { Err(code.to_string()) }
    })
    .await;
    let used = async || bench.keys("http").get("k").await.unwrap();
    eventually("the last use is recorded", || async { used().await.status.and_then(|s| s.last_used_time).ok_or_else(String::new) }).await;
    let before = bench.ready_reason("http", "k", "Issued").await.resource_version();
    for _ in 0..50 {
        assert_eq!(ask(&token).await, Ok(200));
    }
    assert_eq!(bench.metric(&api, &[r#"verb="patch""#, r#"resource="apikeys/status""#]).await, Ok(1), "one write for all requests");
    assert_eq!(used().await.resource_version(), before);
    bench.delete("http", "k");
    assert_eq!(ask(&token).await, Ok(401));
}

/// Two concurrent operators are killed and restarted at random times while keys are created, rotated and deleted.
async fn operators_killed_at_random_leave_one_valid_token_per_key(bench: &Bench) {
    const KEYS: usize = 12;
    bench.namespace("killed");
    let name = |i: usize| format!("k{i}");
    let mut seen = Vec::new();
    for round in 0..12 {
        let (one, two) = (bench.operator(), bench.operator());
        if round < KEYS {
            bench.create("killed", &name(round), &json!({}));
        }
        if round > 3 {
            bench.change("killed", &name(rand::rng().random_range(0..round)), &json!({"rotation": round.to_string()}));
        }
        // A random time is intended here; there is no condition to wait for.
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(100..1500))).await;
        seen.extend(bench.secrets("killed").await);
        drop((one, two));
    }
    for i in 0..4 {
        bench.delete("killed", &name(i));
    }
    let _operators = (bench.operator(), bench.operator());
    for i in 0..KEYS {
        if i < 4 {
            bench.gone("killed", &name(i)).await;
        } else {
            assert!(bench.authenticates(&bench.token("killed", &name(i)).await).await, "{}", name(i));
        }
    }
    eventually("one Secret for each key", || async {
        let left: Vec<String> = bench.secrets("killed").await.iter().map(ResourceExt::name_any).collect();
        if left.len() == KEYS - 4 { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let current: Vec<String> = bench.secrets("killed").await.iter().map(ResourceExt::name_any).collect();
    for old in seen.iter().filter(|s| !current.contains(&s.name_any())) {
        let token = String::from_utf8(old.data.as_ref().unwrap()["token"].0.clone()).unwrap();
        assert!(!bench.authenticates(&token).await, "a replaced token still authenticates");
    }
}

/// An operator reconciles every key when it starts, and writes nothing (L6).
async fn a_restarted_operator_writes_nothing(bench: &Bench) {
    let versions = async || {
        let mut all = BTreeMap::new();
        for key in Api::<computer_operator::resources::ApiKey>::all(bench.admin.clone()).list(&ListParams::default()).await.unwrap() {
            all.insert(format!("{}/{}", key.namespace().unwrap(), key.name_any()), key.resource_version());
        }
        for record in bench.records().await {
            all.insert(record.name_any(), record.resource_version());
        }
        for secret in Api::<Secret>::all(bench.admin.clone()).list(&ListParams::default()).await.unwrap() {
            all.insert(secret.uid().unwrap(), secret.resource_version());
        }
        all
    };
    let before = versions().await;
    let keys = before.keys().filter(|k| k.contains('/')).count() as u64;
    let operator = bench.operator();
    // Each pass reads the ServiceAccount of its key.
    eventually("every key has been reconciled", || async {
        let reads = bench.metric(&operator, &[r#"verb="get""#, r#"resource="serviceaccounts""#]).await?;
        if reads >= keys { Ok(()) } else { Err(format!("{reads} of {keys}")) }
    })
    .await;
    for verb in ["create", "update", "patch"] {
        for resource in ["apikeys", "apikeys/status", "apikeyrecords", "secrets"] {
            let count = bench.metric(&operator, &[&format!("verb=\"{verb}\""), &format!("resource=\"{resource}\"")]).await;
            assert_eq!(count, Ok(0), "{verb} {resource}");
        }
    }
    assert_eq!(versions().await, before);
}

async fn no_token_is_logged(bench: &Bench) {
    let logs = bench.logs();
    for secret in Api::<Secret>::all(bench.admin.clone()).list(&ListParams::default()).await.unwrap() {
        let token = secret.data.into_iter().flatten().find(|(k, _)| k == "token").map(|(_, v)| String::from_utf8(v.0).unwrap());
        assert!(token.is_none_or(|t| !logs.contains(t.rsplit('.').next().unwrap())), "a token was logged");
    }
    assert!(!logs.contains("coa_") && logs.contains("caches are filled"));
}
