//! Schema-driven fuzzing of the served description with schemathesis: every operation, with data that fits and data that does not, by
//! a tenant and by a computer. Each answer must be one that the description says, in the shape that it says. Where pip reaches no
//! index and nothing was installed before, it is named as skipped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::process::Command;

use crate::client::Ask;
use crate::harness::{Bench, eventually};
use crate::{Scenario, scenarios};

const VERSION: &str = "4.32.5";
/// A run that finds nothing is reproducible.
const SEED: &str = "20261124";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
    response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,use_after_free,ignored_auth";

pub fn all() -> Vec<Scenario> {
    scenarios![every_answer_conforms_to_the_description]
}

async fn every_answer_conforms_to_the_description(bench: Arc<Bench>) -> Result<()> {
    let Some(program) = installed().await? else {
        println!("test every_answer_conforms_to_the_description ... skipped: schemathesis {VERSION} could not be installed with pip");
        return Ok(());
    };
    let (_, token) = bench.tenant("fuzz").await?;
    let id = bench.byom(&token, "box").await?;
    let key = bench.key(&id).await?;
    let session = bench.send(Ask::post("/api/v0/sessions").by(&key).json(&json!({}))).await?.is(201)?;
    let session = session.body["sessionId"].as_str().context("an id")?.to_owned();
    // The computer's own key is fuzzed on itself; what is deleted is not of this run.
    for (name, credential, seconds, path) in [("tenant", &token, 45, None), ("key", &key, 20, Some("^(?!.*DELETE /api/v0/computers/).*$"))]
    {
        let config = bench.folder.path().join(format!("{name}.toml"));
        std::fs::write(&config, configuration(&id, &session))?;
        let mut command = Command::new(&program);
        command
            .args(["--config-file", &config.display().to_string(), "run", &format!("{}/openapi.json", bench.replicas[0].base)])
            .args(["--url", &bench.replicas[0].base, "--header", &format!("Authorization: Bearer {credential}")])
            .args(["--checks", CHECKS, "--seed", SEED, "--workers", "4", "--continue-on-failure", "--no-color"])
            .args(["--max-time", &seconds.to_string(), "--request-timeout", "20", "--suppress-health-check", "all"])
            .current_dir(bench.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if path.is_some() {
            command.args(["--exclude-operation-id", "deleteComputer"]);
        }
        let output = tokio::time::timeout(Duration::from_secs(150), command.output()).await.context("schemathesis does not end")??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        std::fs::write(bench.logs().join(format!("schemathesis-{name}.txt")), text.replace(credential.as_str(), "TOKEN"))?;
        ensure!(output.status.success(), "as {name}:\n{}", tail(&text, 120).replace(credential.as_str(), "TOKEN"));
        println!("    as {name}: {}", text.lines().rfind(|l| l.contains("generated") || l.contains("test cases")).unwrap_or("done").trim());
    }
    // All of that later the server is as it was.
    eventually("the computer is still there", || async {
        Ok((bench.send(Ask::get("/api/v0/computers").by(&token)).await?.status == 200).then_some(()))
    })
    .await
}

/// Ids that exist, so that more than 404 is seen.
fn configuration(id: &str, session: &str) -> String {
    format!("[parameters]\n\"path.computerId\" = [\"{id}\", \"x\"]\n\"path.sessionId\" = [\"{session}\", \"x\"]\n")
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The program in an environment of its own in the cache folder, installed once.
async fn installed() -> Result<Option<PathBuf>> {
    let folder = xtask::tools::cache_folder()?.join(format!("schemathesis-{VERSION}"));
    let program = folder.join("bin/schemathesis");
    if !works(&program).await {
        let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder).stdin(Stdio::null()).output().await;
        if !made.is_ok_and(|o| o.status.success()) {
            return Ok(None);
        }
        let pip = Command::new(folder.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", &format!("schemathesis=={VERSION}")])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let done = tokio::time::timeout(Duration::from_secs(120), pip).await;
        if !done.is_ok_and(|o| o.is_ok_and(|o| o.status.success())) {
            return Ok(None);
        }
    }
    Ok(works(&program).await.then_some(program))
}

async fn works(program: &Path) -> bool {
    let version = Command::new(program).arg("--version").stdin(Stdio::null()).output().await;
    version.is_ok_and(|o| o.status.success())
}
