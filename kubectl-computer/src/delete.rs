//! `delete`: shows what is archived and destroyed, asks, deletes exactly the computer that was shown, and waits if asked to. Ending the wait
//! never stops the deletion.

use anyhow::{Result, bail};
use computer_operator_api::{Computer, ComputerRecord, Receipt};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Preconditions};
use serde_json::{Value, json};

use crate::args::{Format, Waiting};
use crate::cluster::{Answer, Cluster, explained};
use crate::observe::Observed;
use crate::outcome::Outcome;
use crate::preview::Preview;
use crate::progress::{Goal, Progress, State};
use crate::screen;
use crate::text::quoted;
use crate::wait::{End, Wait};
use crate::why;

/// The command.
///
/// # Errors
/// When there is no such computer, nothing was confirmed, or the API server refuses the deletion.
pub async fn run(cluster: &Cluster, name: &str, yes: bool, preview_only: bool, waiting: &Waiting) -> Result<Outcome> {
    let observed = cluster.observe(name).await?;
    let computer = existing(&observed)?.clone();
    let uid = computer.uid().unwrap_or_default();
    let preview = Preview::of(&observed, &computer).text(&computer);
    if preview_only {
        screen::out(&preview);
        return Ok(Outcome::Done);
    }
    if computer.metadata.deletion_timestamp.is_some() {
        screen::note(&format!("Computer {} is already being deleted.", computer.name_any()));
    } else {
        confirm(&computer, &preview, yes, waiting.output)?;
        delete(cluster, &computer).await?;
    }
    if waiting.wait {
        return Box::pin(wait(cluster, &computer, &uid, waiting)).await;
    }
    let place = format!("{} -n {}", quoted(&computer.name_any()), quoted(&computer.namespace().unwrap_or_default()));
    let text = format!(
        "computer/{} is being deleted; its key no longer authenticates.\nFollow it:  kubectl computer delete {place} --wait\nWhy it waits:  kubectl computer why {place}",
        computer.name_any()
    );
    screen::out(&if waiting.output == Format::Json { json!({"type": "deleting", "uid": uid}).to_string() } else { text });
    Ok(Outcome::Done)
}

fn existing(observed: &Observed) -> Result<&Computer> {
    match &observed.computer {
        Answer::Found(computer) => Ok(computer),
        Answer::Denied(right) => bail!("you have no right to {right}"),
        Answer::Absent => {
            let place = format!("{} -n {}", quoted(&observed.asked), quoted(&observed.namespace));
            bail!(
                "there is no Computer {} in namespace {}: `kubectl computer why {place}` says whether it was deleted",
                observed.asked,
                observed.namespace
            )
        }
    }
}

fn confirm(computer: &Computer, preview: &str, yes: bool, output: Format) -> Result<()> {
    if !(yes && output == Format::Json) {
        screen::note(preview);
    }
    let name = computer.name_any();
    if !yes && !screen::confirm(&format!("Type the name of the computer to delete it ({name}):"), Some(&name))? {
        bail!("not confirmed: nothing was deleted");
    }
    Ok(())
}

/// Deletes this computer and no other one of its name.
async fn delete(cluster: &Cluster, computer: &Computer) -> Result<()> {
    let preconditions = Preconditions { uid: computer.uid(), resource_version: None };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let api = cluster.api::<Computer>(computer.namespace().as_deref());
    api.delete(&computer.name_any(), &parameters).await.map_err(explained)?;
    Ok(())
}

async fn wait(cluster: &Cluster, computer: &Computer, uid: &str, waiting: &Waiting) -> Result<Outcome> {
    let (namespace, name) = (computer.namespace().unwrap_or_default(), computer.name_any());
    let mut wait = Wait::new(waiting);
    let mut progress = Progress::new(Goal::Deleted, uid);
    let mut end = wait.computer(cluster, &namespace, &name, &mut progress).await?;
    let mut record = Answer::Absent;
    if end == End::Settled && progress.state == State::Gone {
        record = cluster.record(uid).await?;
        if let Answer::Found(found) = &record {
            end = wait.record(cluster, &found.clone(), &mut progress).await?;
        }
    }
    let (outcome, text, receipt) = match end {
        End::Settled => settled(&progress, &record, remains(cluster, &namespace).await?, &format!("{namespace}/{name}")),
        End::Blocked => (Outcome::Blocked, blocked(cluster, uid).await?, None),
        End::Timeout => {
            let why = why::explain(&cluster.observe(uid).await?);
            (Outcome::Timeout, format!("Timeout. The deletion continues.\n\n{}", why.text()), None)
        }
        End::Interrupted => {
            (Outcome::Timeout, format!("Interrupted. This does not stop the deletion. See how far it is: kubectl computer why {uid}"), None)
        }
    };
    let more = receipt.map_or_else(|| json!({"uid": uid}), |receipt| receipt_json(uid, &receipt));
    Ok(wait.finish(outcome, &text, &more))
}

