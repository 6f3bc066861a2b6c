//! Everything a plan may look at. Filled from caches at the start of a pass (`observe`) and by the answers to the plan's own
//! requests during it. A cache only ever proves that something is there; that something is gone is learned live.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};

use super::action::{Effect, Fact, Subject};
use super::children::Child;
use super::report::Report;
use crate::archive::Verification;
use crate::archive::waiting_time::Waited;
use crate::guards::{self, Guard};
use crate::resources::steps::DeletionStep;
use crate::resources::{Computer, ComputerClass, ComputerRecord, DeletionOverride, RecordPhase, SkippableStep, StepOutcome};
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Fresh;

/// The class that a computer names, or the default class.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ClassState {
    /// There is none of that name, or no default class.
    #[default]
    Missing,
    /// It exists.
    Found(Box<ComputerClass>),
    /// More than one class is marked as the default.
    Ambiguous(Vec<String>),
}

/// What one pass knows of one computer.
#[derive(Clone)]
pub struct View {
    /// UID of the computer: the identity of everything here.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Computer; `None`: a live read found it gone or under another UID.
    pub computer: Option<Computer>,
    /// Its namespace is Terminating or gone.
    pub namespace_terminating: bool,
    /// Its record. `None`: a live read found none.
    pub record: Option<ComputerRecord>,
    /// Its class.
    pub class: ClassState,
    /// Overrides that name its UID.
    pub overrides: Vec<DeletionOverride>,
    /// What is known of other objects. No entry: not known, to be read.
    pub facts: BTreeMap<Subject, Fact>,
    /// Objects that a live answer has shown in this pass.
    pub learned: BTreeSet<Subject>,
    /// How long its deletion has waited while nothing worked on its archive.
    pub waited: Waited,
    /// How its archive stands, if asked in this pass.
    pub archive: Option<Verification>,
    /// The receipt put to the store in this pass.
    pub receipt: Option<Vec<u8>>,
    /// The finalizer was seen by a live read in this pass.
    pub finalizer_confirmed: bool,
    /// Steps that an earlier pass of this process has seen finished on this very version of the record (see `memory`).
    pub passed: BTreeMap<DeletionStep, StepOutcome>,
    /// When each finished deletion step was first seen finished, on this very version of the record.
    pub times: BTreeMap<DeletionStep, Timestamp>,
    /// Settings.
    pub settings: Settings,
    /// Random material.
    pub fresh: Fresh,
    /// The time of the pass.
    pub now: Timestamp,
}

