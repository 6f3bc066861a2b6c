//! Performs one action: one request, fenced, with a timeout. Children, records, and the finalizer and deletion of a Computer are written only
//! here. Statuses are written by `reconcile/publish` and `overrides`, events by `events`; `reconcile` also deletes expired records.
//!
//! An unknown outcome must never count as success, and `Gone` needs a 404 or an object with another UID.

use std::sync::Arc;

use either::Either;
use json_patch::PatchOperation;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

use super::action::{Action, Effect, Fact, Object, Subject};
use super::view::View;
use crate::archive::Archives;
use crate::guards::{self, Guard};
use crate::resources::Computer;
use crate::runtime::client::{CallError, ErrorClass, call, classify};
use crate::runtime::requests::{self, Changed, get, get_same};

mod lists;
mod records;
#[cfg(test)]
mod tests;

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request to the API server failed.
    #[error(transparent)]
    Request(#[from] requests::Error),
    /// The archive store failed.
    #[error("archive store: {0}")]
    Store(String),
}

impl Error {
    /// Class of the failure, for conditions, metrics and backoff.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Request(error) => error.class(),
            Self::Store(_) => ErrorClass::Transient,
        }
    }

    /// Whether a working API server has refused the request: a missing right, a quota, a policy, an invalid object.
    pub fn refused(&self) -> bool {
        matches!(self, Self::Request(requests::Error::Call { .. })) && matches!(self.class(), ErrorClass::Forbidden | ErrorClass::Invalid)
    }

    /// The object changed between the read and the write.
    pub fn conflict(object: impl Into<String>) -> Self {
        Self::Request(requests::Error::Conflict(object.into()))
    }

    /// The request succeeds, but the answer does not contain its change.
    pub fn undone(what: impl Into<String>) -> Self {
        Self::Request(requests::Error::Undone(what.into()))
    }

    /// Whether a webhook or a policy removes what the operator writes.
    pub fn is_undone(&self) -> bool {
        matches!(self, Self::Request(requests::Error::Undone(_)))
    }

    /// A request failed.
    pub fn call(what: impl Into<String>, source: CallError) -> Self {
        Self::Request(requests::Error::Call { what: what.into(), source })
    }

    /// How long the API server asks to wait before the next try.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        if let Self::Request(error) = self { error.retry_after() } else { None }
    }
}

