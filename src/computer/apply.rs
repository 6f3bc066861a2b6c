//! Performs one action: one request, fenced, with a timeout. The only place that writes for a computer.
//!
//! An unknown outcome is an error, never a success. `Gone` is only ever said after a 404 or when another UID stands there.

use std::sync::Arc;

use either::Either;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fmt::Debug;

use super::action::{Action, Effect, Fact, Object, Subject};
use super::view::View;
use crate::archive::Archives;
use crate::guards::{self, Guard};
use crate::resources::{Computer, ComputerRecord, DELETION_FINALIZER, MANAGER};
use crate::runtime::client::{CallError, ErrorClass, call, classify};

mod lists;
#[cfg(test)]
mod tests;

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or its answer is unknown.
    #[error("{what}: {source}")]
    Call {
        /// The request in words.
        what: String,
        /// The failure.
        source: CallError,
    },
    /// The archive store failed.
    #[error("archive store: {0}")]
    Store(String),
    /// What was to be changed changed meanwhile: plan again.
    #[error("{0} changed meanwhile")]
    Conflict(String),
    /// A request succeeds again and again, and its change is not in the answer.
    #[error(
        "the request to {0} succeeds, but the change is not in the API server's answer: a mutating webhook or policy removes it. Exclude this \
         operator's requests from it"
    )]
    Undone(String),
}

impl Error {
    /// Class of the failure, for conditions, metrics and backoff.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Call { source, .. } => classify(source),
            Self::Store(_) => ErrorClass::Transient,
            Self::Conflict(_) => ErrorClass::Conflict,
            Self::Undone(_) => ErrorClass::Invalid,
        }
    }

    /// Whether the API server works and has refused the request: a missing right, a quota, a policy, an invalid object.
    pub fn refused(&self) -> bool {
        matches!(self, Self::Call { .. }) && matches!(self.class(), ErrorClass::Forbidden | ErrorClass::Invalid)
    }

    /// How long the API server asks to wait before the next try.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        if let Self::Call { source, .. } = self { source.retry_after() } else { None }
    }
}

/// Performs actions.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    archives: Arc<Archives>,
    namespace: String,
}

/// A live answer: the object, or that it is gone.
type Found<K> = Result<Option<K>, Error>;

impl Applier {
    /// `namespace`: the operator's.
    pub fn new(client: Client, archives: Arc<Archives>, namespace: String) -> Self {
        Self { client, archives, namespace }
    }

    /// The archives.
    pub fn archives(&self) -> &Archives {
        &self.archives
    }

    /// Performs one action for the computer of this view.
    pub async fn apply(&self, action: Action, view: &View) -> Result<Effect, Error> {
        match action {
            Action::Read(subject) => self.read(subject).await,
            Action::ReadComputer => self.read_computer(view).await,
            Action::AddFinalizer => self.add_finalizer(view).await,
            Action::DeleteComputer => self.delete_computer(view).await,
            Action::ReleaseFinalizer => self.release_finalizer(view).await,
            Action::CreateRecord(record) => self.create_record(*record).await,
            Action::SaveRecord(record) => self.save_record(*record).await,
            Action::Create(object) => self.create(object).await,
            Action::Delete { subject, uid } => self.delete(subject, &precondition(&uid)).await,
            Action::Remove { subject, uid } => self.delete(subject, &precondition(&uid).grace_period(0)).await,
            Action::Patch { subject, patch } => self.patch(subject, patch).await,
            Action::CheckArchive => Ok(Effect::Archive(self.archives.check(&view.uid, &super::deletion::custody::origin(view)))),
            Action::PutReceipt(bytes) => self.put_receipt(&view.uid, bytes).await,
        }
    }

    fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn read(&self, subject: Subject) -> Result<Effect, Error> {
        let what = format!("reading {}", subject.describe());
        let fact = match &subject {
            Subject::Pod { namespace, name } => get(&self.namespaced::<Pod>(namespace), name, &what).await?.map(|p| Fact::Pod(Box::new(p))),
            Subject::Claim { namespace, name } => {
                get(&self.namespaced::<PersistentVolumeClaim>(namespace), name, &what).await?.map(|c| Fact::Claim(Box::new(c)))
            }
            Subject::Secret { namespace, name } => self.secret_uid(namespace, name, &what).await?.map(Fact::Uid),
            Subject::Volume { name } | Subject::LiveVolume { name } => {
                get(&Api::<PersistentVolume>::all(self.client.clone()), name, &what).await?.map(|v| Fact::Volume(Box::new(v)))
            }
            Subject::Node { name } => get(&Api::<Node>::all(self.client.clone()), name, &what).await?.map(|n| Fact::Node(Box::new(n))),
            Subject::Namespace { name } => {
                get(&Api::<Namespace>::all(self.client.clone()), name, &what).await?.map(|n| Fact::Namespace(Box::new(n)))
            }
            Subject::ClaimUsers { namespace, claim } => Some(Fact::Names(self.claim_users(namespace, claim, &what).await?)),
            Subject::VolumesOfClaim { uid } => Some(Fact::Names(self.volumes_of_claim(uid, &what).await?)),
            Subject::Attachments { volume } => Some(Fact::Names(self.attachments(volume, &what).await?)),
        };
        Ok(Effect::Learned(subject, fact.unwrap_or(Fact::Gone)))
    }

    /// UID of a Secret that we may not read: what a DELETE would meet (DESIGN.md 4.8).
    async fn secret_uid(&self, namespace: &str, name: &str, what: &str) -> Found<String> {
        let params = DeleteParams { dry_run: true, ..DeleteParams::default() };
        let api = self.namespaced::<Secret>(namespace);
        let answer = optional(call(api.delete(name, &params)).await, what)?;
        Ok(answer.and_then(|a| match a {
            Either::Left(secret) => secret.metadata.uid,
            Either::Right(status) => status.details.map(|d| d.uid),
        }))
    }

    async fn read_computer(&self, view: &View) -> Result<Effect, Error> {
        let found = get(&self.namespaced::<Computer>(&view.namespace), &view.name, "reading the Computer").await?;
        Ok(Effect::Computer(found.filter(|c| c.metadata.uid.as_deref() == Some(&view.uid)).map(Box::new)))
    }

    async fn add_finalizer(&self, view: &View) -> Result<Effect, Error> {
        let Some(computer) = &view.computer else { return Ok(Effect::Computer(None)) };
        let value = match &computer.metadata.finalizers {
            Some(f) if !f.is_empty() => json!({"op": "add", "path": "/metadata/finalizers/-", "value": DELETION_FINALIZER}),
            _ => json!({"op": "add", "path": "/metadata/finalizers", "value": [DELETION_FINALIZER]}),
        };
        self.patch_computer(view, computer, value).await
    }

    async fn release_finalizer(&self, view: &View) -> Result<Effect, Error> {
        let Some(computer) = &view.computer else { return Ok(Effect::Computer(None)) };
        let finalizers = computer.metadata.finalizers.as_deref().unwrap_or_default();
        let Some(index) = finalizers.iter().position(|f| f == DELETION_FINALIZER) else {
            return Ok(Effect::Computer(Some(Box::new(computer.clone()))));
        };
        self.patch_computer(view, computer, json!({"op": "remove", "path": format!("/metadata/finalizers/{index}")})).await
    }

