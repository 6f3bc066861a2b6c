//! Schema-based fuzzing of the served `OpenAPI` document with schemathesis: every operation with valid and invalid data, as a tenant and as a computer. Every
//! response must conform to the document. The test is reported as skipped if schemathesis is not installed and pip cannot install it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::process::Command;

use crate::Scenario;
use crate::client::Ask;
use crate::harness::{Bench, eventually};

const VERSION: &str = "4.32.5";
/// A fixed seed makes runs reproducible.
const SEED: &str = "20261124";
const CHECKS: &str = "not_a_server_error,status_code_conformance,response_headers_conformance,negative_data_rejection,\
    missing_required_header,unsupported_method,ignored_auth";
/// Not for runs with DELETE: the published document describes a JSON body for its 204 response, which HTTP does not allow.
const BODIES: &str = ",content_type_conformance,response_schema_conformance";

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![every_response_conforms_to_the_openapi_document]
}

async fn every_response_conforms_to_the_openapi_document(bench: Arc<Bench>) -> Result<()> {
    let Some(program) = installed().await? else {
        println!(
            "test every_response_conforms_to_the_openapi_document ... skipped: schemathesis {VERSION} could not be installed with pip"
        );
        return Ok(());
    };
    let (_, token) = bench.tenant("fuzz").await?;
    let id = bench.byom(&token, "box").await?;
    let key = bench.key(&id).await?;
    let session = bench.send(Ask::post("/api/v0/sessions").by(&key).json(&json!({}))).await?.is(201)?;
    let session = session.body["sessionId"].as_str().context("an id")?.to_owned();
    let ids = configuration(&id, &session);
    // The first runs use existing ids, as the tenant and as the computer, and delete nothing. The last run deletes, with ids that schemathesis takes from
    // earlier responses.
    for (name, credential, seconds, ids, deletes) in
        [("tenant", &token, 30, ids.as_str(), false), ("key", &key, 20, &ids, false), ("deleting", &token, 15, "", true)]
    {
        let run = Fuzz { bench: &bench, program: &program, name, credential, seconds, ids, deletes };
        run.run().await.with_context(|| format!("as {name}"))?;
    }
    // Afterwards the server still works.
    eventually("the API still serves requests", || async {
        Ok((bench.send(Ask::get("/api/v0/computers").by(&token)).await?.status == 200).then_some(()))
    })
    .await
}

/// One run of schemathesis.
struct Fuzz<'a> {
    bench: &'a Bench,
    program: &'a Path,
    name: &'a str,
    credential: &'a str,
    seconds: u32,
    ids: &'a str,
    deletes: bool,
}

impl Fuzz<'_> {
    async fn run(&self) -> Result<()> {
        let (base, folder) = (&self.bench.replicas[0].base, self.bench.folder.path());
        let config = folder.join(format!("{}.toml", self.name));
        std::fs::write(&config, format!("{}{EXPECTED}", self.ids))?;
        let mut command = Command::new(self.program);
        // More workers trigger a bug of Python 3.11 in the tool.
        command
            .args(["--config-file", &config.display().to_string(), "run", &format!("{base}/openapi.json"), "--url", base])
            .args(["--header", &format!("Authorization: Bearer {}", self.credential), "--seed", SEED])
            .args(["--checks", &format!("{CHECKS}{}", if self.deletes { "" } else { BODIES })])
            .args(["--workers", "1", "--continue-on-failure", "--no-color", "--suppress-health-check", "all"])
            .args(["--max-time", &self.seconds.to_string(), "--request-timeout", "20"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if !self.deletes {
            command.args(["--exclude-method", "DELETE"]);
        }
        let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await.context("schemathesis does not finish")??;
        let text = String::from_utf8_lossy(&output.stdout).replace(self.credential, "TOKEN");
        std::fs::write(self.bench.logs().join(format!("schemathesis-{}.txt", self.name)), &text)?;
        ensure!(output.status.success(), "{}", tail(&text, 120));
        let missing = text.lines().any(|l| l.trim() == "- GET /api/v0/computers/{computerId}");
        ensure!(self.deletes || !missing, "all responses were 404: {}", tail(&text, 60));
        println!("    as {}: {}", self.name, text.lines().rfind(|l| l.contains("generated")).unwrap_or("done").trim());
        Ok(())
    }
}

/// Existing ids, so that responses are not only 404.
fn configuration(id: &str, session: &str) -> String {
    format!("[parameters]\n\"path.computerId\" = \"{id}\"\n\"path.sessionId\" = \"{session}\"\n")
}

/// 501 is documented, because no agent is connected. A mismatch of If-Match is reported before an invalid body.
const EXPECTED: &str = r#"
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 501]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 422, 501]
"#;

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Installs the program once, into its own environment in the cache directory.
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