/// Performs actions.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    archives: Arc<Archives>,
    namespace: String,
}

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
            Action::Retain { volume, patch } => self.patch(Subject::volume(&volume), patch).await,
            Action::CheckArchive => Ok(Effect::Archive(self.archives.check(&view.uid, &super::deletion::custody::origin(view)))),
            Action::PutReceipt(bytes) => self.put_receipt(view, bytes).await,
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
            Subject::Secret { namespace, name } => requests::secret_uid(&self.namespaced(namespace), name, &what).await?.map(Fact::Uid),
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

    async fn read_computer(&self, view: &View) -> Result<Effect, Error> {
        let found = get_same(&self.namespaced::<Computer>(&view.namespace), &view.name, &view.uid, "reading the Computer").await?;
        Ok(Effect::Computer(found.map(Box::new)))
    }

    async fn add_finalizer(&self, view: &View) -> Result<Effect, Error> {
        let Some(computer) = &view.computer else { return Ok(Effect::Computer(None)) };
        self.change_computer(computer, requests::add_finalizer(&computer.metadata)).await
    }

    async fn release_finalizer(&self, view: &View) -> Result<Effect, Error> {
        let Some(computer) = &view.computer else { return Ok(Effect::Computer(None)) };
        match requests::remove_finalizer(&computer.metadata) {
            Some(operation) => self.change_computer(computer, operation).await,
            None => Ok(Effect::Computer(Some(Box::new(computer.clone())))),
        }
    }

    async fn change_computer(&self, computer: &Computer, operation: PatchOperation) -> Result<Effect, Error> {
        let api = self.namespaced::<Computer>(computer.metadata.namespace.as_deref().unwrap_or_default());
        let found = match requests::change(&api, computer, guards::on(Guard::FinalizerFence), operation).await? {
            Changed::Written(computer) => Some(computer),
            Changed::Not(found) => found,
        };
        Ok(Effect::Computer(found.map(Box::new)))
    }

    async fn delete_computer(&self, view: &View) -> Result<Effect, Error> {
        let api = self.namespaced::<Computer>(&view.namespace);
        match call(api.delete(&view.name, &deletion_of(view))).await {
            Ok(Either::Left(computer)) => Ok(Effect::Computer(Some(Box::new(computer)))),
            Ok(Either::Right(_)) => self.read_computer(view).await,
            Err(source) => match classify(&source) {
                ErrorClass::NotFound => self.read_computer(view).await,
                // The Computer has changed and may no longer be due for deletion: plan again with the live object. If it has not changed, this
                // is an error, so that the backoff applies.
                ErrorClass::Conflict => match self.read_computer(view).await? {
                    Effect::Computer(Some(live))
                        if view.computer.as_ref().is_some_and(|c| c.metadata.resource_version == live.metadata.resource_version) =>
                    {
                        Err(Error::conflict("the Computer"))
                    }
                    effect => Ok(effect),
                },
                _ => Err(Error::call("deleting the Computer", source)),
            },
        }
    }

    async fn create(&self, object: Object) -> Result<Effect, Error> {
        match object {
            Object::Pod(pod) => self.create_one(*pod, |p| Fact::Pod(Box::new(p)), Subject::pod).await,
            Object::Machine(pod) => self.create_machine(&pod).await,
            Object::Claim(claim) => self.create_one(*claim, |c| Fact::Claim(Box::new(c)), Subject::claim).await,
            Object::Secret(secret) => {
                self.create_one(*secret, |s: Secret| Fact::Created(s.metadata.uid.unwrap_or_default()), Subject::secret).await
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
            Err(source) if classify(&source) == ErrorClass::Conflict => self.read_existing(subject, source).await,
            Err(source) => Err(Error::call(format!("creating {}", subject.describe()), source)),
        }
    }

    /// The API server refuses a field that it does not know: a machine must not run without something that its class asks for.
    async fn create_machine(&self, pod: &serde_json::Value) -> Result<Effect, Error> {
        let text = |name: &str| pod["metadata"][name].as_str().unwrap_or_default();
        let subject = Subject::pod(text("namespace"), text("name"));
        match requests::create_strictly::<Pod>(&self.client, text("namespace"), pod, false).await {
            Ok(created) => Ok(Effect::Created(subject, Fact::Pod(Box::new(created)))),
            Err(source) if classify(&source) == ErrorClass::Conflict => self.read_existing(subject, source).await,
            Err(source) => Err(Error::call(format!("creating {}", subject.describe()), source)),
        }
    }

    /// What exists under the name of an object that could not be created because its name is taken. If nothing does, it is gone again, or
    /// something answers 409 to every create: the backoff applies.
    async fn read_existing(&self, subject: Subject, source: CallError) -> Result<Effect, Error> {
        match self.read(subject).await? {
            Effect::Learned(subject, Fact::Gone) => Err(Error::call(format!("creating {}", subject.describe()), source)),
            effect => Ok(effect),
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
            other => Err(Error::conflict(format!("{} must not be deleted by the operator", other.describe()))),
        }
    }

    /// Deletes with a UID precondition. An accepted delete does not mean that the object is gone: another read must show that.
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
                _ => Err(Error::call(format!("deleting {}", subject.describe()), source)),
            },
        }
    }

    /// After a failed precondition: the object is gone only if a live read shows another UID. Otherwise this is a conflict. The other object, if it can
    /// be shown, is what is known of the subject then: the deleted UID may not be the recorded one.
    async fn another_uid(&self, subject: Subject, params: &DeleteParams) -> Result<Effect, Error> {
        let Effect::Learned(subject, fact) = self.read(subject).await? else { return Err(Error::conflict("an object".to_owned())) };
        let there = match &fact {
            Fact::Pod(p) => p.metadata.uid.as_deref(),
            Fact::Claim(c) => c.metadata.uid.as_deref(),
            Fact::Uid(u) | Fact::Held(u) => Some(u.as_str()),
            _ => None,
        };
        if there == params.preconditions.as_ref().and_then(|p| p.uid.as_deref()) {
            return Err(Error::conflict(subject.describe()));
        }
        let fact = if matches!(fact, Fact::Uid(_) | Fact::Held(_)) { Fact::Gone } else { fact };
        Ok(Effect::Learned(subject, fact))
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
            other => Err(Error::conflict(format!("{} must not be patched by the operator", other.describe()))),
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
                ErrorClass::Conflict => Err(Error::conflict(subject.describe())),
                ErrorClass::Invalid => Err(self.refused(subject, &patch, source).await),
                _ => Err(Error::call(format!("changing {}", subject.describe()), source)),
            },
        }
    }

    /// A 422 is either a failed test operation, which also fails on the live object, or the refusal of an admission policy.
    async fn refused(&self, subject: Subject, patch: &json_patch::Patch, source: CallError) -> Error {
        let object = subject.describe();
        let live = match self.read(subject).await {
            Ok(Effect::Learned(_, Fact::Pod(pod))) => serde_json::to_value(pod),
            Ok(Effect::Learned(_, Fact::Volume(volume))) => serde_json::to_value(volume),
            Ok(_) => return Error::conflict(object),
            Err(error) => return error,
        };
        if live.is_ok_and(|mut live| json_patch::patch(&mut live, patch).is_ok()) {
            return Error::call(format!("changing {object}"), source);
        }
        Error::conflict(object)
    }

    async fn put_receipt(&self, view: &View, bytes: Vec<u8>) -> Result<Effect, Error> {
        let stored = self.archives.put_receipt(&view.namespace, &view.uid, bytes).await;
        stored.map(Effect::ReceiptStored).map_err(|e| Error::Store(e.to_string()))
    }
}

fn precondition(uid: &str) -> DeleteParams {
    let uid = guards::on(Guard::DeletePrecondition).then(|| uid.to_owned());
    DeleteParams::default().preconditions(Preconditions { uid, resource_version: None })
}

/// Parameters of the DELETE of a Computer. If the deletion is recorded, it has started, and later changes do not stop it. A deletion that
/// starts with this request applies to the version that was read: the cache may be stale, and the time to live may have been extended or
/// protection set meanwhile.
fn deletion_of(view: &View) -> DeleteParams {
    let begun = view.record.as_ref().is_some_and(|r| r.spec.state.deletion.is_some());
    let mut params = precondition(&view.uid);
    if let Some(preconditions) = params.preconditions.as_mut().filter(|_| !begun && guards::on(Guard::SeenVersion)) {
        preconditions.resource_version = view.computer.as_ref().and_then(|c| c.metadata.resource_version.clone());
    }
    params
}