    /// Fenced by UID and resourceVersion: kube's own `finalizer()` tests neither.
    async fn patch_computer(&self, view: &View, computer: &Computer, operation: serde_json::Value) -> Result<Effect, Error> {
        let fence = [
            json!({"op": "test", "path": "/metadata/uid", "value": view.uid}),
            json!({"op": "test", "path": "/metadata/resourceVersion", "value": computer.metadata.resource_version}),
        ];
        let fence = fence.into_iter().filter(|_| guards::on(Guard::FinalizerFence));
        let patch = crate::runtime::patch::patch(&fence.chain([operation]).collect::<Vec<_>>());
        let api = self.namespaced::<Computer>(&view.namespace);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match call(api.patch(&view.name, &params, &Patch::<()>::Json(patch))).await {
            Ok(computer) => Ok(Effect::Computer(Some(Box::new(computer)))),
            Err(source) => match classify(&source) {
                ErrorClass::NotFound => Ok(Effect::Computer(None)),
                // The cache was behind, or somebody wrote at the same time: look at the live object.
                ErrorClass::Conflict | ErrorClass::Invalid => self.read_computer(view).await.and_then(|e| unchanged(computer, e, source)),
                _ => Err(Error::Call { what: CHANGING_FINALIZER.to_owned(), source }),
            },
        }
    }

    async fn delete_computer(&self, view: &View) -> Result<Effect, Error> {
        let api = self.namespaced::<Computer>(&view.namespace);
        match call(api.delete(&view.name, &deletion_of(view))).await {
            Ok(Either::Left(computer)) => Ok(Effect::Computer(Some(Box::new(computer)))),
            Ok(Either::Right(_)) => self.read_computer(view).await,
            Err(source) => match classify(&source) {
                ErrorClass::NotFound => self.read_computer(view).await,
                // It was changed meanwhile, and may be meant to live on: it is planned again on what is there.
                ErrorClass::Conflict => match (&view.computer, self.read_computer(view).await?) {
                    (Some(seen), found) => unchanged(seen, found, source),
                    (None, found) => Ok(found),
                },
                _ => Err(Error::Call { what: "deleting the Computer".to_owned(), source }),
            },
        }
    }

    async fn create_record(&self, record: ComputerRecord) -> Result<Effect, Error> {
        let api = self.namespaced::<ComputerRecord>(&self.namespace);
        match call(api.create(&PostParams::default(), &record)).await {
            Ok(created) => Ok(Effect::Record(Box::new(created))),
            Err(source) if classify(&source) == ErrorClass::Conflict => self.read_record(&record).await,
            Err(source) => Err(Error::Call { what: "creating the ComputerRecord".to_owned(), source }),
        }
    }

    async fn save_record(&self, mut record: ComputerRecord) -> Result<Effect, Error> {
        if !guards::on(Guard::RecordVersion) {
            record.metadata.resource_version = None;
        }
        let api = self.namespaced::<ComputerRecord>(&self.namespace);
        let name = record.metadata.name.clone().unwrap_or_default();
        match call(api.replace(&name, &PostParams::default(), &record)).await {
            Ok(saved) => Ok(Effect::Record(Box::new(saved))),
            Err(source) if classify(&source) == ErrorClass::Conflict => self.read_record(&record).await,
            Err(source) => Err(Error::Call { what: "saving the ComputerRecord".to_owned(), source }),
        }
    }

    /// The record of a computer, live.
    ///
    /// # Errors
    /// When the answer is unknown.
    pub async fn find_record(&self, uid: &str) -> Found<ComputerRecord> {
        get(&self.namespaced::<ComputerRecord>(&self.namespace), uid, "reading the ComputerRecord").await
    }

    async fn read_record(&self, record: &ComputerRecord) -> Result<Effect, Error> {
        let name = record.metadata.name.clone().unwrap_or_default();
        match get(&self.namespaced::<ComputerRecord>(&self.namespace), &name, "reading the ComputerRecord").await? {
            Some(found) => Ok(Effect::Overtaken(Box::new(found))),
            None => Err(Error::Conflict(format!("ComputerRecord {name}"))),
        }
    }

    async fn create(&self, object: Object) -> Result<Effect, Error> {
        match object {
            Object::Pod(pod) => self.create_one(*pod, |p| Fact::Pod(Box::new(p)), Subject::pod).await,
            Object::Claim(claim) => self.create_one(*claim, |c| Fact::Claim(Box::new(c)), Subject::claim).await,
            Object::Secret(secret) => {
                self.create_one(*secret, |s: Secret| Fact::Uid(s.metadata.uid.unwrap_or_default()), Subject::secret).await
            }
        }
    }

