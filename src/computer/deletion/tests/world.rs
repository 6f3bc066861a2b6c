//! A small model of the cluster for deletions: the API server, the kubelet and the volume controller.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::archive::waiting_time::Waited;
use crate::archive::{Summary, Verification};
use crate::computer::action::{Action, Effect, Fact, Object, Subject};
use crate::computer::view::{View, has_finalizer};
use crate::resources::*;
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Fresh;

pub(super) const UID: &str = "11111111-1111-1111-1111-111111111111";
pub(super) const OWN: &str = "computer-operator-system";
/// Names as the operator generates them: other names in a status do not count.
pub(super) const HOME: &str = "home-00000000000000000000000000000001";
pub(super) const MACHINE: &str = "machine-00000000000000000000000000000001";
pub(super) const KEY: &str = "computer-key-00000000000000000000000000000001";

pub(super) fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// The model of the cluster.
#[derive(Clone)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct World {
    pub(super) now: i64,
    pub(super) terminating: bool,
    pub(super) computer: Option<Computer>,
    pub(super) record: Option<ComputerRecord>,
    pub(super) pods: BTreeMap<(String, String), Pod>,
    pub(super) claims: BTreeMap<(String, String), PersistentVolumeClaim>,
    pub(super) volume: Option<PersistentVolume>,
    pub(super) secret: Option<String>,
    pub(super) manifest: bool,
    pub(super) receipt: Option<Vec<u8>>,
    pub(super) next_uid: u32,
    pub(super) writes: u32,
    pub(super) overrides: Vec<DeletionOverride>,
    /// The archive pod never ends.
    pub(super) no_archive: bool,
    /// The kubelet of the machine's node no longer reports.
    pub(super) node_lost: bool,
    /// A second Secret: its name and UID.
    pub(super) late_secret: Option<(String, String)>,
    /// How long the deletion has waited without work on its archive.
    pub(super) waited: Duration,
    /// What the API server answered when it refused the last request.
    pub(super) refused: Option<String>,
    /// The volume is attached to the machine's node.
    pub(super) attached: bool,
}

