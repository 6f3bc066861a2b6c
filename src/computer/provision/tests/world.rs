//! A small model of the cluster for the provisioning plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::json;

use crate::computer::action::{Action, Effect, Fact, Object, Subject};
use crate::computer::plan::plan;
use crate::computer::report::{Next, Plan};
use crate::computer::view::{ClassState, View};
use crate::resources::*;
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Fresh;

pub(super) const UID: &str = "11111111-1111-1111-1111-111111111111";

pub(super) fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) now: i64,
    pub(super) passes: u32,
    pub(super) computer: Computer,
    pub(super) record: Option<ComputerRecord>,
    pub(super) pods: BTreeMap<String, Pod>,
    pub(super) claims: BTreeMap<String, PersistentVolumeClaim>,
    pub(super) secrets: BTreeMap<String, String>,
    pub(super) volume: Option<PersistentVolume>,
    pub(super) uids: u32,
    pub(super) writes: u32,
    /// The user in the class's template.
    pub(super) user: Option<i64>,
    pub(super) node_lost: bool,
    pub(super) key_check_in: Option<Duration>,
    /// `spec.key` of the class.
    pub(super) class_key: serde_json::Value,
    /// Names of Secrets that were not immutable when they were created.
    pub(super) followed: BTreeSet<String>,
}

impl World {
    pub(super) fn new(spec: serde_json::Value) -> Self {
        let computer = from(
            json!({"metadata": {"name": "c", "namespace": "t", "uid": UID, "resourceVersion": "1", "creationTimestamp": "2027-01-15T08:00:00Z"}, "spec": spec}),
        );
        Self {
            now: 1_800_000_000,
            passes: 0,
            computer,
            record: None,
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            secrets: BTreeMap::new(),
            volume: None,
            uids: 0,
            writes: 0,
            user: None,
            node_lost: false,
            key_check_in: None,
            class_key: serde_json::Value::Null,
            followed: BTreeSet::new(),
        }
    }