fn receipt_json(uid: &str, receipt: &Receipt) -> Value {
    json!({"uid": uid, "receipt": {"digest": receipt.digest, "at": receipt.at, "storeKey": receipt.store_key}})
}

async fn blocked(cluster: &Cluster, uid: &str) -> Result<String> {
    let why = why::explain(&cluster.observe(uid).await?);
    Ok(format!("The deletion is blocked. It continues by itself when the cause is gone; --keep-waiting waits for that.\n\n{}", why.text()))
}

/// Whether a namespace exists and is not being deleted, as far as the caller may know. Only in a namespace that is being deleted is a Computer
/// released before its deletion is complete.
async fn remains(cluster: &Cluster, namespace: &str) -> Result<bool> {
    let found = cluster.get::<Namespace>(None, namespace).await?;
    Ok(found.as_found().is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none()))
}

/// What can be said when the Computer is gone.
fn settled(progress: &Progress, record: &Answer<ComputerRecord>, remains: bool, name: &str) -> (Outcome, String, Option<Receipt>) {
    if let Some(receipt) = &progress.receipt {
        let place = receipt.store_key.as_ref().map_or_else(String::new, |key| format!("\nIn the archive store: {key}"));
        let text = format!("Computer {name} is deleted. Receipt sha256:{}{place}", receipt.digest);
        return (Outcome::Done, text, Some(receipt.clone()));
    }
    let reader = match record {
        Answer::Denied(right) => {
            format!("Its receipt is in its record, which you have no right to read ({right}): ask a cluster admin for it")
        }
        Answer::Absent | Answer::Found(_) => "There is no record of it".to_owned(),
    };
    if remains || progress.seems_complete() {
        let unseen = if progress.archived() { "" } else { " Its last status did not show yet that its sessions were archived." };
        return (Outcome::Done, format!("Computer {name} is deleted.{unseen} {reader}."), None);
    }
    let text = format!(
        "Computer {name} is gone, but not every step was seen to end, and its namespace is being deleted: the deletion may continue in the \
         operator's namespace. {reader}."
    );
    (Outcome::Timeout, text, None)
}

#[cfg(test)]
mod tests {
    use computer_operator_api::StepStatus;
    use computer_operator_api::steps::{DeletionStep, Sequence as _};

    use super::*;
    use crate::progress::Row;

    fn progress(archive: StepStatus) -> Progress {
        let mut progress = Progress::new(Goal::Deleted, "u");
        let row = |step: &DeletionStep| {
            let status = if *step == DeletionStep::ArchiveSessions { archive } else { StepStatus::Completed };
            Row { id: step.id().into(), title: step.title().into(), status, began: None, seconds: None, detail: String::new() }
        };
        progress.rows = DeletionStep::ALL.iter().map(row).collect();
        progress
    }

    #[test]
    fn it_is_done_only_with_a_receipt_or_after_every_step() {
        let denied = Answer::Denied("get computerrecords in namespace x".to_owned());
        let (outcome, text, _) = settled(&progress(StepStatus::Completed), &denied, false, "t/box");
        assert_eq!(outcome, Outcome::Done);
        assert!(text.contains("get computerrecords") && text.contains("ask a cluster admin"), "{text}");
        let (outcome, text, _) = settled(&progress(StepStatus::Running), &denied, false, "t/box");
        assert_eq!(outcome, Outcome::Timeout, "it may have been handed off: {text}");
        let (outcome, text, _) = settled(&progress(StepStatus::Running), &denied, true, "t/box");
        assert_eq!(outcome, Outcome::Done, "released last (S3)");
        assert!(text.contains("did not show yet"), "{text}");
        let mut done = progress(StepStatus::Running);
        done.receipt = Some(Receipt {
            store_key: Some("k".into()),
            digest: "d1".into(),
            at: serde_json::from_value(json!("2026-01-01T00:00:00.000000Z")).unwrap(),
            unknown: computer_operator_api::Unknown::default(),
        });
        let (outcome, text, receipt) = settled(&done, &denied, false, "t/box");
        assert_eq!((outcome, receipt.is_some()), (Outcome::Done, true));
        assert!(text.contains("sha256:d1"), "{text}");
    }
}
