//! Builds records: an empty one for a new computer, and one that replaces a lost record. It must never invent ownership: the children in a
//! lost record are taken from the status that the operator wrote to the Computer, as far as that is credible.

use super::action::{Action, Fact, Subject};
use super::children::Child;
use super::view::View;
use crate::resources::{
    ArchiveSettings, Children, ComputerRecord, ComputerRecordSpec, CredentialState, MANAGED_BY_LABEL, MANAGER, RecordState, Snapshot,
    UID_LABEL, Unknown,
};

/// UID of the namespace of the computer, or the request that reads it. It comes from a live read: the cache may hold a deleted namespace of the
/// same name. The Computer was known before the read, so a namespace that is not younger is the one it was created in, and that of a younger one
/// is never recorded (S13).
///
/// # Errors
/// The request, if this reconcile has not read the namespace yet.
pub fn namespace_uid(view: &View) -> Result<Option<String>, Action> {
    let subject = Subject::Namespace { name: view.namespace.clone() };
    let Some(read) = view.facts.get(&subject) else { return Err(Action::Read(subject)) };
    let Fact::Namespace(namespace) = read else { return Ok(None) };
    let made = namespace.metadata.creation_timestamp.as_ref();
    let created = view.computer.as_ref().and_then(|c| c.metadata.creation_timestamp.as_ref());
    let lived_in = made.zip(created).is_some_and(|(made, created)| made.0 <= created.0);
    Ok(namespace.metadata.uid.clone().filter(|_| lived_in))
}