impl World {
    pub(super) fn new(policy: &str, archive: ArchivePolicy) -> Self {
        let computer: Computer = from(json!({"metadata": {"name": "c", "namespace": "t", "uid": UID, "resourceVersion": "1",
            "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [DELETION_FINALIZER]}, "spec": {}}));
        let record: ComputerRecord = from(json!({"metadata": {"name": UID, "namespace": OWN}, "spec": {"namespace": "t", "computer": "c",
            "snapshot": {"archive": {"policy": archive}},
            "state": {"credential": "Live", "keyHash": "x", "children": {"claimName": HOME, "claimUid": "claim", "secretName": KEY, "secretUid": "secret",
                "pods": [{"name": MACHINE, "uid": "pod", "node": "n"}],
                "volume": {"name": "pv", "uid": "pv-uid", "originalReclaimPolicy": policy}}}}}));
        let pod: Pod = from(json!({"metadata": {"name": MACHINE, "namespace": "t", "uid": "pod", "finalizers": [POD_FINALIZER]},
            "spec": {"nodeName": "n", "containers": [{"name": "c"}], "volumes": [{"name": "home", "persistentVolumeClaim": {"claimName": HOME}}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": {"running": {}}}]}}));
        let claim = from(
            json!({"metadata": {"name": HOME, "namespace": "t", "uid": "claim"}, "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}),
        );
        let volume = from(
            json!({"metadata": {"name": "pv", "uid": "pv-uid", "resourceVersion": "1", "labels": {UID_LABEL: UID, MANAGED_BY_LABEL: MANAGER}, "annotations": {ORIGINAL_POLICY_ANNOTATION: policy}},
            "spec": {"persistentVolumeReclaimPolicy": "Retain", "claimRef": {"uid": "claim", "namespace": "t", "name": HOME}, "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}}),
        );
        Self {
            now: 1_800_000_000,
            terminating: false,
            computer: Some(computer),
            record: Some(record),
            pods: [(("t".into(), MACHINE.into()), pod)].into(),
            claims: [(("t".into(), HOME.into()), claim)].into(),
            volume: Some(volume),
            secret: Some("secret".into()),
            manifest: false,
            receipt: None,
            next_uid: 0,
            writes: 0,
            overrides: Vec::new(),
            no_archive: false,
            node_lost: false,
            attached: false,
            waited: Duration::ZERO,
            refused: None,
            late_secret: None,
        }
    }

    pub(super) fn uid(&mut self) -> String {
        self.next_uid += 1;
        format!("new-{}", self.next_uid)
    }

    /// The view of a new reconcile. `cached`: the caches hold everything; otherwise nothing.
    pub(super) fn view(&self, cached: bool) -> View {
        let settings = Settings { namespace: OWN.into(), ..Settings::default() };
        let mut view = View::new(UID, "t", "c", settings, Fresh { suffix: "s".into(), key: [0; 32] }, self.time());
        view.computer.clone_from(&self.computer);
        view.namespace_terminating = self.terminating;
        view.record.clone_from(&self.record);
        view.overrides.clone_from(&self.overrides);
        view.waited = Waited { total: self.waited, here: self.waited, refused: self.refused.clone() };
        if cached {
            for ((ns, name), pod) in &self.pods {
                view.facts.insert(Subject::pod(ns, name), Fact::Pod(Box::new(pod.clone())));
            }
            for ((ns, name), claim) in &self.claims {
                view.facts.insert(Subject::claim(ns, name), Fact::Claim(Box::new(claim.clone())));
            }
            if let Some(volume) = &self.volume {
                view.facts.insert(Subject::volume("pv"), Fact::Volume(Box::new(volume.clone())));
            }
        }
        view
    }

    pub(super) fn time(&self) -> Timestamp {
        Timestamp::from_second(self.now).unwrap()
    }

    pub(super) fn read(&self, subject: &Subject) -> Fact {
        match subject {
            Subject::Pod { namespace, name } => {
                self.pods.get(&(namespace.clone(), name.clone())).map_or(Fact::Gone, |p| Fact::Pod(Box::new(p.clone())))
            }
            Subject::Claim { namespace, name } => {
                self.claims.get(&(namespace.clone(), name.clone())).map_or(Fact::Gone, |c| Fact::Claim(Box::new(c.clone())))
            }
            Subject::Secret { name, .. } if name != KEY => {
                let late = self.late_secret.as_ref().filter(|(late, _)| late == name);
                late.map_or(Fact::Gone, |(_, uid)| Fact::Uid(uid.clone()))
            }
            Subject::Secret { .. } => self.secret.clone().map_or(Fact::Gone, Fact::Uid),
            Subject::Volume { .. } | Subject::LiveVolume { .. } => self.volume.clone().map_or(Fact::Gone, |v| Fact::Volume(Box::new(v))),
            Subject::Node { name } => Fact::Node(Box::new(from::<Node>(
                json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": if self.node_lost { "Unknown" } else { "True" }}]}}),
            ))),
            Subject::Namespace { name } => Fact::Namespace(Box::new(from(
                json!({"metadata": {"name": name}, "status": {"phase": if self.terminating { "Terminating" } else { "Active" }}}),
            ))),
            Subject::VolumesOfClaim { uid } => {
                let bound = self.volume.iter().filter(|v| crate::resources::persistent_volume::claim_ref_uid(v) == Some(uid));
                Fact::Names(bound.filter_map(|v| v.metadata.name.clone()).collect())
            }
            Subject::Attachments { .. } if self.attached => Fact::Names(vec!["n".into()]),
            Subject::ClaimUsers { .. } | Subject::Attachments { .. } => Fact::Names(Vec::new()),
        }
    }

    pub(super) fn apply(&mut self, action: Action) -> Effect {
        self.writes += match &action {
            Action::Read(_) | Action::ReadComputer | Action::CheckArchive => 0,
            // A delete that finds no object writes nothing.
            Action::Delete { subject: Subject::Secret { .. }, .. } => u32::from(self.secret.is_some()),
            _ => 1,
        };
        match action {
            Action::Read(subject) => Effect::Learned(subject.clone(), self.read(&subject)),
            Action::ReadComputer => Effect::Computer(self.computer.clone().map(Box::new)),
            Action::AddFinalizer => panic!("S8: a finalizer for a deleting computer"),
            Action::DeleteComputer => {
                self.computer.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(self.time()));
                Effect::Computer(self.computer.clone().map(Box::new))
            }
            Action::ReleaseFinalizer => {
                assert!(self.computer.as_ref().unwrap().metadata.deletion_timestamp.is_some());
                let foreign = |c: &mut Computer| {
                    c.metadata.finalizers.as_mut().unwrap().retain(|f| f != DELETION_FINALIZER);
                    c.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty())
                };
                self.computer = self.computer.take().and_then(|mut c| foreign(&mut c).then_some(c));
                Effect::Computer(self.computer.clone().map(Box::new))
            }
            Action::CreateRecord(record) | Action::SaveRecord(record) => {
                self.record = Some(*record.clone());
                Effect::Record(record)
            }
            Action::Create(object) => self.create(object),
            Action::Delete { subject, uid } => self.delete(subject, &uid),
            Action::Remove { subject: Subject::Pod { namespace, name }, uid } => {
                let key = (namespace.clone(), name.clone());
                let ours = self.pods.get(&key).filter(|p| p.metadata.uid.as_deref() == Some(&uid)).unwrap();
                assert!(ours.metadata.finalizers.as_ref().is_none_or(Vec::is_empty), "deleted before its finalizer was removed");
                self.pods.remove(&key);
                Effect::Learned(Subject::pod(&namespace, &name), Fact::Gone)
            }
            Action::Remove { .. } => panic!("only pods are removed"),
            Action::Patch { subject, patch } => self.patch(subject, &patch),
            Action::Retain { volume, patch } => self.patch(Subject::volume(&volume), &patch),
            Action::CheckArchive => {
                Effect::Archive(if self.manifest { Verification::Valid(Summary::default()) } else { Verification::Missing })
            }
            Action::PutReceipt(bytes) => Effect::ReceiptStored(self.receipt.get_or_insert(bytes).clone()),
        }
    }

    pub(super) fn create(&mut self, object: Object) -> Effect {
        let uid = Some(self.uid());
        match object {
            Object::Pod(mut pod) => {
                assert_eq!(pod.metadata.namespace.as_deref(), Some(OWN), "S8: a child for a deleting computer");
                pod.metadata.uid = uid;
                let key = (OWN.to_owned(), pod.metadata.name.clone().unwrap());
                self.pods.insert(key.clone(), *pod.clone());
                Effect::Learned(Subject::pod(&key.0, &key.1), Fact::Pod(pod))
            }
            Object::Claim(mut claim) => {
                assert_eq!(claim.metadata.namespace.as_deref(), Some(OWN), "S8: a child for a deleting computer");
                claim.metadata.uid = uid;
                let key = (OWN.to_owned(), claim.metadata.name.clone().unwrap());
                self.claims.insert(key.clone(), *claim.clone());
                Effect::Learned(Subject::claim(&key.0, &key.1), Fact::Claim(claim))
            }
            Object::Machine(_) => panic!("S8: a machine for a deleting computer"),
            Object::Secret(_) => panic!("S8: a key for a deleting computer"),
        }
    }

    pub(super) fn delete(&mut self, subject: Subject, uid: &str) -> Effect {
        let time = Some(Time(self.time()));
        match &subject {
            Subject::Secret { name, .. } if self.late_secret.as_ref().is_some_and(|late| late.0 == *name && late.1 == uid) => {
                self.late_secret = None;
                Effect::Learned(subject, Fact::Accepted)
            }
            Subject::Secret { .. } if self.secret.as_deref() == Some(uid) => {
                self.secret = None;
                Effect::Learned(subject, Fact::Accepted)
            }
            Subject::Pod { namespace, name } => match self.pods.get_mut(&(namespace.clone(), name.clone())) {
                Some(pod) if pod.metadata.uid.as_deref() == Some(uid) => {
                    pod.metadata.deletion_timestamp = time;
                    Effect::Learned(subject, Fact::Pod(Box::new(pod.clone())))
                }
                _ => Effect::Learned(subject, Fact::Gone),
            },
            Subject::Claim { namespace, name } => match self.claims.get_mut(&(namespace.clone(), name.clone())) {
                Some(claim) if claim.metadata.uid.as_deref() == Some(uid) => {
                    claim.metadata.deletion_timestamp = time;
                    Effect::Learned(subject, Fact::Claim(Box::new(claim.clone())))
                }
                _ => Effect::Learned(subject, Fact::Gone),
            },
            _ => Effect::Learned(subject, Fact::Gone),
        }
    }

    pub(super) fn patch(&mut self, subject: Subject, patch: &json_patch::Patch) -> Effect {
        if let Subject::Pod { namespace, name } = &subject {
            let pod = self.pods.get_mut(&(namespace.clone(), name.clone())).unwrap();
            let mut value = serde_json::to_value(&*pod).unwrap();
            json_patch::patch(&mut value, patch).unwrap();
            *pod = from(value);
            Effect::Learned(subject, Fact::Pod(Box::new(pod.clone())))
        } else {
            let mut value = serde_json::to_value(self.volume.as_ref().unwrap()).unwrap();
            json_patch::patch(&mut value, patch).unwrap();
            self.volume = Some(from(value));
            Effect::Learned(subject, Fact::Volume(Box::new(self.volume.clone().unwrap())))
        }
    }

    /// One step of the kubelet, pvc-protection and the volume controller.
    pub(super) fn others(&mut self) {
        self.now += 10;
        let finished = json!({"phase": "Succeeded", "containerStatuses": [{"name": "archive", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0}}}]});
        self.bind();
        let holder = self.volume.as_ref().and_then(crate::resources::persistent_volume::claim_ref_uid).map(str::to_owned);
        for ((ns, _), pod) in &mut self.pods {
            if ns == OWN && pod.metadata.deletion_timestamp.is_none() {
                let custody = self.claims.get(&(OWN.to_owned(), format!("home-{UID}"))).and_then(|c| c.metadata.uid.clone());
                if custody.is_some() && custody == holder && !self.no_archive {
                    self.manifest = true;
                    pod.status = from(finished.clone());
                }
            } else if pod.metadata.deletion_timestamp.is_some() && !self.node_lost {
                pod.status = from(finished.clone());
            }
        }
        // The kubelet deletes its stopped pods, unless they are force-deleted.
        let held = |p: &Pod| p.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
        let kept = |ns: &str| self.node_lost && ns != OWN;
        self.pods.retain(|(ns, _), p| p.metadata.deletion_timestamp.is_none() || held(p) || kept(ns));
        let used: Vec<_> = self.pods.keys().map(|(ns, _)| ns.clone()).collect();
        self.claims.retain(|(ns, _), c| c.metadata.deletion_timestamp.is_none() || used.contains(ns));
        for claim in self.claims.values_mut().filter(|c| c.metadata.uid == holder) {
            claim.status = from(json!({"phase": "Bound"}));
        }
        let bound = self.claims.values().any(|c| c.metadata.uid == holder);
        let delete =
            self.volume.as_ref().is_some_and(|v| v.spec.as_ref().unwrap().persistent_volume_reclaim_policy.as_deref() == Some("Delete"));
        if delete && !bound {
            self.volume = None;
        }
    }

    /// A volume that is reserved by name is `Available`, and bound as soon as its claim exists.
    fn bind(&mut self) {
        let Some(volume) = &mut self.volume else { return };
        let Some(reference) = volume.spec.as_mut().and_then(|s| s.claim_ref.as_mut()).filter(|r| r.uid.is_none()) else { return };
        let key = (reference.namespace.clone().unwrap_or_default(), reference.name.clone().unwrap_or_default());
        reference.uid = self.claims.get(&key).and_then(|c| c.metadata.uid.clone());
        let phase = if reference.uid.is_some() { "Bound" } else { "Available" };
        volume.status = from(json!({"phase": phase}));
    }

    /// Asserts S1, S2 and S3.
    pub(super) fn check(&self) {
        let state = &self.record.as_ref().unwrap().spec.state;
        let snapshot = &self.record.as_ref().unwrap().spec.snapshot;
        let wanted = snapshot.archive.policy != ArchivePolicy::None && self.overrides.is_empty();
        assert!(self.volume.is_some() || self.manifest || !wanted, "S1: destroyed before it was archived");
        assert!(!self.manifest || state.credential == CredentialState::Revoked, "S2: archived before it was revoked");
        if !self.computer.as_ref().is_some_and(has_finalizer) && !state.deletion.as_ref().is_some_and(|d| d.handed_off) {
            assert!(self.pods.is_empty() && self.claims.is_empty() && self.secret.is_none(), "S3: released before everything was gone");
            assert!(self.receipt.is_some() && state.deletion.as_ref().unwrap().receipt.is_some(), "S3: released without a receipt");
        }
    }
}
