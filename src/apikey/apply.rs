//! Performs one action for an `ApiKey`: one fenced request with a timeout. Apart from statuses, this is the only module that writes for an `ApiKey`. An
//! unknown outcome must never be reported as success, and only a 404 or another UID proves that an object is gone.

use either::Either;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::view::{Account, Action, Effect, SecretFact, View};
use crate::resources::{ApiKey, ApiKeyRecord, DELETION_FINALIZER, MANAGER};
use crate::runtime::client::{CallError, ErrorClass, call, classify};

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server rejected the request, or its outcome is unknown.
    #[error("{what}: {source}")]
    Call {
        /// What the request was meant to do.
        what: String,
        /// The failure.
        source: CallError,
    },
    /// Another client changed the object: plan again.
    #[error("{0} was changed by another client")]
    Conflict(String),
}

impl Error {
    /// Class of the failure.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Call { source, .. } => classify(source),
            Self::Conflict(_) => ErrorClass::Conflict,
        }
    }

    /// How long the API server asks the client to wait before a retry.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        if let Self::Call { source, .. } = self { source.retry_after() } else { None }
    }
}

/// The APIs of one `ApiKey`.
pub struct Applier {
    keys: Api<ApiKey>,
    records: Api<ApiKeyRecord>,
    secrets: Api<Secret>,
    accounts: Api<ServiceAccount>,
    namespaces: Api<Namespace>,
}

impl Applier {
    /// Creates the APIs for `ApiKeys` in this namespace.
    pub fn new(client: &Client, namespace: &str, operator_namespace: &str) -> Self {
        Self {
            keys: Api::namespaced(client.clone(), namespace),
            records: Api::namespaced(client.clone(), operator_namespace),
            secrets: Api::namespaced(client.clone(), namespace),
            accounts: Api::namespaced(client.clone(), namespace),
            namespaces: Api::all(client.clone()),
        }
    }

    /// Performs one action.
    ///
    /// # Errors
    /// When it failed, or its outcome is unknown.
    pub async fn apply(&self, action: Action, view: &View) -> Result<Effect, Error> {
        match action {
            Action::ReadKey => self.read_key(view).await,
            Action::ReadNamespace => self.read_namespace(view).await,
            Action::ReadAccount => self.read_account(view).await,
            Action::AddFinalizer => self.add_finalizer(view).await,
            Action::ReleaseFinalizer => self.release_finalizer(view).await,
            Action::CreateRecord(record) => self.create_record(&record, view).await,
            Action::SaveRecord(record) => self.save_record(&record, view).await,
            Action::DeleteRecord => self.delete_record(view).await,
            Action::ReadSecret(name) => self.read_secret(name).await,
            Action::CreateSecret(secret) => self.create_secret(*secret).await,
            Action::DeleteSecret { name, uid } => self.delete_secret(name, &uid).await,
        }
    }

    async fn read_key(&self, view: &View) -> Result<Effect, Error> {
        let found = optional(call(self.keys.get(&view.name)).await, "reading the ApiKey")?;
        Ok(Effect::Key(found.filter(|k| k.metadata.uid.as_deref() == Some(&view.uid)).map(Box::new)))
    }

    async fn read_namespace(&self, view: &View) -> Result<Effect, Error> {
        let found = optional(call(self.namespaces.get(&view.namespace)).await, "reading the Namespace")?;
        Ok(Effect::Namespace(found.is_none_or(|n| super::watch::terminating(&n))))
    }

    async fn read_account(&self, view: &View) -> Result<Effect, Error> {
        let name = view.key.as_ref().map(|k| k.spec.service_account_name.clone()).unwrap_or_default();
        let found = optional(call(self.accounts.get(&name)).await, "reading the ServiceAccount")?;
        let uid = found.filter(|a| a.metadata.deletion_timestamp.is_none()).and_then(|a| a.metadata.uid);
        Ok(Effect::Account(uid.map_or(Account::Gone, Account::Uid)))
    }

    async fn add_finalizer(&self, view: &View) -> Result<Effect, Error> {
        let Some(key) = &view.key else { return Ok(Effect::Key(None)) };
        let operation = match &key.metadata.finalizers {
            Some(f) if !f.is_empty() => json!({"op": "add", "path": "/metadata/finalizers/-", "value": DELETION_FINALIZER}),
            _ => json!({"op": "add", "path": "/metadata/finalizers", "value": [DELETION_FINALIZER]}),
        };
        self.patch_key(view, key, operation).await
    }

    async fn release_finalizer(&self, view: &View) -> Result<Effect, Error> {
        let Some(key) = &view.key else { return Ok(Effect::Key(None)) };
        let index = key.metadata.finalizers.iter().flatten().position(|f| f == DELETION_FINALIZER);
        let Some(index) = index else { return Ok(Effect::Patched(Box::new(key.clone()))) };
        self.patch_key(view, key, json!({"op": "remove", "path": format!("/metadata/finalizers/{index}")})).await
    }

