//! Valid and invalid tokens of `ApiKeys`.

use anyhow::{Context as _, Result};
use computer_operator::resources::ApiKey;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::client::Ask;
use crate::harness::{Bench, eventually};

fn keys(bench: &Bench, namespace: &str) -> Api<ApiKey> {
    Api::namespaced(bench.client.clone(), namespace)
}

/// Creates an `ApiKey` that acts as a ServiceAccount, and waits until its token authenticates.
pub async fn issue(bench: &Bench, namespace: &str, name: &str, account: &str) -> Result<String> {
    let key = json!({
        "apiVersion": "computer-operator.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name, "namespace": namespace},
        "spec": {"serviceAccountName": account},
    });
    bench.apply(&[key]).await?;
    eventually("the ApiKey has a token that authenticates", || async {
        let status = keys(bench, namespace).get(name).await?.status.unwrap_or_default();
        let Some(secret) = status.secret_name else { return Ok(None) };
        let secret: Secret = Api::namespaced(bench.client.clone(), namespace).get(&secret).await?;
        let token = String::from_utf8(secret.data.context("data")?.remove("token").context("a token")?.0)?;
        // The token authenticates, whatever the permissions of the account.
        let answer = bench.send(Ask::get("/api/v0/computers").by(&token)).await?;
        Ok((answer.status != 401).then_some(token))
    })
    .await
}

async fn change(bench: &Bench, namespace: &str, name: &str, spec: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": spec}));
    keys(bench, namespace).patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Tokens that were valid and are not any more.
pub async fn invalid(bench: &Bench, namespace: &str) -> Result<Vec<(&'static str, String)>> {
    let expired = issue(bench, namespace, "expired", "owner").await?;
    change(bench, namespace, "expired", json!({"expiresAt": "2026-01-01T00:00:00Z"})).await?;
    let rotated = issue(bench, namespace, "rotated", "owner").await?;
    change(bench, namespace, "rotated", json!({"rotation": "again"})).await?;
    let deleted = issue(bench, namespace, "deleted", "owner").await?;
    keys(bench, namespace).delete("deleted", &DeleteParams::default()).await?;
    bench.apply(&[json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "leaver", "namespace": namespace}})]).await?;
    let left = issue(bench, namespace, "left", "leaver").await?;
    bench.kubectl(&["delete", "serviceaccount", "leaver", "-n", namespace], "").await?;
    let mut mistyped = issue(bench, namespace, "mistyped", "owner").await?;
    let at = mistyped.len() - 12;
    mistyped.replace_range(at..=at, if mistyped.as_bytes()[at] == b'a' { "b" } else { "a" });
    Ok(vec![
        ("an expired ApiKey", expired),
        ("an ApiKey before its rotation", rotated),
        ("a deleted ApiKey", deleted),
        ("an ApiKey of a deleted account", left),
        ("a mistyped ApiKey", mistyped),
    ])
}
