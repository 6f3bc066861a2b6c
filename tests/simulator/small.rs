//! The smallest cluster that a deletion can be checked in: every object is a few values, so that all states can be enumerated.

use computer_operator::computer::action::{Fact, Subject};
use computer_operator::computer::view::View;
use computer_operator::resources::{
    Computer, ComputerRecord, CredentialState, DELETION_FINALIZER, MANAGED_BY_LABEL, MANAGER, ORIGINAL_POLICY_ANNOTATION, POD_FINALIZER,
    RecordPhase, UID_LABEL,
};
use computer_operator::runtime::settings::Settings;
use computer_operator::runtime::time_and_random::Fresh;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

mod requests;
pub use requests::perform;

/// UIDs of the two computers.
pub const OLD: &str = "old";
const NEW: &str = "new";
const OWN: &str = "operator";
/// Stored instead of a claim's UID.
const SEEN: &str = "seen";

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
    /// UID and version of the Computer with the name; whether it is being deleted, and whether it has the finalizer.
    computer: Option<(&'static str, u32, bool)>,
    record: (String, u32),
    machine: Machine,
    claim: Life,
    secret: bool,
    /// Claim UID and policy of the volume. No UID: it is reserved for the custody claim; [`SEEN`]: and the volume controller knows.
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

    pub fn successor_is_unchanged(&self) -> bool {
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
                    self.breaks("S2: archived before the key was revoked");
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
        let Some((holder, policy)) = &mut self.volume else { return };
        if holder.is_empty() || holder == SEEN {
            // A reserved volume is bound when its claim exists, and is never reclaimed.
            let next = if holder.is_empty() || self.custody == Life::Gone { SEEN } else { "custody-uid" };
            next.clone_into(holder);
            return;
        }
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
        let reserved = holder.is_empty() || holder == SEEN;
        let phase = if holder == SEEN { "Available" } else { "Bound" };
        let mut reference = json!({"namespace": namespace, "name": name});
        if !reserved {
            reference["uid"] = json!(holder);
        }
        Some(from(
            json!({"metadata": {"name": "pv", "uid": "pv-uid", "resourceVersion": "1", "labels": {UID_LABEL: OLD, MANAGED_BY_LABEL: MANAGER}, "annotations": {ORIGINAL_POLICY_ANNOTATION: "Delete"}},
            "spec": {"persistentVolumeReclaimPolicy": policy, "claimRef": reference, "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}, "status": {"phase": phase}}),
        ))
    }

    fn read(&self, subject: &Subject) -> Fact {
        let pod = |p: Option<Pod>| p.map_or(Fact::Gone, |p| Fact::Pod(Box::new(p)));
        let claim = |c: Option<PersistentVolumeClaim>| c.map_or(Fact::Gone, |c| Fact::Claim(Box::new(c)));
        match subject {
            Subject::Pod { namespace, .. } => pod(if namespace == OWN { self.typed_packer() } else { self.typed_pod() }),
            Subject::Claim { namespace, .. } => claim(self.typed_claim(namespace != OWN)),
            Subject::Secret { .. } if self.secret => Fact::Uid("key-uid".to_owned()),
            Subject::Volume { .. } | Subject::LiveVolume { .. } => self.typed_volume().map_or(Fact::Gone, |v| Fact::Volume(Box::new(v))),
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
    let settings = Settings { namespace: OWN.to_owned(), ..Settings::default() };
    let fresh = Fresh { suffix: format!("s{leader}"), key: [0; 32] };
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let mut view = View::new(OLD, "t", "c", settings, fresh, now);
    (view.computer, view.record) = (computer, Some(core.record()));
    let custody = (view.archive_pod_name(1), view.custody_claim_name());
    for subject in [
        Subject::pod("t", "pod"),
        Subject::claim("t", "home"),
        Subject::pod(OWN, &custody.0),
        Subject::claim(OWN, &custody.1),
        Subject::volume("pv"),
    ] {
        let fact = core.read(&subject);
        // A cache never proves absence.
        if fact != Fact::Gone {
            view.facts.insert(subject, fact);
        }
    }
    view
}
