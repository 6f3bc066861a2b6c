//! The input of a plan. `observe` fills it from the caches at the start of a reconcile; the answers to the plan's own requests complete it.
//! A cache only proves that an object exists. Absence is never taken from a cache: it needs a live read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};

use super::action::{Effect, Fact, Subject};
use super::children::Child;
use super::report::Report;
use super::stray_pod;
use crate::archive::uploads::Upload;
use crate::archive::waiting_time::Waited;
use crate::archive::{ReadBack, Verification};
use crate::guards::{self, Guard};
use crate::resources::steps::DeletionStep;
use crate::resources::{Computer, ComputerClass, ComputerRecord, DeletionOverride, RecordPhase, SkippableStep, StepOutcome};
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Fresh;

/// The class that a computer names, or the default class.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ClassState {
    /// No class has that name, or no class is the default.
    #[default]
    Missing,
    /// It exists.
    Found(Box<ComputerClass>),
    /// More than one class is marked as the default.
    Ambiguous(Vec<String>),
}

/// What one reconcile knows about one computer.
#[derive(Clone)]
pub struct View {
    /// UID of the computer. Everything here belongs to this UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Computer. `None` in a plan: a live read found no object with this UID.
    pub computer: Option<Computer>,
    /// Its namespace is terminating.
    pub namespace_terminating: bool,
    /// Its record. `None` in a plan: a live read found none.
    pub record: Option<ComputerRecord>,
    /// Its class.
    pub class: ClassState,
    /// Overrides that name its UID.
    pub overrides: Vec<DeletionOverride>,
    /// What is known about other objects. No entry: unknown, a plan must read it.
    pub facts: BTreeMap<Subject, Fact>,
    /// Objects that this reconcile has read live.
    pub learned: BTreeSet<Subject>,
    /// How long its deletion has waited while no work on its archive was in progress.
    pub waited: Waited,
    /// What its archive pod has sent to this process. Only for what is shown.
    pub upload: Option<Upload>,
    /// How far the running check of its archive is. Only for what is shown.
    pub read_back: Option<ReadBack>,
    /// The state of its archive, if this reconcile has checked it.
    pub archive: Option<Verification>,
    /// The receipt that this reconcile has stored.
    pub receipt: Option<Vec<u8>>,
    /// In how long the Secret of its key is to be checked; zero: now. `None`: not by this reconcile.
    pub key_check_in: Option<Duration>,
    /// Reconciles of this computer that have failed in a row in this process.
    pub failures: u32,
    /// A live read in this reconcile has shown the finalizer.
    pub finalizer_confirmed: bool,
    /// Steps that an earlier reconcile of this process found finished with the same version of the record (see `memory`).
    pub passed: BTreeMap<DeletionStep, StepOutcome>,
    /// When each finished deletion step was first observed finished with this version of the record.
    pub times: BTreeMap<DeletionStep, Timestamp>,
    /// Pods that this process has created, with their UIDs, until it has seen a record with that UID.
    pub created: BTreeMap<Subject, String>,
    /// Settings.
    pub settings: Settings,
    /// Random data for names and keys.
    pub fresh: Fresh,
    /// The time of the reconcile.
    pub now: Timestamp,
}

impl View {
    /// The view of a computer of which only the identity is known.
    pub fn new(uid: &str, namespace: &str, name: &str, settings: Settings, fresh: Fresh, now: Timestamp) -> Self {
        Self {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            computer: None,
            namespace_terminating: false,
            record: None,
            class: ClassState::Missing,
            overrides: Vec::new(),
            facts: BTreeMap::new(),
            learned: BTreeSet::new(),
            waited: Waited::default(),
            upload: None,
            read_back: None,
            archive: None,
            receipt: None,
            key_check_in: None,
            failures: 0,
            finalizer_confirmed: false,
            passed: BTreeMap::new(),
            times: BTreeMap::new(),
            created: BTreeMap::new(),
            settings,
            fresh,
            now,
        }
    }

    /// Keeps the times that a plan has observed for the next one: the time at which a step finished must not depend on when it is recorded.
    pub fn remember(&mut self, report: &Report) {
        self.times.clone_from(&report.times);
    }

