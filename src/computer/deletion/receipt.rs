//! Step 5, `write-receipt`: what happened, written create-only to the store (the authoritative copy), its digest to the record.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Context, Outcome, State};
use crate::computer::action::Action;
use crate::guards::{self, Guard};
use crate::resources::{DeletionOverride, Receipt, RecordPhase, SkippableStep, SubjectOutcome, Unknown};

pub(super) fn step(context: &Context<'_>) -> State {
    if let Some(receipt) = context.deletion().and_then(|d| d.receipt.as_ref()) {
        return match context.view.skipped(SkippableStep::WriteReceipt).filter(|_| receipt.store_key.is_none()) {
            Some(by) => State::Done(Outcome::Skipped, format!("the record holds the receipt; {}", skipped_by(by))),
            None => State::verified(format!("receipt sha256:{}", receipt.digest)),
        };
    }
    if context.view.skipped(SkippableStep::WriteReceipt).is_some() || !guards::on(Guard::ReceiptFirst) {
        return save(context, None, &text(context));
    }
    match &context.view.receipt {
        None => State::act(Action::PutReceipt(text(context))),
        Some(stored) => save(context, Some(crate::archive::receipt_key(&context.view.uid)), stored),
    }
}

/// Puts the receipt on record. The stored copy is the authoritative one and may be an earlier attempt's or another leader's, so its
/// outcomes replace those on record.
fn save(context: &Context<'_>, store_key: Option<String>, stored: &[u8]) -> State {
    let at = MicroTime(context.not_before(context.done.len()));
    let digest = hex::encode(Sha256::digest(stored));
    let told = told(stored);
    context.save(|r| {
        r.spec.state.phase = RecordPhase::Released;
        if let Some(deletion) = &mut r.spec.state.deletion {
            for (id, outcome) in told {
                deletion.steps.insert(id, outcome);
            }
            deletion.receipt = Some(Receipt { store_key, digest, at, unknown: Unknown::new() });
        }
    })
}

/// The steps of a stored receipt.
fn told(stored: &[u8]) -> Vec<(String, SubjectOutcome)> {
    let receipt: Value = serde_json::from_slice(stored).unwrap_or_default();
    let known = |id: &str| super::STEPS.iter().any(|s| s.0 == id);
    let steps = receipt["steps"].as_array().into_iter().flatten();
    let step = |step: &Value| {
        let id = step["step"].as_str()?.to_owned();
        let mut outcome = SubjectOutcome::deserialize(step).ok()?;
        outcome.unknown.remove("step");
        Some((id, outcome))
    };
    steps.filter_map(step).filter(|(id, _)| known(id)).collect()
}

/// The receipt: who, when, what was revoked, archived, deleted or left, and by whose decision. No token, no session content.
fn text(context: &Context<'_>) -> Vec<u8> {
    let spec = &context.record.spec;
    let step = |(i, outcome): (usize, SubjectOutcome)| json!({"step": super::STEPS[i].0, "result": outcome.result, "detail": outcome.detail, "at": outcome.at});
    let steps: Vec<_> = context.outcomes().into_iter().enumerate().map(step).collect();
    let receipt = json!({
        "apiVersion": "computer-operator.dev/v1alpha1",
        "kind": "Receipt",
        "computer": {"namespace": spec.namespace, "name": spec.computer, "uid": context.view.uid, "provider": spec.provider, "className": spec.class_name},
        "deletedAt": context.deletion().map(|d| &d.deleted_at),
        "cause": context.deletion().map(|d| &d.cause),
        "writtenAt": MicroTime(context.not_before(context.done.len())),
        "steps": steps,
        "archive": context.deletion().and_then(|d| d.archive.as_ref()),
        "volume": spec.state.children.volume,
        "handedOff": context.deletion().is_some_and(|d| d.handed_off),
    });
    serde_json::to_vec_pretty(&receipt).unwrap_or_default()
}

/// How an override is named in receipts and statuses.
pub(super) fn skipped_by(by: &DeletionOverride) -> String {
    format!("by DeletionOverride {}: {}", by.metadata.name.as_deref().unwrap_or_default(), by.spec.reason)
}
