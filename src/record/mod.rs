//! The write-ahead record's life outside the plans: making it again when it was lost, and its expiry.
//! It never invents ownership: what a lost record named is taken from the operator's own status of the Computer.

use crate::computer::view::View;
use crate::resources::{
    ArchiveSettings, ComputerRecord, ComputerRecordSpec, ComputerRecordStatus, CredentialState, MANAGED_BY_LABEL, MANAGER, Snapshot,
    UID_LABEL, UnreadableFiles,
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
    // Nobody knows any more as whom the machine ran: a file that cannot be read must not be given up for that.
    let archive = ArchiveSettings { unreadable_files: UnreadableFiles::Block, ..ArchiveSettings::default() };
    let snapshot = Snapshot { session_paths: Vec::new(), archive, ..Snapshot::default() };
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
