//! Performs one action for an `ApiKey`: one fenced request with a timeout. Apart from statuses, this is the only module that writes for an `ApiKey`. An
//! unknown outcome must never be reported as success, and only a 404 or another UID proves that an object is gone.

use either::Either;
use json_patch::PatchOperation;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use super::view::{Account, Action, Effect, SecretFact, View, has_finalizer};
use crate::resources::{ApiKey, ApiKeyRecord};
use crate::runtime::client::{ErrorClass, call, classify};
use crate::runtime::requests::{self, Changed, Error, get, get_same};

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
        Ok(Effect::Key(get_same(&self.keys, &view.name, &view.uid, "reading the ApiKey").await?.map(Box::new)))
    }

    async fn read_namespace(&self, view: &View) -> Result<Effect, Error> {
        let found = get(&self.namespaces, &view.namespace, "reading the Namespace").await?;
        Ok(Effect::Namespace(found.is_none_or(|n| super::watch::terminating(&n))))
    }

    async fn read_account(&self, view: &View) -> Result<Effect, Error> {
        let name = view.key.as_ref().map(|k| k.spec.service_account_name.clone()).unwrap_or_default();
        let found = get(&self.accounts, &name, "reading the ServiceAccount").await?;
        let uid = found.filter(|a| a.metadata.deletion_timestamp.is_none()).and_then(|a| a.metadata.uid);
        Ok(Effect::Account(uid.map_or(Account::Gone, Account::Uid)))
    }

    async fn add_finalizer(&self, view: &View) -> Result<Effect, Error> {
        let Some(key) = &view.key else { return Ok(Effect::Key(None)) };
        match self.change_key(key, requests::add_finalizer(&key.metadata)).await? {
            Effect::Patched(key) if !has_finalizer(&key) => Err(Error::Undone("add the finalizer to the ApiKey".to_owned())),
            effect => Ok(effect),
        }
    }

    async fn release_finalizer(&self, view: &View) -> Result<Effect, Error> {
        let Some(key) = &view.key else { return Ok(Effect::Key(None)) };
        match requests::remove_finalizer(&key.metadata) {
            Some(operation) => self.change_key(key, operation).await,
            None => Ok(Effect::Patched(Box::new(key.clone()))),
        }
    }

    async fn change_key(&self, key: &ApiKey, operation: PatchOperation) -> Result<Effect, Error> {
        Ok(match requests::change(&self.keys, key, true, operation).await? {
            Changed::Written(key) => Effect::Patched(Box::new(key)),
            Changed::Not(found) => Effect::Key(found.map(Box::new)),
        })
    }

    async fn create_record(&self, record: &ApiKeyRecord, view: &View) -> Result<Effect, Error> {
        match call(self.records.create(&PostParams::default(), record)).await {
            Ok(created) => Ok(Effect::Record(Some(Box::new(created)))),
            Err(source) => match classify(&source) {
                ErrorClass::Conflict => match self.read_record(view).await? {
                    // Nothing has the name: something answers 409 to every create, so the backoff applies.
                    Effect::FoundRecord(None) => Err(Error::Call { what: "creating the ApiKeyRecord".to_owned(), source }),
                    effect => Ok(effect),
                },
                _ => Err(Error::Call { what: "creating the ApiKeyRecord".to_owned(), source }),
            },
        }
    }

    /// Fenced by the record's UID and `resourceVersion`, which it carries.
    async fn save_record(&self, record: &ApiKeyRecord, view: &View) -> Result<Effect, Error> {
        match call(self.records.replace(&view.uid, &PostParams::default(), record)).await {
            Ok(saved) => Ok(Effect::Record(Some(Box::new(saved)))),
            Err(source) => match classify(&source) {
                ErrorClass::Conflict | ErrorClass::NotFound => match self.read_record(view).await? {
                    // Nobody has changed it: something answers 409 to every write, so the backoff applies.
                    Effect::FoundRecord(Some(live)) if live.metadata.resource_version == record.metadata.resource_version => {
                        Err(Error::Call { what: "saving the ApiKeyRecord".to_owned(), source })
                    }
                    effect => Ok(effect),
                },
                _ => Err(Error::Call { what: "saving the ApiKeyRecord".to_owned(), source }),
            },
        }
    }

    /// Reads the record live.
    ///
    /// # Errors
    /// When the outcome is unknown.
    pub async fn read_record(&self, view: &View) -> Result<Effect, Error> {
        Ok(Effect::FoundRecord(get(&self.records, &view.uid, "reading the ApiKeyRecord").await?.map(Box::new)))
    }

    async fn delete_record(&self, view: &View) -> Result<Effect, Error> {
        let uid = view.record.as_ref().and_then(|r| r.metadata.uid.clone()).unwrap_or_default();
        match call(self.records.delete(&view.uid, &precondition(&uid))).await {
            // No finalizer is expected on the record. If one blocks it, the next event causes another pass.
            Ok(_) => Ok(Effect::Record(None)),
            Err(source) => match classify(&source) {
                ErrorClass::NotFound => Ok(Effect::Record(None)),
                ErrorClass::Conflict => match self.read_record(view).await? {
                    Effect::FoundRecord(Some(live)) if live.metadata.uid.as_deref() == Some(&uid) => {
                        Err(Error::Call { what: "deleting the ApiKeyRecord".to_owned(), source })
                    }
                    effect => Ok(effect),
                },
                _ => Err(Error::Call { what: "deleting the ApiKeyRecord".to_owned(), source }),
            },
        }
    }

    /// Finds the UID of a Secret with a dry-run DELETE, because the operator may not read Secrets (DESIGN.md 4.8).
    async fn read_secret(&self, name: String) -> Result<Effect, Error> {
        let uid = requests::secret_uid(&self.secrets, &name, "looking for the token's Secret").await?;
        Ok(Effect::Secret(name, uid.map_or(SecretFact::Gone, SecretFact::Uid)))
    }

    async fn create_secret(&self, secret: Secret) -> Result<Effect, Error> {
        let name = secret.metadata.name.clone().unwrap_or_default();
        match call(self.secrets.create(&PostParams::default(), &secret)).await {
            Ok(created) => Ok(Effect::Made(name, created.metadata.uid.unwrap_or_default())),
            Err(source) if classify(&source) == ErrorClass::Conflict => match self.read_secret(name.clone()).await? {
                Effect::Secret(_, SecretFact::Gone) => Err(Error::Call { what: "creating the token's Secret".to_owned(), source }),
                effect => Ok(effect),
            },
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::convert::Infallible;

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::apikey::tests::world::World;
    use crate::resources::ApiKeyRecordSpec;

    /// L6: something answers 409 to every write. Without an error there is no backoff, and nobody sees it.
    #[tokio::test]
    async fn a_conflict_with_nothing_is_an_error() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            let write = ["POST", "PUT"].contains(&request.method().as_str());
            let (code, reason) = if write { (409, "Conflict") } else { (404, "NotFound") };
            let body = json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": "a proxy says no"});
            Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap())
        });
        let client = Client::new(service, "t");
        let view = World::new().begin(&World::new());
        let record = ApiKeyRecord::new("u", ApiKeyRecordSpec::default());
        let mut secret = Secret::default();
        secret.metadata.name = Some("token".to_owned());
        for action in [Action::CreateRecord(Box::new(record)), Action::CreateSecret(Box::new(secret))] {
            let error = Applier::new(&client, "t", "op").apply(action, &view).await.unwrap_err();
            assert!(error.class() == ErrorClass::Conflict && error.to_string().contains("a proxy says no"), "{error}");
        }
    }
}