/// An empty record for this view's computer. Its name is the computer's UID; it is in the operator's namespace.
pub fn new(view: &View, mut spec: ComputerRecordSpec) -> ComputerRecord {
    spec.namespace_uid = namespace_uid(view).ok().flatten();
    let mut record = ComputerRecord::new(&view.uid, spec);
    record.metadata.namespace = Some(view.settings.namespace.clone());
    record.metadata.labels =
        Some([(MANAGED_BY_LABEL, MANAGER), (UID_LABEL, view.uid.as_str())].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    record
}

/// The record of a computer whose record was lost, or was never created because the computer was deleted at once. The children come from the
/// status of the Computer. The whole home is archived with policy `Required` (DESIGN.md 4.1). The hash of the key is lost, so the key never
/// authenticates again.
pub fn recover(view: &View) -> ComputerRecord {
    let computer = view.computer.as_ref();
    let status = computer.and_then(|c| c.status.as_ref());
    let children = credible(status.and_then(|s| s.children.clone()).unwrap_or_default());
    // The user of the machine and the settings of the class are lost. The defaults give up nothing.
    let snapshot = Snapshot { session_paths: Vec::new(), archive: ArchiveSettings::default(), ..Snapshot::default() };
    new(
        view,
        ComputerRecordSpec {
            namespace: view.namespace.clone(),
            namespace_uid: None,
            computer: view.name.clone(),
            provider: computer.map(|c| c.spec.provider).unwrap_or_default(),
            class_name: status.and_then(|s| s.class_name.clone()),
            snapshot,
            state: RecordState { credential: CredentialState::Pending, children, ..RecordState::default() },
            unknown: Unknown::new(),
        },
    )
}

/// The credible part of the children in a status, which a tenant may be able to write (S5). An object with a name that the operator does not
/// generate is not its child: the admission policies would refuse every change of it, and the deletion would wait forever. A name without a
/// UID may be that of another computer's child, and any object with that name would be treated as this computer's.
fn credible(mut children: Children) -> Children {
    let known = |child: Child, name: Option<&String>, uid: Option<&String>| {
        name.is_some_and(|name| child.matches(name)) && uid.is_some_and(|uid| !uid.is_empty())
    };
    children.pods.retain(|pod| known(Child::Machine, Some(&pod.name), pod.uid.as_ref()));
    if !known(Child::Home, children.claim_name.as_ref(), children.claim_uid.as_ref()) {
        (children.claim_name, children.claim_uid) = (None, None);
    }
    if !known(Child::Key, children.secret_name.as_ref(), children.secret_uid.as_ref()) {
        (children.secret_name, children.secret_uid) = (None, None);
    }
    if !children.retired_secret.as_ref().is_some_and(|s| known(Child::Key, Some(&s.name), Some(&s.uid))) {
        children.retired_secret = None;
    }
    // With the same name as the key's Secret, the deletion would delete what has that name, whatever its UID is.
    if children.retired_secret.as_ref().is_some_and(|s| Some(&s.name) == children.secret_name.as_ref()) {
        children.retired_secret = None;
    }
    // These names have no UIDs.
    children.former_secret_names.clear();
    // A volume counts only once its own labels confirm that it belongs to this computer. Until then its policy is unknown.
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

    /// A tenant that can write a status must not name objects that the operator may not change: the deletion would wait forever.
    #[test]
    fn a_recovered_record_names_only_objects_that_the_operator_can_have_created() {
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

    /// S13: a namespace that was deleted and created again under the same name is another one, and its owners may be others.
    #[test]
    fn a_record_has_the_uid_of_the_namespace_that_the_computer_was_created_in_and_of_no_other() {
        let mut view = View::of(
            json!({"metadata": {"name": "c", "namespace": "t", "uid": "u", "creationTimestamp": "2026-01-01T00:00:10Z"}, "spec": {}}),
        );
        let subject = Subject::Namespace { name: "t".to_owned() };
        assert_eq!(namespace_uid(&view), Err(Action::Read(subject.clone())));
        assert_eq!(recover(&view).spec.namespace_uid, None);
        for (made, uid) in [("00:00:00", Some("n")), ("00:00:10", Some("n")), ("00:00:11", None)] {
            let namespace = json!({"metadata": {"name": "t", "uid": "n", "creationTimestamp": format!("2026-01-01T{made}Z")}});
            view.facts.insert(subject.clone(), Fact::Namespace(serde_json::from_value(namespace).unwrap()));
            assert_eq!(recover(&view).spec.namespace_uid.as_deref(), uid, "{made}");
        }
        view.facts.insert(subject, Fact::Gone);
        assert_eq!(recover(&view).spec.namespace_uid, None);
    }

    /// S5: without a UID, another computer's child with that name would be deleted as this computer's.
    #[test]
    fn a_recovered_record_contains_no_name_without_a_uid() {
        for uid in [json!(null), json!("")] {
            let children =
                recovered(&json!({"secretName": format!("computer-key-{HEX}"), "secretUid": uid, "claimName": format!("home-{HEX}"),
                "claimUid": uid, "pods": [{"name": format!("machine-{HEX}"), "uid": uid}]}));
            assert_eq!(children, Children::default());
        }
    }

    /// S5: with two UIDs for one name, the Secret of another computer that has the name would be deleted without a UID.
    #[test]
    fn a_recovered_record_has_no_retired_secret_under_the_name_of_the_secret() {
        let secret = format!("computer-key-{HEX}");
        let of = |retired: &str| {
            recovered(
                &json!({"secretName": secret, "secretUid": "s", "retiredSecret": {"name": format!("computer-key-{retired}"), "uid": "r"}}),
            )
        };
        let other = HEX.replace('0', "f");
        assert_eq!((of(HEX).retired_secret, of(HEX).secret_uid.as_deref()), (None, Some("s")));
        assert_eq!(of(&other).retired_secret.unwrap().uid, "r", "another name");
    }

    /// The names that are recognized are those that are generated.
    #[test]
    fn names_that_the_operator_generates_are_recovered() {
        let mut view = View::of(
            json!({"metadata": {"name": "c", "namespace": "t", "uid": "u", "finalizers": [crate::resources::DELETION_FINALIZER]}, "spec": {}}),
        );
        view.finalizer_confirmed = true;
        view.facts.insert(Subject::Namespace { name: "t".to_owned() }, Fact::Namespace(Box::default()));
        view.fresh = crate::runtime::time_and_random::Sources::default().fresh();
        let class = json!({"metadata": {"name": "std"}, "spec": {"podTemplate": {"spec": {"containers": [{"name": "m", "image": "i"}]}}},
            "status": {"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        view.class = ClassState::Found(serde_json::from_value(class).unwrap());
        let Next::Do(Action::CreateRecord(record)) = crate::computer::provision::plan(&view).next else { panic!("a record") };
        let mut generated = record.spec.state.children;
        (generated.secret_uid, generated.claim_uid) = (Some("s".to_owned()), Some("c".to_owned()));
        generated.pods.iter_mut().for_each(|p| p.uid = Some("p".to_owned()));
        assert_eq!(generated.pods.len(), 1);
        assert_eq!(recovered(&serde_json::to_value(&generated).unwrap()), generated);
    }
}
