//! `ApiKeys` on a real control plane, with real operator processes: issued, used, rotated, expired, deleted, in a namespace that is
//! going, with a ServiceAccount that comes again, and with operators that are killed at any moment. Needs Go, not root.
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
        issued_and_gone_with_its_key(&bench).await;
        rotated(&bench).await;
        expired(&bench).await;
        the_account_comes_again(&bench).await;
        the_namespace_is_going(&bench).await;
        planted_and_deleted_secrets(&bench).await;
        http_and_the_last_use(&bench).await;
        operators_killed_at_random(&bench).await;
        silence(&bench).await;
        no_token_in_a_log(&bench).await;
    };
    let finished = tokio::time::timeout(Duration::from_secs(900), scenes).await;
    assert!(finished.is_ok(), "not finished in time; the operators said:\n{}", bench.logs());
}

/// Issued; dead at the instant of `kubectl delete` with the operator stopped; then nothing is left.
async fn issued_and_gone_with_its_key(bench: &Bench) {
    bench.namespace("plain");
    let operator = bench.operator();
    bench.create("plain", "k", &json!({}));
    let token = bench.token("plain", "k").await;
    assert!(token.starts_with("coa_") && bench.alive(&token).await);
    let key = bench.says("plain", "k", "Issued").await;
    let record = bench.records().await.remove(0);
    assert_eq!((record.name_any(), record.namespace().as_deref()), (key.uid().unwrap(), Some(SYSTEM)));
    assert!(!serde_json::to_string(&(&record, &key)).unwrap().contains(&token[40..]), "only the hash is kept");
    for account in ["computer-operator", "computer-operator-api"] {
        let who = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
        assert!(bench.kubectl(&["auth", "can-i", "get", "secrets", "-n", "plain", &who], "").is_err(), "{account} reads Secrets");
    }
    drop(operator);
    bench.delete("plain", "k");
    assert!(!bench.alive(&token).await, "S2");
    assert!(bench.keys("plain").get("k").await.is_ok(), "the finalizer holds it");
    let _operator = bench.operator();
    bench.gone("plain", "k").await;
    assert!(!bench.alive(&token).await);
    // The same name is another key.
    bench.create("plain", "k", &json!({}));
    let another = bench.token("plain", "k").await;
    assert!(bench.alive(&another).await && !bench.alive(&token).await);
}

