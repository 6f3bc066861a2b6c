//! The write-ahead record's life outside the plans: making it again when it was lost, and its expiry.
//! It never invents ownership: what a lost record named is taken from the operator's own status of the Computer.

use super::children::Child;
use super::view::View;
use crate::resources::{
    ArchiveSettings, Children, ComputerRecord, ComputerRecordSpec, CredentialState, MANAGED_BY_LABEL, MANAGER, RecordState, Snapshot,
    UID_LABEL, Unknown,
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
/// the status of the Computer, everything is archived, `Required` (DESIGN.md 4.1), and the key never authenticates again: its hash is lost.
pub fn recover(view: &View) -> ComputerRecord {
    let computer = view.computer.as_ref();
    let status = computer.and_then(|c| c.status.as_ref());
    let children = credible(status.and_then(|s| s.children.clone()).unwrap_or_default());
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
            state: RecordState { credential: CredentialState::Pending, children, ..RecordState::default() },
            unknown: Unknown::new(),
        },
    )
}

/// What may be believed of the children in a status, which a tenant may be able to write (S5). Of another name than we draw nothing is
/// ours: the admission policies would refuse to let us near it, and the deletion would wait for ever. Without a UID a name may be that
/// of another computer's child, and whatever stands under it would be taken for ours.
fn credible(mut children: Children) -> Children {
    let known = |child: Child, name: Option<&String>, uid: Option<&String>| {
        name.is_some_and(|name| child.drew(name)) && uid.is_some_and(|uid| !uid.is_empty())
    };
    children.pods.retain(|pod| known(Child::Machine, Some(&pod.name), pod.uid.as_ref()));
    if !known(Child::Home, children.claim_name.as_ref(), children.claim_uid.as_ref()) {
        (children.claim_name, children.claim_uid) = (None, None);
    }
    if !known(Child::Key, children.secret_name.as_ref(), children.secret_uid.as_ref()) {
        (children.secret_name, children.secret_uid) = (None, None);
    }
    // None of them has a UID.
    children.former_secret_names.clear();
    // A volume counts only once it confirms by its own mark that it is this computer's. Until then its policy is not known.
    if let Some(volume) = &mut children.volume {
        volume.original_reclaim_policy.clear();
    }
    children
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::computer::action::Action;
    use crate::computer::report::Next;
    use crate::computer::view::ClassState;

    const HEX: &str = "0123456789abcdef0123456789abcdef";

    fn recovered(children: &serde_json::Value) -> Children {
        let status = json!({"children": children});
        let view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}, "status": status}));
        recover(&view).spec.state.children
    }

    /// A tenant that can write a status must not point us at what we are not let near: the deletion would wait for ever.
    #[test]
    fn a_recovered_record_names_only_what_can_be_ours() {
        for (prefixes, ours) in [(["machine-", "home-", "computer-key-"], true), (["web-", "home-of-", "computer-key-x"], false)] {
            let [pod, claim, secret] = prefixes.map(|prefix| format!("{prefix}{HEX}"));
            let children = recovered(&json!({"secretName": secret, "secretUid": "s", "claimName": claim, "claimUid": "c",
                "pods": [{"name": pod, "uid": "p"}, {"name": "database-0", "uid": "d"}]}));
            assert_eq!(children.secret_name, ours.then_some(secret));
            assert_eq!(children.claim_name, ours.then_some(claim));
            assert_eq!(
                children.pods.iter().map(|p| p.name.clone()).collect::<Vec<_>>(),
                ours.then_some(pod).into_iter().collect::<Vec<_>>()
            );
            assert_eq!((children.secret_uid.is_some(), children.claim_uid.is_some()), (ours, ours));
        }
    }

    /// S5: without a UID, what stands under the name of another computer's child would be deleted as ours.
    #[test]
    fn a_recovered_record_takes_no_name_without_a_uid() {
        for uid in [json!(null), json!("")] {
            let children =
                recovered(&json!({"secretName": format!("computer-key-{HEX}"), "secretUid": uid, "claimName": format!("home-{HEX}"),
                "claimUid": uid, "pods": [{"name": format!("machine-{HEX}"), "uid": uid}]}));
            assert_eq!(children, Children::default());
        }
    }

    /// The names that are recognised are those that are drawn.
    #[test]
    fn what_the_operator_draws_is_recovered() {
        let mut view = View::of(
            json!({"metadata": {"name": "c", "namespace": "t", "uid": "u", "finalizers": [crate::resources::DELETION_FINALIZER]}, "spec": {}}),
        );
        view.finalizer_confirmed = true;
        view.fresh = crate::runtime::time_and_random::Sources::default().fresh();
        let class = json!({"metadata": {"name": "std"}, "spec": {"podTemplate": {"spec": {"containers": [{"name": "m", "image": "i"}]}}},
            "status": {"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        view.class = ClassState::Found(serde_json::from_value(class).unwrap());
        let Next::Do(Action::CreateRecord(record)) = crate::computer::provision::plan(&view).next else { panic!("a record") };
        let mut drawn = record.spec.state.children;
        (drawn.secret_uid, drawn.claim_uid) = (Some("s".to_owned()), Some("c".to_owned()));
        drawn.pods.iter_mut().for_each(|p| p.uid = Some("p".to_owned()));
        assert_eq!(drawn.pods.len(), 1);
        assert_eq!(recovered(&serde_json::to_value(&drawn).unwrap()), drawn);
    }
}