    /// Fenced by UID and `resourceVersion`.
    async fn patch_key(&self, view: &View, key: &ApiKey, operation: serde_json::Value) -> Result<Effect, Error> {
        let patch = crate::runtime::patch::patch(&[
            json!({"op": "test", "path": "/metadata/uid", "value": view.uid}),
            json!({"op": "test", "path": "/metadata/resourceVersion", "value": key.metadata.resource_version}),
            operation,
        ]);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match call(self.keys.patch(&view.name, &params, &Patch::<()>::Json(patch))).await {
            Ok(key) => Ok(Effect::Patched(Box::new(key))),
            Err(source) => match classify(&source) {
                ErrorClass::NotFound => Ok(Effect::Key(None)),
                // The cache was stale, or another client wrote at the same time: read the live object.
                ErrorClass::Conflict | ErrorClass::Invalid => match self.read_key(view).await? {
                    Effect::Key(Some(now)) if now.metadata.resource_version == key.metadata.resource_version => {
                        Err(Error::Call { what: "changing the finalizer of the ApiKey".to_owned(), source })
                    }
                    effect => Ok(effect),
                },
                _ => Err(Error::Call { what: "changing the finalizer of the ApiKey".to_owned(), source }),
            },
        }
    }

    async fn create_record(&self, record: &ApiKeyRecord, view: &View) -> Result<Effect, Error> {
        match call(self.records.create(&PostParams::default(), record)).await {
            Ok(created) => Ok(Effect::Record(Some(Box::new(created)))),
            Err(source) if classify(&source) == ErrorClass::Conflict => self.read_record(view).await,
            Err(source) => Err(Error::Call { what: "creating the ApiKeyRecord".to_owned(), source }),
        }
    }

    /// Fenced by the record's UID and `resourceVersion`, which it carries.
    async fn save_record(&self, record: &ApiKeyRecord, view: &View) -> Result<Effect, Error> {
        match call(self.records.replace(&view.uid, &PostParams::default(), record)).await {
            Ok(saved) => Ok(Effect::Record(Some(Box::new(saved)))),
            Err(source) => match classify(&source) {
                ErrorClass::Conflict | ErrorClass::NotFound => self.read_record(view).await,
                _ => Err(Error::Call { what: "saving the ApiKeyRecord".to_owned(), source }),
            },
        }
    }

    /// Reads the record live.
    ///
    /// # Errors
    /// When the outcome is unknown.
    pub async fn read_record(&self, view: &View) -> Result<Effect, Error> {
        Ok(Effect::FoundRecord(optional(call(self.records.get(&view.uid)).await, "reading the ApiKeyRecord")?.map(Box::new)))
    }

    async fn delete_record(&self, view: &View) -> Result<Effect, Error> {
        let uid = view.record.as_ref().and_then(|r| r.metadata.uid.clone()).unwrap_or_default();
        match call(self.records.delete(&view.uid, &precondition(&uid))).await {
            // No finalizer is expected on the record. If one blocks it, the next event causes another pass.
            Ok(_) => Ok(Effect::Record(None)),
            Err(source) => match classify(&source) {
                ErrorClass::NotFound => Ok(Effect::Record(None)),
                ErrorClass::Conflict => self.read_record(view).await,
                _ => Err(Error::Call { what: "deleting the ApiKeyRecord".to_owned(), source }),
            },
        }
    }

    /// Finds the UID of a Secret with a dry-run DELETE, because the operator may not read Secrets (DESIGN.md 4.8).
    async fn read_secret(&self, name: String) -> Result<Effect, Error> {
        let params = DeleteParams { dry_run: true, ..DeleteParams::default() };
        let answer = optional(call(self.secrets.delete(&name, &params)).await, "looking for the token's Secret")?;
        let uid = answer.and_then(|a| match a {
            Either::Left(secret) => secret.metadata.uid,
            Either::Right(status) => status.details.map(|d| d.uid),
        });
        Ok(Effect::Secret(name, uid.map_or(SecretFact::Gone, SecretFact::Uid)))
    }

    async fn create_secret(&self, secret: Secret) -> Result<Effect, Error> {
        let name = secret.metadata.name.clone().unwrap_or_default();
        match call(self.secrets.create(&PostParams::default(), &secret)).await {
            Ok(created) => Ok(Effect::Made(name, created.metadata.uid.unwrap_or_default())),
            Err(source) if classify(&source) == ErrorClass::Conflict => self.read_secret(name).await,
            Err(source) => Err(Error::Call { what: "creating the token's Secret".to_owned(), source }),
        }
    }

    /// Deletes a Secret. An accepted delete does not prove that it is gone; another read does.
    async fn delete_secret(&self, name: String, uid: &str) -> Result<Effect, Error> {
        match call(self.secrets.delete(&name, &precondition(uid))).await {
            Ok(Either::Left(_)) => Ok(Effect::Secret(name, SecretFact::Held)),
            Ok(Either::Right(_)) => Ok(Effect::Secret(name, SecretFact::Accepted)),
            Err(source) => match classify(&source) {
                ErrorClass::NotFound => Ok(Effect::Secret(name, SecretFact::Gone)),
                // The Secret has another UID or has just been changed: only the former proves that ours is gone.
                ErrorClass::Conflict => match self.read_secret(name.clone()).await? {
                    Effect::Secret(_, SecretFact::Uid(now)) if now == uid => Err(Error::Conflict(format!("Secret {name}"))),
                    _ => Ok(Effect::Secret(name, SecretFact::Gone)),
                },
                _ => Err(Error::Call { what: "deleting the token's Secret".to_owned(), source }),
            },
        }
    }
}

fn precondition(uid: &str) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None })
}

fn optional<T>(answer: Result<T, CallError>, what: &str) -> Result<Option<T>, Error> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(source) if classify(&source) == ErrorClass::NotFound => Ok(None),
        Err(source) => Err(Error::Call { what: what.to_owned(), source }),
    }
}
