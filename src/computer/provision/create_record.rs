//! Step `create-record`: adds the finalizer and creates the record before any child exists (DESIGN.md 4.1, 4.2). The finalizer counts only
//! after a live read has shown it: a DELETE can win against a concurrent "add finalizer" (kubernetes#129584).

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{RETRY_SECONDS, class_verdict};
use crate::computer::action::Action;
use crate::computer::children::Child;
use crate::computer::step::State;
use crate::computer::view::{ClassState, View, has_finalizer};
use crate::computer::{machine_pod, new_record};
use crate::credentials::{ComputerId, Key};
use crate::resources::reasons::Reason;
use crate::resources::{
    Children, Computer, ComputerClass, ComputerRecord, ComputerRecordSpec, PodRecord, Provider, RecordState, Snapshot, Unknown, quantity,
};

pub(super) fn step(view: &View, computer: &Computer) -> State {
    if !has_finalizer(computer) {
        return State::act(Action::AddFinalizer);
    }
    if view.record.is_some() {
        return State::done();
    }
    if !view.finalizer_confirmed {
        return State::act(Action::ReadComputer);
    }
    if computer.status.as_ref().is_some_and(|s| s.children.is_some()) {
        return record(view, || new_record::recover(view));
    }
    if computer.spec.provider == Provider::BYOM {
        return create(view, computer, None);
    }
    match usable(view, computer) {
        Ok(class) => create(view, computer, Some(class)),
        Err(state) => state,
    }
}

fn blocked(reason: Reason, message: String) -> State {
    State::blocked(reason, message, RETRY_SECONDS)
}

/// The class, if a computer can be created from it.
fn usable<'a>(view: &'a View, computer: &Computer) -> Result<&'a ComputerClass, State> {
    let class = match &view.class {
        ClassState::Found(class) => class,
        ClassState::Missing => {
            let message = match &computer.spec.class_name {
                Some(name) => format!(
                    "ComputerClass {name} does not exist. List the classes with `kubectl get computerclasses` (needs the \
                     ClusterRole of the chart that ends in `-classes`), and ask an admin to create it, or delete this Computer and create one with another class"
                ),
                None => "spec.className is not set and no ComputerClass is the default. Ask an admin to annotate one with \
                         computer-operator.dev/is-default-class=true"
                    .to_owned(),
            };
            return Err(blocked(Reason::ClassNotFound, message));
        }
        ClassState::Ambiguous(names) => {
            let message = format!("more than one ComputerClass is the default: {}. Name one in spec.className", names.join(", "));
            return Err(blocked(Reason::AmbiguousDefaultClass, message));
        }
    };
    if let Some(state) = class_verdict::refused(class, view.now) {
        return Err(state);
    }
    let wanted = size(computer, class);
    match &class.spec.limits.max_storage {
        Some(most) if bytes(&wanted) > bytes(most) => {
            let message = format!(
                "spec.storage.size {} is more than the class allows ({}). Delete this Computer and create one with a smaller volume",
                wanted.0, most.0
            );
            Err(blocked(Reason::StorageTooLarge, message))
        }
        _ => Ok(class),
    }
}

/// Size of the home volume: the computer's, else the class's.
pub(super) fn size(computer: &Computer, class: &ComputerClass) -> Quantity {
    computer.spec.storage.as_ref().map_or_else(|| class.spec.storage.size.clone(), |s| s.size.clone())
}

/// A quantity in bytes. One that cannot be parsed counts as infinite, so that a class with a limit refuses it.
fn bytes(size: &Quantity) -> f64 {
    quantity::value(size).unwrap_or(f64::INFINITY)
}

/// Creates the record with the names of all children, before the first child is created (S5).
fn create(view: &View, computer: &Computer, class: Option<&ComputerClass>) -> State {
    let suffix = &view.fresh.suffix;
    let claim = Child::Home.name(suffix);
    let snapshot =
        match class.map(|c| machine_pod::desired(c, &computer.spec, &claim).and_then(|p| machine_pod::snapshot(c, &computer.spec, &p))) {
            None => Snapshot::default(),
            Some(Ok(snapshot)) => snapshot,
            Some(Err(why)) => return blocked(Reason::ClassNotAccepted, why),
        };
    let managed = class.is_some();
    let key_mounted = class.is_some_and(|class| class.spec.key.mount_path.is_some());
    let key_allow = class.and_then(|class| class.spec.key.words(key_mounted));
    let children = Children {
        claim_name: managed.then_some(claim),
        secret_name: Some(Child::Key.name(suffix)),
        secret_followed: key_mounted,
        pods: if managed && !computer.spec.suspended {
            vec![PodRecord { name: Child::Machine.name(suffix), ..PodRecord::default() }]
        } else {
            Vec::new()
        },
        ..Children::default()
    };
    let (key_hash, key_issued_at) = (Some(fresh_key(view).hash()), Some(Time(view.now)));
    let key_rotation = computer.spec.key.rotation.clone();
    let state = RecordState { key_hash, key_issued_at, key_rotation, key_mounted, key_allow, children, ..RecordState::default() };
    let spec = ComputerRecordSpec {
        namespace: view.namespace.clone(),
        namespace_uid: None,
        computer: view.name.clone(),
        provider: computer.spec.provider,
        class_name: class.map(ResourceExt::name_any),
        snapshot,
        state,
        unknown: Unknown::new(),
    };
    record(view, || new_record::new(view, spec))
}

/// Creates a record, after a live read of the namespace.
fn record(view: &View, record: impl FnOnce() -> ComputerRecord) -> State {
    State::act(new_record::namespace_uid(view).err().unwrap_or_else(|| Action::CreateRecord(Box::new(record()))))
}

/// The key that this reconcile would issue.
pub(super) fn fresh_key(view: &View) -> Key {
    let computer = ComputerId { namespace: view.namespace.clone(), name: view.name.clone(), uid: view.uid.clone() };
    Key::new(computer, view.fresh.key)
}
