//! The effect of each request of a reconcile on the smallest cluster, with the same preconditions as `apply`, and the promise that the
//! request would break.

use computer_operator::archive::{Summary, Verification};
use computer_operator::computer::action::{Action, Effect, Fact, Object, Subject};
use computer_operator::computer::view::{View, has_finalizer};
use computer_operator::resources::steps::{DeletionStep, Sequence};
use computer_operator::resources::{Computer, ComputerRecord, CredentialState};
use serde_json::Value;

use super::{Core, Life, Machine, OLD, OWN, Packer};

/// One request with the preconditions of `apply`. `None`: the request is refused, and the reconcile ends.
pub fn perform(core: &mut Core, action: Action, view: &View) -> Option<Effect> {
    match action {
        Action::Read(subject) => Some(Effect::Learned(subject.clone(), core.read(&subject))),
        Action::ReadComputer => Some(Effect::Computer(ours(core))),
        Action::ReleaseFinalizer => release(core, view),
        Action::SaveRecord(record) => save(core, *record),
        Action::Create(Object::Pod(pod)) => {
            let subject = Subject::pod(OWN, pod.metadata.name.as_deref()?);
            if core.packer == Packer::None {
                core.packer = Packer::Running;
            }
            Some(Effect::Learned(subject.clone(), core.read(&subject)))
        }
        Action::Create(Object::Claim(claim)) => {
            let subject = Subject::claim(OWN, claim.metadata.name.as_deref()?);
            if core.custody == Life::Gone {
                core.custody = Life::There;
            }
            Some(Effect::Learned(subject.clone(), core.read(&subject)))
        }
        Action::Delete { subject, .. } => Some(delete(core, subject)),
        Action::Patch { subject: Subject::Volume { name }, patch } | Action::Retain { volume: name, patch } => volume(core, &name, &patch),
        Action::Patch { subject, patch } => pod(core, subject, &patch),
        Action::CheckArchive => {
            Some(Effect::Archive(if core.manifest { Verification::Valid(Summary::default()) } else { Verification::Missing }))
        }
        Action::PutReceipt(bytes) => {
            core.receipt = true;
            Some(Effect::ReceiptStored(bytes))
        }
        other => {
            core.breaks(&format!("S8: {other:?}"));
            None
        }
    }
}

fn ours(core: &Core) -> Option<Box<Computer>> {
    core.typed_computer().filter(|c| c.metadata.uid.as_deref() == Some(OLD)).map(Box::new)
}

fn release(core: &mut Core, view: &View) -> Option<Effect> {
    let asked = view.computer.as_ref().filter(|c| has_finalizer(c))?;
    let (uid, version, dying) = core.computer?;
    if asked.metadata.uid.as_deref() != Some(uid) || asked.metadata.resource_version.as_deref() != Some(version.to_string().as_str()) {
        return Some(Effect::Computer(ours(core)));
    }
    if !dying || uid != OLD {
        core.breaks("S4: another computer was released");
    }
    let state = core.record().spec.state;
    let left = core.machine != Machine::Gone
        || core.claim != Life::Gone
        || core.secret
        || core.volume.is_some()
        || core.custody != Life::Gone
        || core.packer != Packer::None;
    if left || state.credential != CredentialState::Revoked || !core.receipt || state.deletion.is_none_or(|d| d.receipt.is_none()) {
        core.breaks("S3: released before every object was gone, the key revoked and the receipt stored");
    }
    core.computer = None;
    Some(Effect::Computer(None))
}

fn save(core: &mut Core, mut record: ComputerRecord) -> Option<Effect> {
    let old = core.record();
    if record.metadata.resource_version != old.metadata.resource_version {
        return Some(Effect::Overtaken(Box::new(old)));
    }
    let (before, after) = (&old.spec.state, &record.spec.state);
    let back = before.credential == CredentialState::Revoked && after.credential != CredentialState::Revoked;
    let forgot = before.deletion.as_ref().is_some_and(|b| {
        after.deletion.as_ref().is_none_or(|a| {
            DeletionStep::ALL.iter().any(|s| b.steps.get(*s).is_some_and(|v| a.steps.get(*s) != Some(v)))
                || (b.archive.is_some() && a.archive != b.archive)
        })
    });
    if back || forgot {
        core.breaks("S9: the record lost a fact");
    }
    record.metadata.resource_version = None;
    core.record = (serde_json::to_string(&record).ok()?, core.record.1 + 1);
    Some(Effect::Record(Box::new(core.record())))
}

fn delete(core: &mut Core, subject: Subject) -> Effect {
    match &subject {
        Subject::Secret { .. } => core.secret = false,
        Subject::Pod { namespace, .. } if namespace == OWN => core.packer = Packer::None,
        Subject::Pod { .. } if core.machine == Machine::Running => core.machine = Machine::Ending,
        Subject::Claim { namespace, .. } if namespace == OWN && core.custody == Life::There => core.custody = Life::Going,
        Subject::Claim { namespace, .. } if namespace != OWN && core.claim == Life::There => core.claim = Life::Going,
        _ => {}
    }
    let fact = core.read(&subject);
    Effect::Learned(subject, if fact == Fact::Gone { Fact::Accepted } else { fact })
}

fn volume(core: &mut Core, name: &str, patch: &json_patch::Patch) -> Option<Effect> {
    let Some(found) = core.typed_volume() else { return Some(Effect::Learned(Subject::volume(name), Fact::Gone)) };
    let mut value = serde_json::to_value(&found).ok()?;
    json_patch::patch(&mut value, patch).ok()?;
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    core.volume = Some((text("/spec/claimRef/uid").unwrap_or_default(), text("/spec/persistentVolumeReclaimPolicy")?));
    if core.volume.as_ref().is_some_and(|v| v.1 == "Delete") && !core.manifest {
        core.breaks("S1: the volume was given up before it was archived");
    }
    Some(Effect::Learned(Subject::volume(name), core.read(&Subject::volume(name))))
}

/// The operator's finalizer is removed from an ended pod, and the kubelet removes the pod.
fn pod(core: &mut Core, subject: Subject, patch: &json_patch::Patch) -> Option<Effect> {
    let Some(found) = core.typed_pod() else { return Some(Effect::Learned(subject, Fact::Gone)) };
    let mut value = serde_json::to_value(&found).ok()?;
    json_patch::patch(&mut value, patch).ok()?;
    if core.machine != Machine::Ended {
        core.breaks("S1: the pod was released before it had stopped");
    }
    core.machine = Machine::Gone;
    Some(Effect::Learned(subject, Fact::Accepted))
}