    async fn create_one<K>(&self, object: K, fact: fn(K) -> Fact, subject: fn(&str, &str) -> Subject) -> Result<Effect, Error>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug,
    {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let subject = subject(&namespace, object.meta().name.as_deref().unwrap_or_default());
        match call(self.namespaced::<K>(&namespace).create(&PostParams::default(), &object)).await {
            Ok(created) => Ok(Effect::Learned(subject, fact(created))),
            Err(source) if classify(&source) == ErrorClass::Conflict => self.read(subject).await,
            Err(source) => Err(Error::Call { what: format!("creating {}", subject.describe()), source }),
        }
    }

    async fn delete(&self, subject: Subject, params: &DeleteParams) -> Result<Effect, Error> {
        match &subject {
            Subject::Pod { namespace, name } => {
                let api = self.namespaced::<Pod>(namespace);
                self.delete_one(&api, name, params, subject.clone(), |p| Fact::Pod(Box::new(p))).await
            }
            Subject::Claim { namespace, name } => {
                let api = self.namespaced::<PersistentVolumeClaim>(namespace);
                self.delete_one(&api, name, params, subject.clone(), |c| Fact::Claim(Box::new(c))).await
            }
            Subject::Secret { namespace, name } => {
                let api = self.namespaced::<Secret>(namespace);
                self.delete_one(&api, name, params, subject.clone(), |s| Fact::Held(s.metadata.uid.unwrap_or_default())).await
            }
            other => Err(Error::Conflict(format!("{} is never deleted by us", other.describe()))),
        }
    }

    /// Deletes with a UID precondition. An accepted delete is not a deleted object: what is left is learned by another read.
    async fn delete_one<K>(
        &self,
        api: &Api<K>,
        name: &str,
        params: &DeleteParams,
        subject: Subject,
        fact: fn(K) -> Fact,
    ) -> Result<Effect, Error>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        match call(api.delete(name, params)).await {
            Ok(Either::Left(object)) => Ok(Effect::Learned(subject, fact(object))),
            Ok(Either::Right(_)) => Ok(Effect::Learned(subject, Fact::Accepted)),
            Err(source) => match classify(&source) {
                ErrorClass::NotFound => Ok(Effect::Learned(subject, Fact::Gone)),
                ErrorClass::Conflict => self.another_uid(subject, params).await,
                _ => Err(Error::Call { what: format!("deleting {}", subject.describe()), source }),
            },
        }
    }

    /// After a failed precondition: gone only if a live read shows another UID; otherwise try again.
    async fn another_uid(&self, subject: Subject, params: &DeleteParams) -> Result<Effect, Error> {
        let Effect::Learned(subject, fact) = self.read(subject).await? else { return Err(Error::Conflict("an object".to_owned())) };
        let there = match &fact {
            Fact::Pod(p) => p.metadata.uid.as_deref(),
            Fact::Claim(c) => c.metadata.uid.as_deref(),
            Fact::Uid(u) | Fact::Held(u) => Some(u.as_str()),
            _ => None,
        };
        if there == params.preconditions.as_ref().and_then(|p| p.uid.as_deref()) {
            return Err(Error::Conflict(subject.describe()));
        }
        Ok(Effect::Learned(subject, Fact::Gone))
    }

    async fn patch(&self, subject: Subject, patch: json_patch::Patch) -> Result<Effect, Error> {
        match &subject {
            Subject::Pod { namespace, name } => {
                let api = self.namespaced::<Pod>(namespace);
                self.patch_one(&api, name, patch, subject.clone(), |p| Fact::Pod(Box::new(p))).await
            }
            Subject::Volume { name } => {
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                self.patch_one(&api, name, patch, subject.clone(), |v| Fact::Volume(Box::new(v))).await
            }
            other => Err(Error::Conflict(format!("{} is never patched by us", other.describe()))),
        }
    }

    async fn patch_one<K>(
        &self,
        api: &Api<K>,
        name: &str,
        patch: json_patch::Patch,
        subject: Subject,
        fact: fn(K) -> Fact,
    ) -> Result<Effect, Error>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        match call(api.patch(name, &PatchParams::default(), &Patch::<()>::Json(patch.clone()))).await {
            Ok(object) => Ok(Effect::Learned(subject, fact(object))),
            Err(source) => match classify(&source) {
                ErrorClass::NotFound => Ok(Effect::Learned(subject, Fact::Gone)),
                ErrorClass::Conflict => Err(Error::Conflict(subject.describe())),
                ErrorClass::Invalid => Err(self.refused(subject, &patch, source).await),
                _ => Err(Error::Call { what: format!("changing {}", subject.describe()), source }),
            },
        }
    }

    /// A 422 is a test that failed, which a look at the live object repeats, or the refusal of an admission policy.
    async fn refused(&self, subject: Subject, patch: &json_patch::Patch, source: CallError) -> Error {
        let object = subject.describe();
        let live = match self.read(subject).await {
            Ok(Effect::Learned(_, Fact::Pod(pod))) => serde_json::to_value(pod),
            Ok(Effect::Learned(_, Fact::Volume(volume))) => serde_json::to_value(volume),
            Ok(_) => return Error::Conflict(object),
            Err(error) => return error,
        };
        if live.is_ok_and(|mut live| json_patch::patch(&mut live, patch).is_ok()) {
            return Error::Call { what: format!("changing {object}"), source };
        }
        Error::Conflict(object)
    }

    async fn put_receipt(&self, uid: &str, bytes: Vec<u8>) -> Result<Effect, Error> {
        let stored = self.archives.put_receipt(uid, bytes).await;
        stored.map(Effect::ReceiptStored).map_err(|e| Error::Store(e.to_string()))
    }
}

