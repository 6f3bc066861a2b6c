//! Parts of the API besides the operations: the `OpenAPI` document, the documentation page, request ids.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::Scenario;
use crate::client::Ask;
use crate::harness::Bench;

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![the_served_document_is_the_committed_one, the_documentation_page_needs_no_internet, every_request_has_an_id]
}

async fn the_served_document_is_the_committed_one(bench: Arc<Bench>) -> Result<()> {
    let served = bench.send(Ask::get("/openapi.json")).await?.is(200)?;
    let committed: Value = serde_json::from_str(&computer_operator::http::openapi::document()?)?;
    ensure!(served.header("content-type") == "application/json" && served.body == committed, "another document is served");
    Ok(())
}

/// The server itself serves every file that the page loads.
async fn the_documentation_page_needs_no_internet(bench: Arc<Bench>) -> Result<()> {
    let page = bench.http.get(format!("{}/docs", bench.replicas[0].base)).send().await?;
    ensure!(page.status().is_success() && page.headers()["content-type"].to_str()?.starts_with("text/html"), "{page:?}");
    let base = page.url().clone();
    let text = page.text().await?;
    let mut loaded = 0;
    for attribute in ["src=\"", "href=\""] {
        for part in text.split(attribute).skip(1) {
            let address = part.split('"').next().unwrap_or_default();
            ensure!(!address.contains("://") && !address.starts_with("//"), "{address} is on another server");
            let file = bench.http.get(base.join(address)?).send().await?;
            ensure!(file.status().is_success(), "{address}: {}", file.status());
            loaded += 1;
        }
    }
    ensure!(loaded >= 2, "the page loads only {loaded} files: {text}");
    Ok(())
}

async fn every_request_has_an_id(bench: Arc<Bench>) -> Result<()> {
    let own = bench.send(Ask::get("/nothing").header("x-request-id", "mine-1.2_3")).await?.is(404)?;
    ensure!(own.header("x-request-id") == "mine-1.2_3", "the id of the client is not kept");
    let long = "x".repeat(65);
    let mut seen = std::collections::HashSet::new();
    for strange in ["", "a b", "a\tb", &long, "<script>"] {
        let answer = bench.send(Ask::get("/nothing").header("x-request-id", strange)).await?.is(404)?;
        let id = answer.header("x-request-id").to_owned();
        ensure!(id != strange && id.bytes().all(|b| b.is_ascii_hexdigit()) && seen.insert(id), "{answer:?}");
    }
    Ok(())
}
