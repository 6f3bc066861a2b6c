//! Step 5, `write-receipt`: what happened, written create-only to the store (the authoritative copy), its digest to the record.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Context, Outcome, State};
use crate::computer::action::Action;
use crate::guards::{self, Guard};
use crate::resources::{DeletionOverride, Receipt, RecordPhase, SkippableStep, Unknown};

pub(super) fn step(context: &Context<'_>) -> State {
    if let Some(receipt) = context.deletion().and_then(|d| d.receipt.as_ref()) {
        return match context.view.skipped(SkippableStep::WriteReceipt).filter(|_| receipt.store_key.is_none()) {
            Some(by) => State::Done(Outcome::Skipped, format!("the record holds the receipt; {}", skipped_by(by))),
            None => State::verified(format!("receipt sha256:{}", receipt.digest)),
        };
    }
    if context.view.skipped(SkippableStep::WriteReceipt).is_some() || !guards::on(Guard::ReceiptFirst) {
        return save(context, None, hex::encode(Sha256::digest(text(context))));
    }
    match &context.view.receipt {
        None => State::act(Action::PutReceipt(text(context))),
        Some(stored) => save(context, Some(crate::archive::receipt_key(&context.view.uid)), hex::encode(Sha256::digest(stored))),
    }
}

fn save(context: &Context<'_>, store_key: Option<String>, digest: String) -> State {
    let at = Time(context.view.now);
    context.save(|r| {
        r.spec.state.phase = RecordPhase::Released;
        if let Some(deletion) = &mut r.spec.state.deletion {
            deletion.receipt = Some(Receipt { store_key, digest, at, unknown: Unknown::new() });
        }
    })
}

/// The receipt: who, when, what was revoked, archived, deleted or left, and by whose decision. No token, no session content.
fn text(context: &Context<'_>) -> Vec<u8> {
    let spec = &context.record.spec;
    let steps: Vec<_> = context
        .done
        .iter()
        .enumerate()
        .map(|(i, (outcome, detail))| {
            let id = super::STEPS[i].0;
            let at = context.deletion().and_then(|d| d.steps.get(id)).map_or(Time(context.view.now), |n| n.at.clone());
            json!({"step": id, "result": outcome_name(*outcome), "detail": detail, "at": at})
        })
        .collect();
    let receipt = json!({
        "apiVersion": "computer-operator.dev/v1alpha1",
        "kind": "Receipt",
        "computer": {"namespace": spec.namespace, "name": spec.computer, "uid": context.view.uid, "provider": spec.provider, "className": spec.class_name},
        "deletedAt": context.deletion().map(|d| &d.deleted_at),
        "cause": context.deletion().map(|d| &d.cause),
        "writtenAt": Time(context.view.now),
        "steps": steps,
        "archive": context.deletion().and_then(|d| d.archive.as_ref()),
        "volume": spec.state.children.volume,
        "handedOff": context.deletion().is_some_and(|d| d.handed_off),
    });
    serde_json::to_vec_pretty(&receipt).unwrap_or_default()
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Verified => "Verified",
        Outcome::NotApplicable => "NotApplicable",
        Outcome::Skipped => "Skipped",
    }
}

/// How an override is named in receipts and statuses.
pub(super) fn skipped_by(by: &DeletionOverride) -> String {
    format!("by DeletionOverride {}: {}", by.metadata.name.as_deref().unwrap_or_default(), by.spec.reason)
}