async fn rotated(bench: &Bench) {
    bench.namespace("rotated");
    let operator = bench.operator();
    bench.create("rotated", "k", &json!({}));
    let old = bench.token("rotated", "k").await;
    drop(operator);
    bench.change("rotated", "k", &json!({"rotation": "2026-11"}));
    assert!(!bench.alive(&old).await, "dead before any operator has seen it");
    let _operator = bench.operator();
    let new = bench.token("rotated", "k").await;
    assert!(bench.alive(&new).await && !bench.alive(&old).await);
    eventually("one Secret is left", || async {
        let left = bench.secrets("rotated").await.len();
        if left == 1 { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
}

async fn expired(bench: &Bench) {
    bench.namespace("expired");
    let operator = bench.operator();
    let at = Timestamp::now() + SignedDuration::from_secs(8);
    bench.create("expired", "k", &json!({"expiresAt": at.to_string()}));
    let token = bench.token("expired", "k").await;
    if Timestamp::now() < at {
        assert!(bench.alive(&token).await || Timestamp::now() >= at);
    }
    let key = bench.says("expired", "k", "Expired").await;
    assert!(Timestamp::now() >= at && key.status.unwrap().secret_name.is_none() && bench.secrets("expired").await.is_empty());
    assert!(!bench.alive(&token).await);
    bench.change("expired", "k", &json!({"expiresAt": null}));
    bench.says("expired", "k", "Expired").await;
    assert!(!bench.alive(&token).await, "an expired token stays dead");
    bench.change("expired", "k", &json!({"rotation": "again"}));
    let token = bench.token("expired", "k").await;
    drop(operator);
    bench.change("expired", "k", &json!({"expiresAt": "2020-01-01T00:00:00Z"}));
    assert!(!bench.alive(&token).await, "at once, without an operator");
}

async fn the_account_comes_again(bench: &Bench) {
    bench.namespace("account");
    let operator = bench.operator();
    bench.create("account", "k", &json!({}));
    let token = bench.token("account", "k").await;
    drop(operator);
    bench.kubectl(&["delete", "serviceaccount", "caller", "-n", "account"], "").unwrap();
    assert!(!bench.alive(&token).await, "its ServiceAccount is gone");
    bench.account("account");
    assert!(!bench.alive(&token).await, "another ServiceAccount of that name");
    let _operator = bench.operator();
    bench.says("account", "k", "ServiceAccountReplaced").await;
    bench.change("account", "k", &json!({"rotation": "2"}));
    let new = bench.token("account", "k").await;
    assert!(bench.alive(&new).await && !bench.alive(&token).await);
    bench.kubectl(&["delete", "serviceaccount", "caller", "-n", "account"], "").unwrap();
    bench.says("account", "k", "ServiceAccountDeleted").await;
}

/// A namespace that cannot end, because of somebody else's finalizer: the key is dead all the same, and ours goes.
async fn the_namespace_is_going(bench: &Bench) {
    bench.namespace("going");
    let operator = bench.operator();
    let stone = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stone", "namespace": "going", "finalizers": ["example.com/stone"]}});
    bench.apply(&stone.to_string());
    bench.create("going", "k", &json!({}));
    let token = bench.token("going", "k").await;
    drop(operator);
    bench.kubectl(&["delete", "namespace", "going", "--wait=false"], "").unwrap();
    assert!(!bench.alive(&token).await, "S2");
    let _operator = bench.operator();
    bench.gone("going", "k").await;
    bench
        .kubectl(&["patch", "configmap", "stone", "-n", "going", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "")
        .unwrap();
    bench.kubectl(&["wait", "--for=delete", "namespace/going", "--timeout=60s"], "").expect("L7");
    assert!(!bench.alive(&token).await);
}

async fn planted_and_deleted_secrets(bench: &Bench) {
    bench.namespace("planted");
    let operator = bench.operator();
    bench.create("planted", "k", &json!({}));
    let token = bench.token("planted", "k").await;
    let ours = bench.secrets("planted").await.remove(0);
    let mut planted =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "planted", "namespace": "planted", "labels": ours.labels()}});
    bench.apply(&planted.to_string());
    // The token's Secret is deleted by hand, and another one planted in its place.
    bench.kubectl(&["delete", "secret", &ours.name_any(), "-n", "planted"], "").unwrap();
    planted["metadata"]["name"] = json!(ours.name_any());
    bench.apply(&planted.to_string());
    drop(operator);
    let _operator = bench.operator();
    let key = bench.says("planted", "k", "SecretMissing").await;
    let message = &key.status.unwrap().conditions[0].message;
    assert!(message.contains("change spec.rotation") && bench.alive(&token).await, "{message}");
    bench.delete("planted", "k");
    eventually("the key is gone", || async {
        let found = bench.keys("planted").get_opt("k").await.map_err(|e| e.to_string())?;
        if found.is_none() { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!(bench.secrets("planted").await.len(), 2, "S5: what a tenant planted is the tenant's");
    assert!(!bench.alive(&token).await);
}

/// Over HTTP: the rights of the ServiceAccount, and one write for any number of requests.
async fn http_and_the_last_use(bench: &Bench) {
    bench.namespace("http");
    let _operator = bench.operator();
    let (api, url) = bench.http();
    bench.create("http", "k", &json!({}));
    let token = bench.token("http", "k").await;
    let ask = async |token: &str| {
        let request = reqwest::Client::new().get(format!("{url}/api/v0/computers")).bearer_auth(token);
        request.send().await.map(|answer| answer.status().as_u16()).map_err(|e| e.to_string())
    };
    let without = eventually("the API answers", || async { ask(&token).await }).await;
    assert!(matches!(without, 403 | 404), "authenticated, but no role allows it: {without}");
    bench
        .kubectl(&["create", "role", "lister", "-n", "http", "--verb=get,list", "--resource=computers.computer-operator.dev"], "")
        .unwrap();
    bench.kubectl(&["create", "rolebinding", "lister", "-n", "http", "--role=lister", "--serviceaccount=http:caller"], "").unwrap();
    eventually("the role counts", || async {
        let code = ask(&token).await?;
        if code == 200 { Ok(()) } else { Err(code.to_string()) }
    })
    .await;
    let used = async || bench.keys("http").get("k").await.unwrap();
    eventually("the use is written", || async { used().await.status.and_then(|s| s.last_used_time).ok_or_else(String::new) }).await;
    let before = bench.says("http", "k", "Issued").await.resource_version();
    for _ in 0..50 {
        assert_eq!(ask(&token).await, Ok(200));
    }
    assert_eq!(bench.figure(&api, &[r#"verb="patch""#, r#"resource="apikeys/status""#]).await, Ok(1), "one write for all of them");
    assert_eq!(used().await.resource_version(), before);
    bench.delete("http", "k");
    assert_eq!(ask(&token).await, Ok(401));
}

/// Two operators at once, killed and started again at random moments, while keys are created, rotated and deleted.
async fn operators_killed_at_random(bench: &Bench) {
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
        // A random moment is what is wanted here, not a condition.
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
            assert!(bench.alive(&bench.token("killed", &name(i)).await).await, "{}", name(i));
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
        assert!(!bench.alive(&token).await, "a token of before lives");
    }
}

/// An operator that starts looks at every key, and writes nothing (L6).
async fn silence(bench: &Bench) {
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
    eventually("every key was looked at", || async {
        let looked = bench.figure(&operator, &[r#"verb="get""#, r#"resource="serviceaccounts""#]).await?;
        if looked >= keys { Ok(()) } else { Err(format!("{looked} of {keys}")) }
    })
    .await;
    for verb in ["create", "update", "patch"] {
        for resource in ["apikeys", "apikeys/status", "apikeyrecords", "secrets"] {
            let count = bench.figure(&operator, &[&format!("verb=\"{verb}\""), &format!("resource=\"{resource}\"")]).await;
            assert_eq!(count, Ok(0), "{verb} {resource}");
        }
    }
    assert_eq!(versions().await, before);
}

async fn no_token_in_a_log(bench: &Bench) {
    let logs = bench.logs();
    for secret in Api::<Secret>::all(bench.admin.clone()).list(&ListParams::default()).await.unwrap() {
        let token = secret.data.into_iter().flatten().find(|(k, _)| k == "token").map(|(_, v)| String::from_utf8(v.0).unwrap());
        assert!(token.is_none_or(|t| !logs.contains(t.rsplit('.').next().unwrap())), "a token was logged");
    }
    assert!(!logs.contains("coa_") && logs.contains("caches are filled"));
}