impl View {
    /// Of a computer of which nothing is known but its identity.
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
            archive: None,
            receipt: None,
            finalizer_confirmed: false,
            passed: BTreeMap::new(),
            times: BTreeMap::new(),
            settings,
            fresh,
            now,
        }
    }

    /// Keeps what a plan has seen, for the next one: when a step was finished must not depend on when that is written down.
    pub fn remember(&mut self, report: &Report) {
        self.times.clone_from(&report.times);
    }

    /// Takes in the answer to an action.
    pub fn absorb(&mut self, effect: Effect) {
        match effect {
            Effect::Learned(subject, fact) => {
                if let Fact::Namespace(namespace) = &fact {
                    self.namespace_terminating = terminating(namespace);
                }
                if let Subject::LiveVolume { name } = &subject {
                    self.facts.insert(Subject::volume(name), fact.clone());
                }
                self.learned.insert(subject.clone());
                self.facts.insert(subject, fact);
            }
            Effect::Computer(computer) => {
                self.computer = computer.map(|c| *c);
                self.finalizer_confirmed = self.computer.as_ref().is_some_and(has_finalizer);
            }
            // What was finished on the version before stands in the new one, if we wrote it ourselves.
            Effect::Record(record) => {
                self.drawn(&record);
                self.record = Some(*record);
                self.passed.clear();
                self.times.clear();
            }
            Effect::Overtaken(record) => {
                self.record = Some(*record);
                self.passed.clear();
                self.times.clear();
                // What was learned before another writer changed the record is not held against what it says now.
                self.facts.clear();
                self.learned.clear();
                self.archive = None;
            }
            Effect::Archive(verification) => self.archive = Some(verification),
            Effect::ReceiptStored(bytes) => self.receipt = Some(bytes),
        }
    }

    /// Names that this pass has drawn, and has just put on record, are nobody's yet: they need not be looked for.
    fn drawn(&mut self, saved: &ComputerRecord) {
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

    /// Whether the computer is being deleted: its deletionTimestamp, its namespace, or because it is gone (S2).
    pub fn deleting(&self) -> bool {
        self.namespace_terminating
            || self.computer.as_ref().is_none_or(|c| c.metadata.deletion_timestamp.is_some())
            || self.record.as_ref().is_some_and(|r| r.spec.state.deletion.is_some() && guards::on(Guard::NoWayBack))
    }

    /// Whether the record is released and the caches hold neither the Computer, nor a pod of its record, nor its custody claim: nothing is left to be done
    /// but expiry. A create that was given up may come true after the release; our own finalizer would hold that pod for ever (S6).
    pub fn settled(&self) -> bool {
        let released = self.record.as_ref().is_some_and(|r| r.spec.state.phase == RecordPhase::Released);
        released
            && self.computer.is_none()
            && !self.facts.iter().any(|(subject, fact)| match fact {
                Fact::Pod(_) => true,
                Fact::Claim(_) => matches!(subject, Subject::Claim { namespace, .. } if *namespace == self.settings.namespace),
                _ => false,
            })
    }

    /// A namespace of the same name that is gone by now may be all that the cache knows. Before its end becomes the end of a
    /// computer that nobody has deleted (S4), or the cause on record, it is looked at live.
    pub fn unconfirmed(&self) -> Option<Subject> {
        let subject = Subject::Namespace { name: self.namespace.clone() };
        let begun = self.record.as_ref().is_some_and(|r| r.spec.state.deletion.is_some());
        (self.namespace_terminating && !begun && !self.facts.contains_key(&subject)).then_some(subject)
    }

    /// A pod under this name: `None` not known, `Some(None)` gone.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Option<&Pod>> {
        match self.facts.get(&Subject::pod(namespace, name))? {
            Fact::Pod(pod) => Some(Some(pod)),
            Fact::Accepted => None,
            _ => Some(None),
        }
    }

    /// A claim under this name: `None` not known, `Some(None)` gone.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<Option<&PersistentVolumeClaim>> {
        match self.facts.get(&Subject::claim(namespace, name))? {
            Fact::Claim(claim) => Some(Some(claim)),
            Fact::Accepted => None,
            _ => Some(None),
        }
    }

    /// A volume: `None` not known, `Some(None)` gone.
    pub fn volume(&self, name: &str) -> Option<Option<&PersistentVolume>> {
        match self.facts.get(&Subject::volume(name))? {
            Fact::Volume(volume) => Some(Some(volume)),
            _ => Some(None),
        }
    }

    /// The override that leaves a step out, if an admin has decided so.
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
    /// Of a computer `t/c` of UID `u`, of which nothing else is known.
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

/// Whether a Computer carries our finalizer.
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

    /// A name is only known to be nobody's in the pass that has drawn it, and until something is made under it.
    #[test]
    fn only_names_that_this_pass_has_drawn_are_nobodys() {
        let mut view = View::of(json!({"metadata": {"name": "c", "namespace": "t", "uid": "u"}, "spec": {}}));
        view.absorb(Effect::Overtaken(record(&json!({"claimName": "home-s", "pods": [{"name": "machine-s"}]}))));
        assert!(view.facts.is_empty(), "somebody else's record");
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
        assert!(view.claim("t", "home-s").unwrap().is_some(), "it was made since");
        assert_eq!(view.pod("t", "machine-s"), Some(None));
        view.absorb(Effect::Learned(Subject::pod("t", "machine-s"), Fact::Pod(Box::default())));
        view.absorb(Effect::Record(record(&json!({"claimName": "home-s", "pods": [{"name": "machine-s", "uid": "2"}]}))));
        assert!(view.pod("t", "machine-s").unwrap().is_some(), "it was made since");
    }
}
