//! A tenant downloads the archive of its deleted computer through the chart's HTTP API, with real pods, certificates, tokens and network policies.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use computer_operator::credentials::ComputerId;
use sha2::{Digest as _, Sha256};

use crate::world::{FULL, SYSTEM, World, eventually};

/// A port-forward to the HTTP API; ended when dropped.
struct Forward(Child, String);

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn forward(world: &World) -> Result<Forward> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (service, ports) = (format!("service/{FULL}-api"), format!("{port}:80"));
    let child = Command::new(world.cluster.kubectl()?)
        .args(["port-forward", "-n", SYSTEM, &service, &ports])
        .env("KUBECONFIG", world.cluster.kubeconfig())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Forward(child, format!("http://127.0.0.1:{port}")))
}

/// The tenant has rights only in its own namespace.
fn token(world: &World, namespace: &str) -> Result<String> {
    let resource = "--resource=computers.computer-operator.dev/archive";
    world.kubectl(&["create", "serviceaccount", "reader", "-n", namespace])?;
    world.kubectl(&["create", "role", "archive-reader", "-n", namespace, "--verb=get", resource])?;
    let account = format!("--serviceaccount={namespace}:reader");
    world.kubectl(&["create", "rolebinding", "archive-reader", "-n", namespace, "--role=archive-reader", &account])?;
    Ok(world.kubectl(&["create", "token", "reader", "-n", namespace, "--audience=computer-operator"])?.trim().to_owned())
}

fn get(url: &str, token: &str, range: Option<&str>) -> Result<(u16, Vec<u8>)> {
    let handle = tokio::runtime::Handle::current();
    handle.block_on(async {
        let mut request = reqwest::Client::new().get(url).bearer_auth(token);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.bytes().await?.to_vec()))
    })
}

pub fn a_tenant_downloads_its_archive(world: &World) -> Result<()> {
    let namespace = "readers";
    world.namespace(namespace)?;
    let uid = world.computer(namespace, "box")?;
    let write = "head -c 3000000 /dev/urandom > $HOME/.codex/sessions/one.jsonl; sha256sum < $HOME/.codex/sessions/one.jsonl";
    let sum = world.script(namespace, "box", write)?;
    let token = token(world, namespace)?;
    world.kubectl(&["delete", "computer", "box", "-n", namespace, "--timeout=120s"])?;
    world.finished(&uid)?;
    let id = ComputerId { namespace: namespace.to_owned(), name: "box".to_owned(), uid };
    let forward = forward(world)?;
    let url = format!("{}/api/v0/computers/{}/archive/export", forward.1, id.encode());
    let stored = eventually("the archive is sent", || {
        let (status, body) = get(&url, &token, None)?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    })?;
    let mut files = tar::Archive::new(zstd::Decoder::new(&stored[..])?);
    let mut digest = None;
    for entry in files.entries()? {
        let mut entry = entry?;
        if entry.path()?.ends_with(".codex/sessions/one.jsonl") {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            digest = Some(hex::encode(Sha256::digest(&content)));
        }
    }
    let digest = digest.context("the session is not in the archive")?;
    ensure!(sum.starts_with(&digest), "the archived file has the digest {digest}, not {sum}");
    let (status, rest) = get(&url, &token, Some("bytes=1000000-"))?;
    ensure!(status == 206 && rest == stored[1_000_000..], "{status}");
    // Another namespace of the same name has another UID.
    world.kubectl(&["delete", "namespace", namespace, "--timeout=120s"])?;
    world.namespace(namespace)?;
    let next = self::token(world, namespace)?;
    let (status, _) = get(&url, &next, None)?;
    ensure!(status == 404, "S13: {status}");
    Ok(())
}
