//! The real archive pod's program on a folder, and the operator's side: TLS between them, as in a cluster.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::operator_side;
use super::super::stub_api::{CLAIM, COMPUTER, TOKEN, UID};
use super::super::usage::Group;
use super::{Place, Run};
use crate::bench::archive::home::Home;
use crate::process;

/// Packs, sends, and reads back.
pub fn run(place: &Place<'_>, home: &Home) -> Result<Run> {
    let mut operator = Group::new(place.scratch);
    let mut command = process::tied(&place.programs.xtask, None)?;
    command.args(["bench", operator_side::COMMAND, &place.server.store()]).env("RUST_LOG", "info");
    let child = operator.start("operator", command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let (mut input, output) = (child.stdin.take().context("its input")?, child.stdout.take().context("its output")?);
    let mut lines = BufReader::new(output).lines();
    let mut line = || -> Result<Value> { Ok(serde_json::from_str(&lines.next().context("the operator's side has ended")??)?) };
    let endpoint = line()?;
    let mut pod = pod(place, home, &endpoint)?;
    let began = Instant::now();
    let mut used = place.measure("archive pod", &mut pod)?;
    writeln!(input, "verify")?;
    let verified = line()?;
    let wall = began.elapsed();
    ensure!(verified["bytes"].as_u64() > Some(0), "nothing was verified: {verified}");
    operator.look();
    drop(input);
    used.extend(operator.finish()?);
    Ok(Run { wall, used })
}

fn pod(place: &Place<'_>, home: &Home, endpoint: &Value) -> Result<Command> {
    let text = |name: &str| endpoint[name].as_str().with_context(|| format!("no {name} of the endpoint"));
    let token = place.scratch.join("token");
    std::fs::write(&token, TOKEN)?;
    let mut command = Command::new(&place.programs.operator);
    command
        .arg("archive")
        .env("INGEST_URL", text("url")?)
        .env("INGEST_CA", text("ca")?)
        .env("INGEST_TOKEN_FILE", token)
        .env("COMPUTER_NAMESPACE", COMPUTER.0)
        .env("COMPUTER_NAME", COMPUTER.1)
        .env("COMPUTER_UID", UID)
        .env("CUSTODY_CLAIM", CLAIM)
        .env("SESSION_PATHS", r#"["."]"#)
        .env("UNREADABLE", "Block")
        .env("HOME_VOLUME", &home.path);
    Ok(command)
}
