//! Fills a view from the caches. A cache proves that an object exists, never that it is gone. Objects that the caches do not hold stay
//! unknown, and the plan reads them live when it needs them.

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::action::{Fact, Subject};
use super::view::{ClassState, View};
use crate::guards::{self, Guard};
use crate::resources::{Computer, ComputerRecord, DEFAULT_CLASS_ANNOTATION, DeletionOverride};
use crate::runtime::caches::Caches;
use crate::runtime::settings::Settings;
use crate::runtime::time_and_random::Sources;

/// What the caches know about the computer with this UID. `None`: they hold neither its Computer nor its record.
pub fn observe(caches: &Caches, settings: &Settings, uid: &str, sources: &Sources) -> Option<View> {
    let computer = caches.computer(uid);
    let record = caches.records.get(&ObjectRef::new(uid).within(&settings.namespace)).map(|r| (*r).clone());
    let (namespace, name) = match (&computer, &record) {
        (Some(c), _) => (c.namespace().unwrap_or_default(), c.name_any()),
        (None, Some(r)) => (r.spec.namespace.clone(), r.spec.computer.clone()),
        (None, None) => return None,
    };
    let mut view = View::new(uid, &namespace, &name, settings.clone(), sources.fresh(), sources.now());
    view.namespace_terminating = terminating(caches, &namespace);
    view.class = class(caches, computer.as_deref(), record.as_ref());
    view.computer = computer.map(|c| (*c).clone());
    view.record = record;
    let concerns = |o: &DeletionOverride| o.spec.computer.uid == uid || !guards::on(Guard::OverrideTarget);
    view.overrides = caches.overrides.state().iter().filter(|o| concerns(o)).map(|o| (**o).clone()).collect();
    cached_facts(caches, &mut view);
    Some(view)
}

/// Replaces the class by that of the record, once a record is known that the cache did not have: the computer keeps the class that it was created
/// with, whatever the default is now.
pub fn follow_record(caches: &Caches, view: &mut View) {
    let named = view.record.as_ref().and_then(|record| record.spec.class_name.as_deref());
    let known = if let ClassState::Found(class) = &view.class { class.metadata.name.as_deref() } else { None };
    if named.is_some() && named != known {
        view.class = class(caches, view.computer.as_ref(), view.record.as_ref());
    }
}

fn terminating(caches: &Caches, namespace: &str) -> bool {
    caches.namespaces.get(&ObjectRef::new(namespace)).is_some_and(|n| super::view::terminating(&n))
}

fn class(caches: &Caches, computer: Option<&Computer>, record: Option<&ComputerRecord>) -> ClassState {
    let named = record.and_then(|r| r.spec.class_name.clone()).or_else(|| computer.and_then(|c| c.spec.class_name.clone()));
    if let Some(name) = named {
        return caches.classes.get(&ObjectRef::new(&name)).map_or(ClassState::Missing, |c| ClassState::Found(Box::new((*c).clone())));
    }
    let is_default = |c: &crate::resources::ComputerClass| c.annotations().get(DEFAULT_CLASS_ANNOTATION).is_some_and(|v| v == "true");
    let defaults: Vec<_> = caches.classes.state().into_iter().filter(|c| is_default(c)).collect();
    match defaults.as_slice() {
        [] => ClassState::Missing,
        [one] => ClassState::Found(Box::new((**one).clone())),
        many => ClassState::Ambiguous(many.iter().map(|c| c.name_any()).collect()),
    }
}

/// How many earlier archive attempts are searched for pods: another leader may have created such a pod from a stale record (S10).
const EARLIER: i32 = 5;

/// The children and custody objects that the record names and the caches hold.
fn cached_facts(caches: &Caches, view: &mut View) {
    let Some(record) = view.record.clone() else { return };
    let children = &record.spec.state.children;
    let own = view.settings.namespace.clone();
    let tenant = record.spec.namespace.clone();
    let mut pods: Vec<(String, String)> = children.pods.iter().map(|p| (tenant.clone(), p.name.clone())).collect();
    let mut claims: Vec<(String, String)> = children.claim_name.iter().map(|n| (tenant.clone(), n.clone())).collect();
    if let Some(deletion) = &record.spec.state.deletion {
        let attempt = deletion.custody.as_ref().map_or(1, |c| c.attempt.max(1));
        pods.extend((attempt.saturating_sub(EARLIER).max(1)..=attempt).map(|n| (own.clone(), view.archive_pod_name(n))));
        claims.push((own, view.custody_claim_name()));
    }
    for (namespace, name) in pods {
        if let Some(pod) = caches.pods.get(&ObjectRef::new(&name).within(&namespace)) {
            view.facts.insert(Subject::pod(&namespace, &name), Fact::Pod(Box::new((*pod).clone())));
        }
    }
    for (namespace, name) in claims {
        if let Some(claim) = caches.claims.get(&ObjectRef::new(&name).within(&namespace)) {
            view.facts.insert(Subject::claim(&namespace, &name), Fact::Claim(Box::new((*claim).clone())));
        }
    }
    if let Some(volume) = children.volume.as_ref().and_then(|v| caches.volumes.get(&ObjectRef::new(&v.name))) {
        view.facts.insert(Subject::volume(&volume.name_any()), Fact::Volume(Box::new((*volume).clone())));
    }
}
