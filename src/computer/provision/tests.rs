//! The provisioning plan against a small model: it converges, stays silent afterwards (L6), survives a crash around any request,
//! and never makes anything for a deleting computer (S8).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::needless_pass_by_value)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde_json::json;

use crate::computer::action::{Action, Effect, Fact, Object, Subject};
use crate::computer::plan::{Next, Plan, plan};
use crate::computer::view::{ClassState, Fresh, Settings, View};
use crate::resources::*;

const UID: &str = "11111111-1111-1111-1111-111111111111";

fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[derive(Clone)]
struct World {
    now: i64,
    passes: u8,
    computer: Computer,
    record: Option<ComputerRecord>,
    pods: BTreeMap<String, Pod>,
    claims: BTreeMap<String, PersistentVolumeClaim>,
    secrets: BTreeMap<String, String>,
    volume: Option<PersistentVolume>,
    uids: u32,
    writes: u32,
    /// The user that the class's template asks for.
    user: Option<i64>,
    node_lost: bool,
}

impl World {
    fn new(spec: serde_json::Value) -> Self {
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
        }
    }

    fn view(&self) -> View {
        let class = from(
            json!({"metadata": {"name": "std"}, "spec": {"podTemplate": {"spec": {"securityContext": {"runAsUser": self.user}, "containers": [{"name": "m", "image": "i"}]}}},
            "status": {"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        );
        let mut view = View {
            uid: UID.into(),
            namespace: "t".into(),
            name: "c".into(),
            computer: Some(self.computer.clone()),
            namespace_terminating: false,
            record: self.record.clone(),
            class: ClassState::Found(Box::new(class)),
            overrides: Vec::new(),
            facts: BTreeMap::new(),
            archive: None,
            receipt: None,
            finalizer_confirmed: false,
            passed: Vec::new(),
            settings: Settings { namespace: "op".into(), ..Settings::default() },
            fresh: Fresh { suffix: format!("{:032x}", self.passes), key: [self.passes; 32] },
            now: Timestamp::from_second(self.now).unwrap(),
        };
        for (name, pod) in &self.pods {
            let mut cached = pod.clone();
            crate::runtime::strip::pod(&mut cached);
            view.facts.insert(Subject::pod("t", name), Fact::Pod(Box::new(cached)));
        }
        for (name, claim) in &self.claims {
            view.facts.insert(Subject::claim("t", name), Fact::Claim(Box::new(claim.clone())));
        }
        if let Some(volume) = self.volume.as_ref().filter(|v| v.metadata.labels.is_some()) {
            view.facts.insert(Subject::volume("pv"), Fact::Volume(Box::new(volume.clone())));
        }
        view
    }

    fn uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    fn apply(&mut self, action: Action) -> Effect {
        let reads = matches!(action, Action::Read(_) | Action::ReadComputer);
        self.writes += u32::from(!reads);
        match action {
            Action::Read(subject) => {
                let fact = match &subject {
                    Subject::Pod { name, .. } => self.pods.get(name).map(|p| Fact::Pod(Box::new(p.clone()))),
                    Subject::Claim { name, .. } => self.claims.get(name).map(|c| Fact::Claim(Box::new(c.clone()))),
                    Subject::Secret { name, .. } => self.secrets.get(name).cloned().map(Fact::Uid),
                    Subject::Volume { .. } => self.volume.clone().map(|v| Fact::Volume(Box::new(v))),
                    Subject::Node { .. } => {
                        let state = if self.node_lost { "Unknown" } else { "True" };
                        Some(Fact::Node(from(json!({"status": {"conditions": [{"type": "Ready", "status": state}]}}))))
                    }
                    other => panic!("not read here: {other:?}"),
                };
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
            Action::Patch { subject, patch } => self.patch(subject, &patch),
            other => panic!("S8 or worse: {other:?}"),
        }
    }

    fn create(&mut self, object: Object) -> Effect {
        let recorded = &self.record.as_ref().expect("S5: a child before the record").spec.state.children;
        assert!(self.computer.metadata.finalizers.is_some(), "a child before the finalizer");
        let (claim, secret) = (recorded.claim_name.clone(), recorded.secret_name.clone());
        let pods: Vec<_> = recorded.pods.iter().map(|p| p.name.clone()).collect();
        let uid = self.uid();
        match object {
            Object::Pod(mut pod) => {
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
                self.secrets.insert(secret.clone().unwrap(), uid.clone());
                Effect::Learned(Subject::secret("t", &secret.unwrap()), Fact::Uid(uid))
            }
        }
    }

    fn patch(&mut self, subject: Subject, patch: &json_patch::Patch) -> Effect {
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

    /// Scheduler, kubelet and the volume controller do their part.
    fn others(&mut self) {
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

    /// Passes until nothing moves; `crash`: the request after which a pass is cut short.
    fn settle(&mut self, crash: Option<u32>) -> Plan {
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
                assert!(requests < 300, "it does not settle: {:?}", current.report);
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

    fn state(&self) -> &ComputerRecordStatus {
        &self.record.as_ref().unwrap().spec.state
    }
}

#[test]
fn it_converges_within_the_budget_and_is_silent_afterwards() {
    let mut world = World::new(json!({}));
    let end = world.settle(None);
    assert_eq!((end.next, end.report.phase), (Next::Settled, Some(Phase::Active)));
    assert!(world.writes <= 8, "{} writes", world.writes);
    assert_eq!(world.state().credential, CredentialState::Live);
    assert_eq!(world.volume.as_ref().unwrap().spec.as_ref().unwrap().persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
    let before = world.writes;
    world.settle(None);
    assert_eq!(world.writes, before, "L6");
}

#[test]
fn a_crash_after_any_request_leaves_one_of_each_and_nothing_unrecorded() {
    for spec in [json!({}), json!({"provider": "BYOM"})] {
        for n in 1..30 {
            let mut world = World::new(spec.clone());
            let end = world.settle(Some(n));
            assert_eq!(end.report.phase, Some(Phase::Active), "crash {n}");
            let children = &world.state().children;
            let managed = usize::from(spec == json!({}));
            assert_eq!((world.pods.len(), world.claims.len(), world.secrets.len()), (managed, managed, 1), "crash {n}");
            assert_eq!(children.secret_uid.as_ref(), world.secrets.values().next(), "crash {n}");
            assert_eq!(world.state().credential, CredentialState::Live, "crash {n}");
            let user = world.record.as_ref().unwrap().spec.snapshot.run_as_user;
            assert_eq!(user, (managed == 1).then_some(1000), "S1: the archive would run as another user; crash {n}");
        }
    }
}

#[test]
fn suspend_stops_the_pod_and_resume_makes_another_on_the_same_volume() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let first = world.pods.keys().next().unwrap().clone();
    world.computer.spec.suspended = true;
    assert_eq!(world.settle(None).report.phase, Some(Phase::Suspended));
    assert!(world.pods.is_empty() && world.claims.len() == 1);
    assert_eq!(world.state().credential, CredentialState::Live, "a suspended computer keeps its key");
    world.computer.spec.suspended = false;
    assert_eq!(world.settle(None).report.phase, Some(Phase::Active));
    assert_ne!(world.pods.keys().next().unwrap(), &first);
    assert_eq!(world.state().children.pods.len(), 1);
}

/// The archive runs as the user that the machine ran as last, not as the one of the class's first days.
#[test]
fn a_pod_made_from_a_changed_class_is_archived_as_its_own_user() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let user = |world: &World| world.record.as_ref().unwrap().spec.snapshot.run_as_user;
    assert_eq!(user(&world), Some(1000));
    world.user = Some(4242);
    world.settle(None);
    assert_eq!(user(&world), Some(1000), "the pod that runs is still the old one");
    world.computer.spec.suspended = true;
    world.settle(None);
    world.computer.spec.suspended = false;
    world.settle(None);
    assert_eq!(user(&world), Some(4242), "S1: the archive could not read what the new user wrote");
}

#[test]
fn a_failed_or_deleted_pod_is_replaced() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let first = world.pods.keys().next().unwrap().clone();
    world.pods.get_mut(&first).unwrap().metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
    assert_eq!(world.settle(None).report.phase, Some(Phase::Active));
    assert!(!world.pods.contains_key(&first) && world.pods.len() == 1);
}

/// S1: the containers of a pod that was stripped and forced away go on on a node that does not answer. A deletion must still wait for it.
#[test]
fn a_pod_that_vanished_from_a_lost_node_stays_on_record() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let first = world.state().children.pods[0].clone();
    world.node_lost = true;
    world.pods.clear();
    world.settle(None);
    let names = |world: &World| world.state().children.pods.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert!(world.now - 1_800_000_000 > 1200 && names(&world).len() == 2 && names(&world)[0] == first.name, "{:?}", names(&world));
    world.node_lost = false;
    world.settle(None);
    assert!(names(&world).len() == 1 && names(&world)[0] != first.name, "{:?}", names(&world));
}

#[test]
fn a_claim_deleted_by_hand_is_made_again_around_the_same_volume() {
    let mut world = World::new(json!({}));
    world.settle(None);
    let (claim, pod) = (world.claims.keys().next().unwrap().clone(), world.pods.keys().next().unwrap().clone());
    world.claims.get_mut(&claim).unwrap().metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
    let told = world.settle(None);
    assert_eq!(told.report.blocker.map(|b| b.reason), Some("HomeClaimDeleted"));
    world.pods.get_mut(&pod).unwrap().metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
    assert_eq!(world.settle(None).report.phase, Some(Phase::Active));
    assert!(!world.claims.contains_key(&claim) && world.claims.len() == 1);
    let holder = world.volume.as_ref().unwrap().spec.as_ref().unwrap().claim_ref.as_ref().unwrap().uid.clone();
    assert_eq!(holder, world.claims.values().next().unwrap().metadata.uid);
}

#[test]
fn the_end_of_a_time_to_live_is_a_deletion_and_protection_outlasts_it() {
    let mut world = World::new(json!({"timeToLiveSeconds": 60}));
    world.now += 1_000_000_000;
    assert_eq!(plan(&world.view()).next, Next::Do(Action::DeleteComputer));
    world.computer.spec.deletion_protection = true;
    assert_ne!(plan(&world.view()).next, Next::Do(Action::DeleteComputer));
}

#[test]
fn a_deleting_computer_never_gets_a_finalizer_or_a_child() {
    let mut world = World::new(json!({}));
    world.computer.metadata.deletion_timestamp = Some(from(json!("2027-01-15T08:00:00Z")));
    let forbidden = |action: &Action| matches!(action, Action::AddFinalizer | Action::Create(_));
    assert!(!matches!(plan(&world.view()).next, Next::Do(a) if forbidden(&a)), "S8");
}

/// A tenant may be able to write the status of a Computer. Of a volume it proves nothing (S5).
#[test]
fn a_forged_status_gets_no_volume_of_somebody_else() {
    let mut world = World::new(json!({}));
    world.volume = from(
        json!({"metadata": {"name": "pv", "uid": "pv-uid", "resourceVersion": "1", "labels": {UID_LABEL: "victim", MANAGED_BY_LABEL: MANAGER}, "annotations": {ORIGINAL_POLICY_ANNOTATION: "Delete"}},
        "spec": {"persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "victim", "name": "home", "uid": "victims-claim"}}, "status": {"phase": "Released"}}),
    );
    let before = world.volume.clone();
    world.computer.status = from(
        json!({"children": {"claimName": "mine", "claimUid": "victims-claim", "volume": {"name": "pv", "uid": "pv-uid", "originalReclaimPolicy": "Delete"}}}),
    );
    world.settle(None);
    assert_eq!(world.volume, before, "S5");
}

/// L2: the hash of the key went with the record, so the key is dead; that is no computer that can be used.
#[test]
fn a_computer_whose_record_was_lost_does_not_claim_to_be_ready() {
    for spec in [json!({}), json!({"provider": "BYOM"})] {
        let mut world = World::new(spec);
        world.settle(None);
        let children = world.record.take().unwrap().spec.state.children;
        world.computer.status = from(json!({"children": children}));
        let end = world.settle(None);
        assert_eq!(end.report.blocker.map(|b| b.reason), Some("KeyLost"));
        assert!(end.report.ready.is_some_and(|(ready, ..)| !ready));
    }
}

/// L2: a class of which nothing is known for long is not waited for in silence.
#[test]
fn a_class_that_nobody_has_checked_is_told_about() {
    let world = World::new(json!({}));
    let mut view = world.view();
    view.computer.as_mut().unwrap().metadata.finalizers = Some(vec![DELETION_FINALIZER.into()]);
    view.finalizer_confirmed = true;
    let ClassState::Found(class) = &mut view.class else { panic!("a class") };
    class.status = None;
    for (created, reason) in [("2027-01-15T07:59:50Z", None), ("2027-01-15T07:00:00Z", Some("ClassNotChecked"))] {
        let ClassState::Found(class) = &mut view.class else { panic!("a class") };
        class.metadata.creation_timestamp = from(json!(created));
        assert_eq!(plan(&view).report.blocker.map(|b| b.reason), reason);
    }
}
