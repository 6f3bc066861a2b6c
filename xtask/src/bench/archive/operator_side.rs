//! The operator's side of a measurement, a process of its own: the ingest endpoint as it is served by `computer-operator run`, and the read-back
//! that verifies an archive before anything is destroyed. Only the API server is a stub (`stub_api.rs`).

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use computer_operator::archive::ingest::{self, tls};
use computer_operator::archive::{Archives, Origin, Summary, Verification};
use computer_operator::runtime::settings::Settings;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::stub_api::{CLAIM, OPERATOR, UID, client};
use crate::bench::free_address;

/// The hidden command.
pub const COMMAND: &str = "archive-operator-side";

/// Serves, and prints its URL and certificate authority as a line of JSON. On the first line of standard input it verifies the archive and prints what
/// it has verified. It ends with standard input.
///
/// # Errors
/// When the endpoint cannot be served, or there is no valid archive.
pub async fn run(store: &str) -> Result<()> {
    let (finished, mut checked) = mpsc::channel(8);
    let (archives, address) = (Archives::open(store, finished)?, free_address()?);
    let url = format!("https://{address}");
    let certificate = tls::Certificate::new(&url)?;
    let (namespace, archive_service_account) = (OPERATOR.0.to_owned(), OPERATOR.1.to_owned());
    let settings = Settings { namespace, archive_service_account, ..Settings::default() };
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    let ca = certificate.ca_pem.clone();
    ingest::serve((address, certificate), (client(), None), &settings, &archives, stop.clone(), &mut tasks)?;
    print(&json!({"url": url, "ca": ca}))?;
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    input.next_line().await?.context("standard input is closed")?;
    let verified = verify(&archives, &mut checked).await?;
    print(&json!({"sessions": verified.sessions, "bytes": verified.bytes, "manifestDigest": verified.manifest_digest}))?;
    while input.next_line().await?.is_some() {}
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    Ok(())
}

fn print(line: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// As the reconciler does it: asks until the check in the background has a result.
async fn verify(archives: &Archives, checked: &mut mpsc::Receiver<String>) -> Result<Summary> {
    let origin = Origin { custody_claim: Some(CLAIM.to_owned()), deleted_at: 0, namespace: "bench".to_owned(), ended_pod: None };
    loop {
        match archives.check(UID, &origin) {
            Verification::Running => checked.recv().await.context("the check has no result")?,
            Verification::Valid(summary) => return Ok(summary),
            other => bail!("the archive is not valid: {other:?}"),
        };
    }
}
