//! The write-ahead record's life outside the plans: making it again when it was lost, and its expiry.
//! It never invents ownership: what a lost record named is taken from the operator's own status of the Computer.

use crate::computer::view::View;
use crate::resources::{
    ArchiveSettings, ComputerRecord, ComputerRecordSpec, ComputerRecordStatus, CredentialState, MANAGED_BY_LABEL, MANAGER, Snapshot,
    UID_LABEL,
};

/// An empty record of this view's computer: named by its UID, in the operator's namespace.
pub fn new(view: &View, spec: ComputerRecordSpec) -> ComputerRecord {
    let mut record = ComputerRecord::new(&view.uid, spec);
    record.metadata.namespace = Some(view.settings.namespace.clone());
    record.metadata.labels =
        Some([(MANAGED_BY_LABEL, MANAGER), (UID_LABEL, view.uid.as_str())].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    record
}

/// The record of a computer whose record was lost (or never came to be, because the computer was deleted at once): children from
/// the status of the Computer, everything is archived, `Required` (design 4.1), and the key never authenticates again: its hash is lost.
pub fn recover(view: &View) -> ComputerRecord {
    let computer = view.computer.as_ref();
    let status = computer.and_then(|c| c.status.as_ref());
    let mut children = status.and_then(|s| s.children.clone()).unwrap_or_default();
    // A tenant may be able to write a status. What is in the computer's namespace is the tenant's anyway; a volume is not, and
    // counts only once it confirms by its own mark that it is this computer's (S5). Until then its policy is not known.
    if let Some(volume) = &mut children.volume {
        volume.original_reclaim_policy.clear();
    }
    // Nor is a Secret of another name ours: the admission policy would refuse to let us ask for it, for ever.
    children.secret_name.take_if(|name| !name.starts_with("computer-key-"));
    // Nobody knows any more as whom the machine ran, or what the class wanted: the defaults give nothing up.
    let snapshot = Snapshot { session_paths: Vec::new(), archive: ArchiveSettings::default(), ..Snapshot::default() };
    new(
        view,
        ComputerRecordSpec {
            namespace: view.namespace.clone(),
            computer: view.name.clone(),
            provider: computer.map(|c| c.spec.provider).unwrap_or_default(),
            class_name: status.and_then(|s| s.class_name.clone()),
            snapshot,
            state: ComputerRecordStatus { credential: CredentialState::Pending, children, ..ComputerRecordStatus::default() },
        },
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A tenant that can write a status must not point us at a Secret that we are not let near: the deletion would wait for ever.
    #[test]
    fn a_recovered_record_names_only_a_secret_that_can_be_ours() {
        for (name, ours) in [("computer-key-0123456789abcdef0123456789abcdef", true), ("database-password", false)] {
            let status = json!({"children": {"secretName": name, "secretUid": "s", "claimName": "home-x"}});
            let view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}, "status": status}));
            let children = recover(&view).spec.state.children;
            assert_eq!(children.secret_name.is_some(), ours, "{name}");
            assert_eq!(children.claim_name.as_deref(), Some("home-x"));
        }
    }
}
