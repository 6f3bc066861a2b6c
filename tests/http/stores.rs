//! The operator is restarted with another archive store during deletions, as in an upgrade between `Local` and `S3`: the deletions finish, their receipts
//! are in one of the two stores, and the contents of the old store are kept.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::credentials::ComputerId;

use crate::Scenario;
use crate::client::Ask;
use crate::harness::{Bench, eventually};

/// These scenarios run alone, because all scenarios share the operator.
pub fn alone() -> Vec<Scenario> {
    xtask::scenarios![running_deletions_finish_after_a_change_of_the_store]
}

fn receipt(store: &Path, id: &str) -> Result<bool> {
    let uid = ComputerId::decode(id).context("an id")?.uid;
    Ok(store.join("receipts").join(format!("{uid}.json")).exists())
}

async fn running_deletions_finish_after_a_change_of_the_store(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("stores").await?;
    let (usual, other) = (bench.folder.path().join("store"), bench.folder.path().join("other-store"));
    for (before, after) in [(&usual, &other), (&other, &usual)] {
        bench.start_operator_on(before).await?;
        // One deletion has its receipt and waits for a foreign finalizer; the receipt of the other one cannot be stored.
        let [held, blocked] = [bench.byom(&token, "held").await?, bench.byom(&token, "blocked").await?];
        for id in [&held, &blocked] {
            bench.key(id).await?;
        }
        bench.hold(&held).await?;
        bench.send(Ask::delete(format!("/api/v0/computers/{held}")).by(&token)).await?.is(204)?;
        eventually("its receipt is written", || async { Ok(receipt(before, &held)?.then_some(())) }).await?;
        let (receipts, aside) = (before.join("receipts"), before.join("receipts-aside"));
        std::fs::rename(&receipts, &aside)?;
        std::fs::write(&receipts, "a file where a folder should be")?;
        bench.send(Ask::delete(format!("/api/v0/computers/{blocked}")).by(&token)).await?.is(204)?;
        let conditions = || async {
            let status = bench.object(&blocked).await?.status.context("a status")?;
            Ok::<_, anyhow::Error>(serde_json::to_string(&status.conditions)?)
        };
        eventually("the store is unavailable", || async { Ok(conditions().await?.contains("StoreUnavailable").then_some(())) }).await?;
        bench.start_operator_on(after).await?;
        bench.release(&held).await?;
        for id in [&held, &blocked] {
            let of = ComputerId::decode(id).context("an id")?;
            eventually("the deletion ends", || async {
                Ok(bench.computers(&of.namespace).get_opt(&of.name).await?.is_none().then_some(()))
            })
            .await?;
        }
        std::fs::remove_file(&receipts)?;
        std::fs::rename(&aside, &receipts)?;
        ensure!(receipt(before, &held)?, "the old receipt must stay in the old store");
        ensure!(!receipt(before, &blocked)? && receipt(after, &blocked)?, "the new receipt must be in the new store");
    }
    bench.start_operator_on(&usual).await
}