    /// Adds the answer to an action.
    pub fn absorb(&mut self, effect: Effect) {
        match effect {
            Effect::Learned(subject, fact) => {
                if let Fact::Namespace(namespace) = &fact {
                    self.namespace_terminating = terminating(namespace);
                }
                if let Subject::LiveVolume { name } = &subject {
                    self.facts.insert(Subject::volume(name), fact.clone());
                }
                self.created.retain(|created, uid| *created != subject || !stray_pod::is_settled(&fact, uid));
                self.learned.insert(subject.clone());
                self.facts.insert(subject, fact);
            }
            Effect::Created(subject, fact) => {
                if let Fact::Pod(pod) = &fact {
                    self.created.extend(pod.metadata.uid.clone().map(|uid| (subject.clone(), uid)));
                }
                self.absorb(Effect::Learned(subject, fact));
            }
            Effect::Computer(computer) => {
                self.computer = computer.map(|c| *c);
                self.finalizer_confirmed = self.computer.as_ref().is_some_and(has_finalizer);
            }
            // This operator wrote the new version, so it contains the steps that were finished with the previous one.
            Effect::Record(record) => {
                self.note_new_names(&record);
                self.record = Some(*record);
                self.forget_recorded();
                self.passed.clear();
                self.times.clear();
            }
            Effect::Overtaken(record) => {
                self.record = Some(*record);
                self.forget_recorded();
                self.passed.clear();
                self.times.clear();
                // Facts that were read before another writer changed the record are discarded.
                self.facts.clear();
                self.learned.clear();
                self.archive = None;
            }
            Effect::Archive(verification) => self.archive = Some(verification),
            Effect::ReceiptStored(bytes) => self.receipt = Some(bytes),
        }
    }

    /// Forgets the created pods whose UIDs the record has. Called whenever the record has changed, wherever it came from: while one of them is
    /// remembered, a record that is lost later would make it stray.
    pub fn forget_recorded(&mut self) {
        if let Some(record) = &self.record {
            self.created.retain(|_, uid| !stray_pod::is_recorded(record, uid));
        }
    }

    /// Names that this reconcile has generated and just recorded cannot exist yet: they count as absent and are not read.
    fn note_new_names(&mut self, saved: &ComputerRecord) {
        let (claim, pod) = (Child::Home.name(&self.fresh.suffix), Child::Machine.name(&self.fresh.suffix));
        let on_record = |record: Option<&ComputerRecord>| {
            let children = record.map(|r| &r.spec.state.children);
            let claimed = children.is_some_and(|c| c.claim_name.as_ref() == Some(&claim));
            (claimed, children.is_some_and(|c| c.pods.iter().any(|p| p.name == pod)))
        };
        let (before, after) = (on_record(self.record.as_ref()), on_record(Some(saved)));
        if after.0 && !before.0 {
            self.facts.insert(Subject::claim(&self.namespace, &claim), Fact::Gone);
        }
        if after.1 && !before.1 {
            self.facts.insert(Subject::pod(&self.namespace, &pod), Fact::Gone);
        }
    }

    /// Whether this reconcile has created or found a pod, claim or volume that the caches did not show at its start. They will show it, and a view
    /// like that of the start may then mean that it is gone again, or that the marks by which it is watched were removed.
    pub fn has_found_more_than(&self, start: &Self) -> bool {
        let watched = |fact: &Fact| matches!(fact, Fact::Pod(_) | Fact::Claim(_) | Fact::Volume(_));
        self.facts.iter().any(|(subject, fact)| watched(fact) && !start.facts.get(subject).is_some_and(watched))
    }

    /// Whether a live read of this process has shown that a subject does not exist, or that another object has its name.
    pub fn is_proved_absent(&self, subject: &Subject) -> bool {
        self.learned.contains(subject) && self.facts.get(subject) == Some(&Fact::Gone)
    }

    /// A live read of an earlier reconcile has shown that the child with this UID is gone. Another object that has its name since stays visible. A
    /// cache that shows it with that UID is stale, or the API server was restored from a backup: a live read decides.
    pub fn note_absent(&mut self, subject: Subject, uid: &str) {
        let there = match self.facts.get(&subject) {
            Some(Fact::Pod(pod)) => pod.metadata.uid.as_deref(),
            Some(Fact::Claim(claim)) => claim.metadata.uid.as_deref(),
            _ => None,
        };
        match there {
            _ if self.created.contains_key(&subject) => {}
            Some(there) if there == uid => {
                self.facts.remove(&subject);
            }
            Some(_) => {}
            None => {
                self.learned.insert(subject.clone());
                self.facts.insert(subject, Fact::Gone);
            }
        }
    }

    /// Whether the computer is being deleted: its deletionTimestamp, its namespace, or because it is gone (S2).
    pub fn deleting(&self) -> bool {
        self.namespace_terminating
            || self.computer.as_ref().is_none_or(|c| c.metadata.deletion_timestamp.is_some())
            || self.record.as_ref().is_some_and(|r| r.spec.state.deletion.is_some())
    }

    /// Whether the record is released, no stray pod is known, and the caches hold neither the Computer, nor a pod of its record, nor its custody
    /// claim: only the
    /// record's expiry is left. A create that timed out may succeed after the release, and the operator's finalizer would then keep that pod
    /// forever (S6).
    pub fn only_expiry_left(&self) -> bool {
        let released = self.record.as_ref().is_some_and(|r| r.spec.state.phase == RecordPhase::Released);
        released
            && self.created.is_empty()
            && self.computer.is_none()
            && !self.facts.iter().any(|(subject, fact)| match fact {
                Fact::Pod(_) => true,
                Fact::Claim(_) => matches!(subject, Subject::Claim { namespace, .. } if *namespace == self.settings.namespace),
                _ => false,
            })
    }