    pub(super) fn view(&self) -> View {
        let mut class: ComputerClass = from(
            json!({"metadata": {"name": "std"}, "spec": {"podTemplate": {"spec": {"securityContext": {"runAsUser": self.user}, "containers": [{"name": "m", "image": "i"}]}}},
            "status": {"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        );
        if !self.class_key.is_null() {
            class.spec.key = from(self.class_key.clone());
        }
        let settings = Settings { namespace: "op".into(), api_url: "http://api".into(), ..Settings::default() };
        let fresh = Fresh { suffix: format!("{:032x}", self.passes), key: std::array::from_fn(|i| self.passes.to_be_bytes()[i % 4]) };
        let mut view = View::new(UID, "t", "c", settings, fresh, Timestamp::from_second(self.now).unwrap());
        view.key_check_in = self.key_check_in;
        view.computer = Some(self.computer.clone());
        view.record.clone_from(&self.record);
        view.class = ClassState::Found(Box::new(class));
        for (name, pod) in &self.pods {
            let mut cached = pod.clone();
            crate::runtime::cached_fields::pod(&mut cached);
            view.facts.insert(Subject::pod("t", name), Fact::Pod(Box::new(cached)));
        }
        for (name, claim) in &self.claims {
            view.facts.insert(Subject::claim("t", name), Fact::Claim(Box::new(claim.clone())));
        }
        // The watch selects volumes by this label.
        let managed = |v: &&PersistentVolume| v.metadata.labels.as_ref().is_some_and(|l| l.contains_key(MANAGED_BY_LABEL));
        if let Some(volume) = self.volume.as_ref().filter(managed) {
            view.facts.insert(Subject::volume("pv"), Fact::Volume(Box::new(volume.clone())));
        }
        view
    }

    pub(super) fn uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    fn read(&self, subject: &Subject) -> Option<Fact> {
        match subject {
            Subject::Pod { name, .. } => self.pods.get(name).map(|p| Fact::Pod(Box::new(p.clone()))),
            Subject::Claim { name, .. } => self.claims.get(name).map(|c| Fact::Claim(Box::new(c.clone()))),
            Subject::Secret { name, .. } => self.secrets.get(name).cloned().map(Fact::Uid),
            Subject::Volume { .. } | Subject::LiveVolume { .. } => self.volume.clone().map(|v| Fact::Volume(Box::new(v))),
            Subject::VolumesOfClaim { uid } => {
                let holds = |v: &&PersistentVolume| crate::resources::persistent_volume::claim_ref_uid(v) == Some(uid);
                Some(Fact::Names(self.volume.as_ref().filter(holds).map(|_| "pv".to_owned()).into_iter().collect()))
            }
            Subject::Node { .. } => {
                let state = if self.node_lost { "Unknown" } else { "True" };
                Some(Fact::Node(from(json!({"status": {"conditions": [{"type": "Ready", "status": state}]}}))))
            }
            Subject::Namespace { name } => Some(Fact::Namespace(from(
                json!({"metadata": {"name": name, "uid": "namespace-uid", "creationTimestamp": "2027-01-15T07:00:00Z"}}),
            ))),
            other => panic!("unexpected read: {other:?}"),
        }
    }

    pub(super) fn apply(&mut self, action: Action) -> Effect {
        let reads = matches!(action, Action::Read(_) | Action::ReadComputer);
        self.writes += u32::from(!reads);
        match action {
            Action::Read(subject) => {
                let fact = self.read(&subject);
                Effect::Learned(subject, fact.unwrap_or(Fact::Gone))
            }
            Action::ReadComputer => Effect::Computer(Some(Box::new(self.computer.clone()))),
            Action::AddFinalizer => {
                self.computer.metadata.finalizers = Some(vec![DELETION_FINALIZER.into()]);
                let mut effect = self.computer.clone();
                effect.metadata.finalizers.clone_from(&self.computer.metadata.finalizers);
                Effect::Computer(Some(Box::new(effect)))
            }
            Action::CreateRecord(record) | Action::SaveRecord(record) => {
                self.record = Some(*record.clone());
                Effect::Record(record)
            }
            Action::Create(object) => self.create(object),
            Action::Delete { subject: Subject::Pod { namespace, name }, uid } => {
                let pod = self.pods.get_mut(&name).filter(|p| p.metadata.uid.as_deref() == Some(&uid)).unwrap();
                pod.metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
                Effect::Learned(Subject::pod(&namespace, &name), Fact::Pod(Box::new(pod.clone())))
            }
            Action::Delete { subject: Subject::Secret { namespace, name }, uid } => {
                if self.secrets.get(&name) == Some(&uid) {
                    self.secrets.remove(&name);
                }
                Effect::Learned(Subject::secret(&namespace, &name), Fact::Accepted)
            }
            Action::Patch { subject, patch } => self.patch(subject, &patch),
            Action::Retain { volume, patch } => self.patch(Subject::volume(&volume), &patch),
            other => panic!("S8: unexpected action {other:?}"),
        }
    }

    pub(super) fn create(&mut self, object: Object) -> Effect {
        let recorded = &self.record.as_ref().expect("S5: a child before the record").spec.state.children;
        assert!(self.computer.metadata.finalizers.is_some(), "a child before the finalizer");
        let (claim, secret) = (recorded.claim_name.clone(), recorded.secret_name.clone());
        let pods: Vec<_> = recorded.pods.iter().map(|p| p.name.clone()).collect();
        let uid = self.uid();
        let metadata = match &object {
            Object::Claim(claim) => &claim.metadata,
            Object::Secret(secret) => &secret.metadata,
            Object::Machine(pod) => &from(pod["metadata"].clone()),
            Object::Pod(_) => panic!("the pod of an archive"),
        };
        let named = metadata.labels.as_ref().and_then(|labels| labels.get(NAME_LABEL)).map(String::as_str);
        assert_eq!(named, Some("c"), "`kubectl get -l {NAME_LABEL}=c` does not find it");
        match object {
            Object::Pod(_) => panic!("the pod of an archive"),
            Object::Machine(pod) => {
                let mut pod: Box<Pod> = Box::new(from(*pod));
                let name = pod.metadata.name.clone().unwrap();
                assert!(pods.contains(&name), "S5: a name that is not on record");
                pod.metadata.uid = Some(uid);
                self.pods.insert(name.clone(), *pod.clone());
                Effect::Learned(Subject::pod("t", &name), Fact::Pod(pod))
            }
            Object::Claim(mut new) => {
                assert_eq!(claim, new.metadata.name, "S5: a name that is not on record");
                new.metadata.uid = Some(uid);
                self.claims.insert(claim.clone().unwrap(), *new.clone());
                Effect::Learned(Subject::claim("t", &claim.unwrap()), Fact::Claim(new))
            }
            Object::Secret(new) => {
                assert_eq!(secret, new.metadata.name, "S5: a name that is not on record");
                // 409: the applier reads what has the name.
                if let Some(taken) = self.secrets.get(secret.as_ref().unwrap()) {
                    return Effect::Learned(Subject::secret("t", &secret.unwrap()), Fact::Uid(taken.clone()));
                }
                self.followed.extend(secret.clone().filter(|_| new.immutable != Some(true)));
                self.secrets.insert(secret.clone().unwrap(), uid.clone());
                Effect::Learned(Subject::secret("t", &secret.unwrap()), Fact::Created(uid))
            }
        }
    }

    pub(super) fn patch(&mut self, subject: Subject, patch: &json_patch::Patch) -> Effect {
        if let Subject::Pod { name, .. } = &subject {
            let mut value = serde_json::to_value(&self.pods[name]).unwrap();
            json_patch::patch(&mut value, patch).unwrap();
            let pod: Pod = from(value);
            self.pods.insert(name.clone(), pod.clone());
            return Effect::Learned(subject, Fact::Pod(Box::new(pod)));
        }
        let mut value = serde_json::to_value(self.volume.as_ref().unwrap()).unwrap();
        json_patch::patch(&mut value, patch).unwrap();
        self.volume = Some(from(value));
        Effect::Learned(subject, Fact::Volume(Box::new(self.volume.clone().unwrap())))
    }

    /// One step of the scheduler, the kubelet and the volume controller.
    pub(super) fn others(&mut self) {
        self.now += 20;
        let running = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "m", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": {"running": {}}}]});
        let ended = json!({"phase": "Failed", "containerStatuses": [{"name": "m", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]});
        let any = !self.pods.is_empty();
        for (name, claim) in &mut self.claims {
            if any && claim.status.is_none() {
                let uid = claim.metadata.uid.clone();
                let volume = self.volume.get_or_insert_with(|| from(json!({"metadata": {"name": "pv", "uid": "pv-uid", "resourceVersion": "1"}, "spec": {"persistentVolumeReclaimPolicy": "Delete", "claimRef": {"uid": uid, "namespace": "t", "name": name}}, "status": {"phase": "Bound"}})));
                if volume.spec.as_ref().unwrap().claim_ref.as_ref().unwrap().uid == uid {
                    claim.spec.as_mut().unwrap().volume_name = Some("pv".into());
                    claim.status = from(json!({"phase": "Bound"}));
                }
            }
        }
        for pod in self.pods.values_mut() {
            let stops = pod.metadata.deletion_timestamp.is_some();
            pod.spec.as_mut().unwrap().node_name = Some("n".into());
            pod.status = from(if stops { ended.clone() } else { running.clone() });
        }
        self.pods.retain(|_, p| p.metadata.deletion_timestamp.is_none() || p.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty()));
        let (used, volume) = (!self.pods.is_empty(), &mut self.volume);
        self.claims.retain(|_, c| c.metadata.deletion_timestamp.is_none() || used);
        let claims: Vec<_> = self.claims.values().filter_map(|c| c.metadata.uid.clone()).collect();
        if let Some(volume) = volume {
            let held = volume.spec.as_ref().unwrap().claim_ref.as_ref().unwrap().uid.as_ref().is_some_and(|u| claims.contains(u));
            volume.status = from(json!({"phase": if held { "Bound" } else { "Released" }}));
        }
    }

    /// Reconciles until nothing changes. `crash`: the request after which a reconcile is interrupted.
    pub(super) fn settle(&mut self, crash: Option<u32>) -> Plan {
        let mut requests = 0;
        let mut last = None;
        for _ in 0..60 {
            self.passes += 1;
            let mut view = self.view();
            loop {
                let current = plan(&view);
                let Next::Do(action) = current.next.clone() else {
                    last = Some(current);
                    break;
                };
                requests += 1;
                assert!(requests < 300, "it does not converge: {:?}", current.report);
                let effect = self.apply(action);
                if crash == Some(requests) {
                    break;
                }
                view.absorb(effect);
            }
            self.others();
            self.computer.status = None;
        }
        last.unwrap()
    }

    pub(super) fn state(&self) -> &RecordState {
        &self.record.as_ref().unwrap().spec.state
    }
}
