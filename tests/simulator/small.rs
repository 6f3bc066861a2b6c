//! The smallest cluster that a deletion can be checked in: every object is a handful of values, so that all states can be listed.

use std::collections::BTreeMap;

use computer_operator::archive::{Summary, Verification};
use computer_operator::computer::action::{Action, Effect, Fact, Object, Subject};
use computer_operator::computer::view::{ClassState, Fresh, Settings, View, has_finalizer};
use computer_operator::resources::{
    Computer, ComputerRecord, CredentialState, DELETION_FINALIZER, MANAGED_BY_LABEL, MANAGER, ORIGINAL_POLICY_ANNOTATION, POD_FINALIZER,
    RecordPhase, UID_LABEL,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

/// UIDs of the two computers.
pub const OLD: &str = "old";
const NEW: &str = "new";
const OWN: &str = "operator";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    There,
    Going,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    Running,
    Ending,
    Ended,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packer {
    None,
    Running,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    Kubelet,
    ClaimController,
    CustodyController,
    VolumeController,
    ArchivePod,
    Tenant,
}

#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    /// UID and version of who stands under the name; whether it is being deleted and held.
    computer: Option<(&'static str, u32, bool)>,
    record: (String, u32),
    machine: Machine,
    claim: Life,
    secret: bool,
    /// Claim UID and policy of the volume.
    volume: Option<(String, String)>,
    custody: Life,
    packer: Packer,
    manifest: bool,
    receipt: bool,
    recreated: bool,
    pub broken: Option<String>,
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

impl Core {
    pub fn new() -> Self {
        let record = json!({"metadata": {"name": OLD, "namespace": OWN}, "spec": {"namespace": "t", "computer": "c",
            "state": {"credential": "Live", "keyHash": "x", "children": {"claimName": "home", "claimUid": "home-uid", "secretName": "key", "secretUid": "key-uid",
                "pods": [{"name": "pod", "uid": "pod-uid", "node": "n"}],
                "volume": {"name": "pv", "uid": "pv-uid", "originalReclaimPolicy": "Delete"}}}}});
        Self {
            computer: Some((OLD, 1, true)),
            record: (record.to_string(), 1),
            machine: Machine::Running,
            claim: Life::There,
            secret: true,
            volume: Some(("home-uid".to_owned(), "Retain".to_owned())),
            custody: Life::Gone,
            packer: Packer::None,
            manifest: false,
            receipt: false,
            recreated: false,
            broken: None,
        }
    }

    fn record(&self) -> ComputerRecord {
        let mut record: ComputerRecord = serde_json::from_str(&self.record.0).expect("a record");
        record.metadata.resource_version = Some(self.record.1.to_string());
        record
    }

    pub fn released(&self, uid: &str) -> bool {
        self.computer.is_none_or(|(u, ..)| u != uid) && self.record().spec.state.phase == RecordPhase::Released
    }

    pub fn over(&self) -> bool {
        self.released(OLD) && self.recreated
    }

    pub fn successor_stands(&self) -> bool {
        self.computer == Some((NEW, 1, false))
    }

    fn breaks(&mut self, promise: &str) {
        self.broken.get_or_insert_with(|| promise.to_owned());
    }

    pub fn others(&self) -> Vec<Other> {
        let all =
            [Other::Kubelet, Other::ClaimController, Other::CustodyController, Other::VolumeController, Other::ArchivePod, Other::Tenant];
        all.into_iter()
            .filter(|o| {
                let mut next = self.clone();
                next.act(*o);
                next != *self
            })
            .collect()
    }

    pub fn act(&mut self, other: Other) {
        match other {
            Other::Kubelet if self.machine == Machine::Ending => self.machine = Machine::Ended,
            Other::ClaimController if self.claim == Life::Going && self.machine == Machine::Gone => self.claim = Life::Gone,
            Other::CustodyController if self.custody == Life::Going && self.packer == Packer::None => self.custody = Life::Gone,
            Other::VolumeController => self.reclaim(),
            Other::ArchivePod if self.packer == Packer::Running && self.volume.as_ref().is_some_and(|v| v.0 == "custody-uid") => {
                if self.machine != Machine::Gone && self.machine != Machine::Ended {
                    self.breaks("S1: archived while the machine may write");
                }
                if self.record().spec.state.credential != CredentialState::Revoked {
                    self.breaks("S2: archived before the key was dead");
                }
                self.packer = Packer::Done;
                self.manifest = true;
            }
            Other::Tenant if self.computer.is_none() && !self.recreated => {
                self.computer = Some((NEW, 1, false));
                self.recreated = true;
            }
            _ => {}
        }
    }

    fn reclaim(&mut self) {
        let Some((holder, policy)) = &self.volume else { return };
        let held = (holder == "home-uid" && self.claim != Life::Gone) || (holder == "custody-uid" && self.custody != Life::Gone);
        if !held && policy == "Delete" {
            if !self.manifest {
                self.breaks("S1: destroyed before it was archived");
            }
            self.volume = None;
        }
    }

    fn typed_computer(&self) -> Option<Computer> {
        let (uid, version, dying) = self.computer?;
        let mut metadata =
            json!({"name": "c", "namespace": "t", "uid": uid, "resourceVersion": version.to_string(), "finalizers": [DELETION_FINALIZER]});
        if dying {
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Some(from(json!({"metadata": metadata, "spec": {}})))
    }

    fn typed_pod(&self) -> Option<Pod> {
        let (deleted, state, phase) = match self.machine {
            Machine::Running => (false, json!({"running": {}}), "Running"),
            Machine::Ending => (true, json!({"running": {}}), "Running"),
            Machine::Ended => (true, json!({"terminated": {"exitCode": 0}}), "Succeeded"),
            Machine::Gone => return None,
        };
        let mut metadata = json!({"name": "pod", "namespace": "t", "uid": "pod-uid", "finalizers": [POD_FINALIZER]});
        if deleted {
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let container = json!({"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": state});
        Some(from(
            json!({"metadata": metadata, "spec": {"nodeName": "n", "containers": []}, "status": {"phase": phase, "containerStatuses": [container]}}),
        ))
    }

    fn typed_packer(&self) -> Option<Pod> {
        let phase = match self.packer {
            Packer::None => return None,
            Packer::Running => "Running",
            Packer::Done => "Succeeded",
        };
        let name = format!("archive-{OLD}-1");
        Some(from(
            json!({"metadata": {"name": name, "namespace": OWN, "uid": "packer-uid"}, "spec": {"nodeName": "n", "containers": []}, "status": {"phase": phase}}),
        ))
    }

    fn typed_claim(&self, home: bool) -> Option<PersistentVolumeClaim> {
        let (life, name, namespace, uid) =
            if home { (self.claim, "home".to_owned(), "t", "home-uid") } else { (self.custody, format!("home-{OLD}"), OWN, "custody-uid") };
        let mut metadata = json!({"name": name, "namespace": namespace, "uid": uid, "finalizers": ["kubernetes.io/pvc-protection"]});
        match life {
            Life::Gone => return None,
            Life::Going => metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
            Life::There => {}
        }
        let bound = self.volume.as_ref().is_some_and(|v| v.0 == uid);
        Some(from(
            json!({"metadata": metadata, "spec": {"volumeName": "pv"}, "status": {"phase": if bound { "Bound" } else { "Pending" }}}),
        ))
    }

    fn typed_volume(&self) -> Option<PersistentVolume> {
        let (holder, policy) = self.volume.as_ref()?;
        let (name, namespace) = if holder == "home-uid" { ("home".to_owned(), "t") } else { (format!("home-{OLD}"), OWN) };
        Some(from(
            json!({"metadata": {"name": "pv", "uid": "pv-uid", "resourceVersion": "1", "labels": {UID_LABEL: OLD, MANAGED_BY_LABEL: MANAGER}, "annotations": {ORIGINAL_POLICY_ANNOTATION: "Delete"}},
            "spec": {"persistentVolumeReclaimPolicy": policy, "claimRef": {"uid": holder, "namespace": namespace, "name": name}, "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}}),
        ))
    }

    fn read(&self, subject: &Subject) -> Fact {
        let pod = |p: Option<Pod>| p.map_or(Fact::Gone, |p| Fact::Pod(Box::new(p)));
        let claim = |c: Option<PersistentVolumeClaim>| c.map_or(Fact::Gone, |c| Fact::Claim(Box::new(c)));
        match subject {
            Subject::Pod { namespace, .. } => pod(if namespace == OWN { self.typed_packer() } else { self.typed_pod() }),
            Subject::Claim { namespace, .. } => claim(self.typed_claim(namespace != OWN)),
            Subject::Secret { .. } if self.secret => Fact::Uid("key-uid".to_owned()),
            Subject::Volume { .. } => self.typed_volume().map_or(Fact::Gone, |v| Fact::Volume(Box::new(v))),
            Subject::Node { name } => Fact::Node(Box::new(from(
                json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            ))),
            Subject::ClaimUsers { .. } | Subject::VolumesOfClaim { .. } | Subject::Attachments { .. } => Fact::Names(Vec::new()),
            Subject::Namespace { name } => {
                Fact::Namespace(Box::new(from(json!({"metadata": {"name": name}, "status": {"phase": "Active"}}))))
            }
            Subject::Secret { .. } => Fact::Gone,
        }
    }
}

/// What a leader's caches show at this moment.
pub fn view(core: &Core, leader: usize) -> View {
    let computer = core.typed_computer().filter(|c| c.metadata.uid.as_deref() == Some(OLD));
    let mut view = View {
        uid: OLD.to_owned(),
        namespace: "t".to_owned(),
        name: "c".to_owned(),
        computer,
        namespace_terminating: false,
        record: Some(core.record()),
        class: ClassState::Missing,
        overrides: Vec::new(),
        facts: BTreeMap::new(),
        archive: None,
        receipt: None,
        finalizer_confirmed: false,
        passed: Vec::new(),
        settings: Settings { namespace: OWN.to_owned(), ..Settings::default() },
        fresh: Fresh { suffix: format!("s{leader}"), key: [0; 32] },
        now: Timestamp::from_second(1_800_000_000).expect("a time"),
    };
    let custody = (view.archive_pod_name(1), view.custody_claim_name());
    for subject in [
        Subject::pod("t", "pod"),
        Subject::claim("t", "home"),
        Subject::pod(OWN, &custody.0),
        Subject::claim(OWN, &custody.1),
        Subject::volume("pv"),
    ] {
        let fact = core.read(&subject);
        // A cache never shows that something is gone.
        if fact != Fact::Gone {
            view.facts.insert(subject, fact);
        }
    }
    view
}

/// One request, fenced as `apply` fences it. `None`: refused; the pass ends.
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
        Action::Patch { subject: Subject::Volume { name }, patch } => volume(core, &name, &patch),
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
        core.breaks("S3: released before all was gone, dead and on record");
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
        after
            .deletion
            .as_ref()
            .is_none_or(|a| b.steps.iter().any(|(k, v)| a.steps.get(k) != Some(v)) || (b.archive.is_some() && a.archive != b.archive))
    });
    if back || forgot {
        core.breaks("S9: the record went backwards");
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
    core.volume = Some((text("/spec/claimRef/uid")?, text("/spec/persistentVolumeReclaimPolicy")?));
    if core.volume.as_ref().is_some_and(|v| v.1 == "Delete") && !core.manifest {
        core.breaks("S1: the volume was given up before it was archived");
    }
    Some(Effect::Learned(Subject::volume(name), core.read(&Subject::volume(name))))
}

/// Our finalizer comes off an ended pod: its kubelet lets it go.
fn pod(core: &mut Core, subject: Subject, patch: &json_patch::Patch) -> Option<Effect> {
    let Some(found) = core.typed_pod() else { return Some(Effect::Learned(subject, Fact::Gone)) };
    let mut value = serde_json::to_value(&found).ok()?;
    json_patch::patch(&mut value, patch).ok()?;
    if core.machine != Machine::Ended {
        core.breaks("S1: the pod was let go before it had stopped");
    }
    core.machine = Machine::Gone;
    Some(Effect::Learned(subject, Fact::Accepted))
}