    /// The namespace, if it must be read live. The cache may hold a deleted namespace of the same name. A live read comes before its
    /// termination starts the deletion of a computer that no client has deleted (S4), or is recorded as the cause.
    pub fn unconfirmed(&self) -> Option<Subject> {
        let subject = Subject::Namespace { name: self.namespace.clone() };
        let begun = self.record.as_ref().is_some_and(|r| r.spec.state.deletion.is_some());
        (self.namespace_terminating && !begun && !self.facts.contains_key(&subject)).then_some(subject)
    }

    /// The pod with this name. `None`: unknown; `Some(None)`: gone.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Option<&Pod>> {
        match self.facts.get(&Subject::pod(namespace, name))? {
            Fact::Pod(pod) => Some(Some(pod)),
            Fact::Accepted => None,
            _ => Some(None),
        }
    }

    /// The claim with this name. `None`: unknown; `Some(None)`: gone.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<Option<&PersistentVolumeClaim>> {
        match self.facts.get(&Subject::claim(namespace, name))? {
            Fact::Claim(claim) => Some(Some(claim)),
            Fact::Accepted => None,
            _ => Some(None),
        }
    }

    /// The volume with this name. `None`: unknown; `Some(None)`: gone.
    pub fn volume(&self, name: &str) -> Option<Option<&PersistentVolume>> {
        match self.facts.get(&Subject::volume(name))? {
            Fact::Volume(volume) => Some(Some(volume)),
            _ => Some(None),
        }
    }

    /// The override of this computer that skips a step.
    pub fn skipped(&self, step: SkippableStep) -> Option<&DeletionOverride> {
        self.overrides.iter().find(|o| {
            let target = &o.spec.computer;
            let this = target.uid == self.uid && target.name == self.name && target.namespace == self.namespace;
            let this = this || !guards::on(Guard::OverrideTarget);
            this && o.spec.skip.contains(&step)
        })
    }

    /// Name of the custody claim in the operator's namespace.
    pub fn custody_claim_name(&self) -> String {
        format!("home-{}", self.uid)
    }

    /// Name of the archive pod of an attempt.
    pub fn archive_pod_name(&self, attempt: i32) -> String {
        format!("archive-{}-{attempt}", self.uid)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl View {
    /// The view of a computer `t/c` with UID `u`, of which nothing else is known.
    pub(crate) fn of(computer: serde_json::Value) -> Self {
        let fresh = Fresh { suffix: "s".into(), key: [0; 32] };
        let nothing = Self::new("u", "t", "c", Settings::default(), fresh, Timestamp::UNIX_EPOCH);
        Self { computer: Some(serde_json::from_value(computer).unwrap()), ..nothing }
    }
}

/// Whether a namespace is being deleted.
pub fn terminating(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_some() || phase == Some("Terminating")
}

/// Whether a Computer has the operator's finalizer.
pub fn has_finalizer(computer: &Computer) -> bool {
    computer.metadata.finalizers.as_ref().is_some_and(|f| f.iter().any(|f| f == crate::resources::DELETION_FINALIZER))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(children: &serde_json::Value) -> Box<ComputerRecord> {
        let spec = json!({"namespace": "t", "computer": "c", "state": {"children": children}});
        Box::new(serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": spec})).unwrap())
    }

    /// A name is known to be absent only in the reconcile that has generated it, and until an object is created with it.
    #[test]
    fn only_names_that_this_reconcile_has_generated_count_as_absent() {
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        view.absorb(Effect::Overtaken(record(&json!({"claimName": "home-s", "pods": [{"name": "machine-s"}]}))));
        assert!(view.facts.is_empty(), "the record of another writer");
        view.absorb(Effect::Learned(Subject::claim("t", "home-s"), Fact::Gone));
        view.absorb(Effect::Archive(Verification::Missing));
        view.absorb(Effect::Overtaken(record(&json!({"claimName": "home-s"}))));
        assert!(view.facts.is_empty() && view.learned.is_empty() && view.archive.is_none(), "S1: read before the other write");
        view.record = None;
        view.absorb(Effect::Record(record(&json!({"claimName": "home-s", "pods": [{"name": "machine-old"}]}))));
        assert_eq!((view.claim("t", "home-s"), view.pod("t", "machine-old")), (Some(None), None));
        let claim = Fact::Claim(Box::default());
        view.absorb(Effect::Learned(Subject::claim("t", "home-s"), claim));
        view.absorb(Effect::Record(record(&json!({"claimName": "home-s", "claimUid": "1", "pods": [{"name": "machine-s"}]}))));
        assert!(view.claim("t", "home-s").unwrap().is_some(), "it was created since");
        assert_eq!(view.pod("t", "machine-s"), Some(None));
        view.absorb(Effect::Learned(Subject::pod("t", "machine-s"), Fact::Pod(Box::default())));
        view.absorb(Effect::Record(record(&json!({"claimName": "home-s", "pods": [{"name": "machine-s", "uid": "2"}]}))));
        assert!(view.pod("t", "machine-s").unwrap().is_some(), "it was created since");
    }
}
