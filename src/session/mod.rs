//! The `Session` view: after the archive of its computer is verified, each Session says where its copy is. A view only: it
//! decides nothing, and a Session that is gone with its namespace is no loss, because the manifest is the truth.

use std::sync::Arc;

use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::archive::{Archives, Manifest};
use crate::resources::{Session, SessionPhase, SessionStatus};
use crate::runtime::client::{CallError, call, list};

/// Sessions in one page of a list.
const PAGE: u32 = 50;

/// Writes the archive's place to every Session of a computer that is not marked yet. Returns how many were written.
///
/// # Errors
/// When the API server or the store does not answer; nothing depends on it, the caller logs it.
pub async fn mark_archived(client: &Client, archives: &Arc<Archives>, namespace: &str, computer_uid: &str) -> Result<usize, MarkError> {
    let api: Api<Session> = Api::namespaced(client.clone(), namespace);
    let waits =
        |s: &Session| s.spec.computer_uid == computer_uid && s.status.as_ref().and_then(|s| s.phase) != Some(SessionPhase::Archived);
    // A tenant may have made as many as the cluster holds, each with settings of any size.
    let without_settings = |mut s: Session| {
        s.spec.settings = None;
        waits(&s).then_some(s)
    };
    let waiting = list(&api, PAGE, without_settings).await?;
    if waiting.is_empty() {
        return Ok(0);
    }
    let manifest = archives.manifest(computer_uid).await.map_err(|e| MarkError::Store(e.to_string()))?;
    let mut written = 0;
    for session in waiting {
        let status = archived(&session, &manifest, computer_uid);
        let patch = crate::computer::volume::patch(&[
            json!({"op": "test", "path": "/metadata/uid", "value": session.metadata.uid}),
            json!({"op": "add", "path": "/status", "value": status}),
        ]);
        call(api.patch_status(&session.name_any(), &PatchParams::default(), &Patch::<()>::Json(patch))).await?;
        written += 1;
    }
    Ok(written)
}

/// Why Sessions were not marked.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The API server.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The store.
    #[error("archive store: {0}")]
    Store(String),
}

/// The status of an archived session: the archived session that holds its path, if one does.
fn archived(session: &Session, manifest: &Manifest, uid: &str) -> SessionStatus {
    let old = session.status.clone().unwrap_or_default();
    let found = session.spec.path.as_deref().and_then(|path| manifest.session_of_path(path));
    SessionStatus {
        phase: Some(SessionPhase::Archived),
        archive_key: found.map(|s| crate::archive::object_key(uid, &s.digest)),
        archive_digest: found.map(|s| s.digest.clone()),
        ..old
    }
}