fn precondition(uid: &str) -> DeleteParams {
    let uid = guards::on(Guard::DeletePrecondition).then(|| uid.to_owned());
    DeleteParams::default().preconditions(Preconditions { uid, resource_version: None })
}

/// The DELETE of a Computer. A deletion on record has begun: nothing that was changed since holds it up. One that begins with this very
/// request is of the object that was seen: a cache may be behind, and the time to live extended or protection set meanwhile.
fn deletion_of(view: &View) -> DeleteParams {
    let begun = view.record.as_ref().is_some_and(|r| r.spec.state.deletion.is_some());
    let mut params = precondition(&view.uid);
    if let Some(preconditions) = params.preconditions.as_mut().filter(|_| !begun && guards::on(Guard::SeenVersion)) {
        preconditions.resource_version = view.computer.as_ref().and_then(|c| c.metadata.resource_version.clone());
    }
    params
}

async fn get<K: Clone + DeserializeOwned + Debug>(api: &Api<K>, name: &str, what: &str) -> Found<K> {
    optional(call(api.get(name)).await, what)
}

fn optional<T>(answer: Result<T, CallError>, what: &str) -> Found<T> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(source) if classify(&source) == ErrorClass::NotFound => Ok(None),
        Err(source) => Err(Error::Call { what: what.to_owned(), source }),
    }
}

const CHANGING_FINALIZER: &str = "changing the finalizer of the Computer";

/// A refused change of an object that did not change would be refused for ever: an error, not a reason to try at once.
fn unchanged(before: &Computer, effect: Effect, source: CallError) -> Result<Effect, Error> {
    let Effect::Computer(Some(now)) = &effect else { return Ok(effect) };
    match classify(&source) {
        _ if now.metadata.resource_version != before.metadata.resource_version => Ok(effect),
        ErrorClass::Invalid => Err(Error::Call { what: CHANGING_FINALIZER.to_owned(), source }),
        _ => Err(Error::Conflict("the Computer".to_owned())),
    }
}
