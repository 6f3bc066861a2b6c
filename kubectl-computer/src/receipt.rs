//! `receipt`: what a deletion has done, from the record of the computer. The copy in the archive store is the authoritative one.

use anyhow::{Result, bail};
use computer_operator_api::steps::{DeletionStep, Sequence};
use computer_operator_api::{ComputerRecord, Deletion};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::args::Format;
use crate::cluster::{Answer, Cluster};
use crate::screen;
use crate::text::{bytes, labelled, quoted};

fn json_of(record: &ComputerRecord, deletion: &Deletion) -> Value {
    let steps: Vec<Value> = DeletionStep::ALL
        .iter()
        .filter_map(|step| deletion.outcome(*step).map(|o| json!({"step": step.id(), "result": o.result, "detail": o.detail, "at": o.at})))
        .collect();
    json!({
        "uid": record.name_any(), "namespace": record.spec.namespace, "name": record.spec.computer, "className": record.spec.class_name,
        "deletedAt": deletion.deleted_at, "cause": deletion.cause, "handedOff": deletion.handed_off, "steps": steps,
        "archive": deletion.archive, "volume": record.spec.state.children.volume, "receipt": deletion.receipt,
    })
}

fn text_of(record: &ComputerRecord, deletion: &Deletion) -> String {
    let mut lines = vec![
        ("uid", record.name_any()),
        ("class", record.spec.class_name.clone().unwrap_or_default()),
        ("deleted", deletion.deleted_at.0.to_string()),
        ("cause", deletion.cause.as_str().to_owned()),
    ];
    for step in DeletionStep::ALL {
        if let Some(done) = deletion.outcome(*step) {
            lines.push((step.id(), format!("{}, {}: {}", done.result.status().as_str(), done.at.0, done.detail)));
        }
    }
    if let Some(archive) = &deletion.archive {
        lines.push(("sessions", format!("{}, {} in the store", archive.sessions, bytes(archive.bytes))));
        lines.push((
            "not archived",
            if archive.problems == 0 { "nothing".to_owned() } else { format!("{} files that the manifest names", archive.problems) },
        ));
        lines.push(("left out by", archive.left_out.clone().unwrap_or_default()));
        lines.push(("manifest", format!("sha256:{}", archive.manifest_digest)));
    }
    if let Some(receipt) = &deletion.receipt {
        lines.push(("receipt", format!("sha256:{}", receipt.digest)));
        lines.push(("written", receipt.at.0.to_string()));
        lines.push(("store key", receipt.store_key.clone().unwrap_or_else(|| "not in the archive store".to_owned())));
    }
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut text = format!("Receipt of Computer {}/{}\n", record.spec.namespace, record.spec.computer);
    lines.iter().filter(|(_, line)| !line.is_empty()).for_each(|(label, line)| text.push_str(&labelled(label, width, line)));
    text
}

/// The command.
///
/// # Errors
/// When there is no receipt, or the caller may not read the record.
pub async fn run(cluster: &Cluster, asked: &str, output: Format) -> Result<()> {
    let observed = cluster.observe(asked).await?;
    let record = match observed.record {
        Answer::Found(record) => record,
        Answer::Absent => {
            bail!("there is no record of {asked}: a record is deleted 30 days after the deletion, the receipt in the archive store stays")
        }
        Answer::Denied(right) => bail!(
            "you have no right to {right}. Ask a cluster admin for the receipt, or for the ClusterRole computer-operator-receipts in namespace {}",
            quoted(&observed.operator_namespace)
        ),
    };
    match record.spec.state.deletion.as_ref().filter(|deletion| deletion.receipt.is_some()) {
        Some(deletion) if output == Format::Json => screen::out(&serde_json::to_string_pretty(&json_of(&record, deletion))?),
        Some(deletion) => screen::out(&text_of(&record, deletion)),
        None => bail!("there is no receipt yet: `kubectl computer why {}` says how far the deletion is", record.name_any()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_objects::{UID, observed};

    #[test]
    fn the_receipt_names_every_step_and_its_digest() {
        let step = json!({"result": "Verified", "detail": "done", "at": "2026-01-01T00:00:09.000000Z"});
        let skipped = json!({"result": "Skipped", "detail": "override x: lost", "at": "2026-01-01T00:00:09.000000Z"});
        let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted", "steps": {"stop-pods": step, "archive-sessions": skipped},
            "archive": {"manifestDigest": "m1", "sessions": 2, "bytes": 2048, "problems": 1},
            "receipt": {"digest": "d1", "at": "2026-01-01T00:01:00.000000Z"}});
        let record = observed(None, Some(json!({"phase": "Released", "deletion": deletion}))).record.found().unwrap();
        let deletion = record.spec.state.deletion.as_ref().unwrap();
        let text = text_of(&record, deletion);
        for part in
            [UID, "Skipped", "override x: lost", "sha256:d1", "sha256:m1", "1 files that the manifest names", "not in the archive store"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(json_of(&record, deletion)["receipt"]["digest"], "d1");
    }
}
