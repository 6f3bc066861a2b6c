//! Selects deletions that ended with a receipt in the store. Leftovers of their archives can be removed (`archive/collector.rs`).

use kube::ResourceExt as _;

use crate::archive::collector::Ended;
use crate::resources::{ComputerRecord, RecordPhase};

/// The deletion of a record, if it has ended. If an override skipped the receipt, the store has no proof that the deletion ended, so nothing is removed.
pub fn ended(record: &ComputerRecord) -> Option<Ended> {
    let state = &record.spec.state;
    let receipt = state.deletion.as_ref()?.receipt.as_ref()?;
    let stored = state.phase == RecordPhase::Released && receipt.store_key.is_some();
    stored.then(|| Ended { uid: record.name_any(), at: receipt.at.0.as_second() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_deletion_has_ended_when_its_receipt_is_stored_and_its_record_is_released() {
        let of = |phase: &str, receipt: Value| {
            let deletion = json!({"deletedAt": "2026-01-01T00:00:00Z", "cause": "ComputerDeleted", "receipt": receipt});
            let state = json!({"phase": phase, "credential": "Revoked", "deletion": deletion});
            let spec = json!({"namespace": "t", "computer": "c", "state": state});
            let record = json!({"metadata": {"name": "u"}, "spec": spec});
            ended(&serde_json::from_value(record).unwrap())
        };
        let receipt = json!({"storeKey": "receipts/u.json", "digest": "d", "at": "2026-01-01T00:01:00.000000Z"});
        let at = "2026-01-01T00:01:00Z".parse::<Timestamp>().unwrap().as_second();
        assert_eq!(of("Released", receipt.clone()), Some(Ended { uid: "u".to_owned(), at }));
        assert_eq!(of("Deleting", receipt), None);
        assert_eq!(of("Released", Value::Null), None);
        assert_eq!(of("Released", json!({"digest": "d", "at": "2026-01-01T00:01:00.000000Z"})), None, "an override skipped it");
    }
}
