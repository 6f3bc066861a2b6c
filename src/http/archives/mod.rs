//! Extension: a tenant reads the archive of its deleted computer. The right is `get` on the virtual subresource `computers/archive`, in the namespace that
//! the computer lived in (by its UID), or in all namespaces; everybody else gets 404 with the same body.
//!
//! This process has no credentials of the archive store: it reads through the operator (`archive/remote.rs`). Content must never be rendered by a browser,
//! cached on the way, or logged.

mod document;
mod export;
mod range;
mod sending;

use std::sync::Arc;

use axum::Extension;
use axum::http::StatusCode;
use sha2::{Digest as _, Sha256};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::sending::Place;
use super::Shared;
use super::access::{self, Target};
use super::auth::Caller;
use super::computers::delete::record;
use super::error::ApiError;
use super::lived_in::{self, LivedIn};
use crate::archive::remote::{Remote, Unread};
use crate::archive::{Manifest, Store};
use crate::credentials::ComputerId;
use crate::resources::ComputerRecord;
use crate::runtime::server::connections::Seat;

/// What a right to read archives is about.
const RESOURCE: &str = "computers/archive";

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::new()
        .routes(routes!(document::get_archive))
        .routes(routes!(export::export_archive))
        .routes(routes!(export::export_session))
}

/// The archive of a computer that its caller may read.
struct Opened {
    manifest: Manifest,
    digest: String,
    store: Store,
}

/// 404, the same whether there is no archive or the caller may not read it.
fn hidden() -> ApiError {
    ApiError::not_found("archive")
}

/// Opens an archive for a caller. Without a record, because it has expired, the manifest says which namespace the computer lived in: the operator has
/// compared it with the record when it was stored. Which manifest was verified then is in the receipt in the store.
///
/// A place for the response is taken before anything of any size is read.
///
/// # Errors
/// 404, 409, 429, 500, 501 or 503.
async fn open(shared: &Shared, caller: &Caller, seat: Option<Extension<Arc<Seat>>>, id: &ComputerId) -> Result<(Opened, Place), ApiError> {
    let target = Target { resource: RESOURCE, namespace: &id.namespace, name: Some(&id.name) };
    if !access::may(shared, caller, "get", target).await? {
        return Err(hidden());
    }
    let record = record(shared, id).await?;
    let permits = async |lived_in| lived_in::permits(shared, caller, ("get", RESOURCE), &id.namespace, lived_in).await;
    if let Some(record) = &record
        && !permits(LivedIn::of(record)).await?
    {
        return Err(hidden());
    }
    let remote = shared.archives.as_ref().ok_or_else(not_connected)?;
    let place = Place::take(shared, caller, seat.map(|Extension(seat)| seat))?;
    let bytes = match (remote.manifest(&id.namespace, &id.uid).await, &record) {
        (Ok(bytes), _) => bytes,
        // Without a record its owner is not known.
        (Err(Unread::Old), Some(_)) => return Err(old()),
        (Err(Unread::Damaged), Some(_)) => return Err(damaged()),
        (Err(Unread::Unavailable(why)), _) => return Err(unavailable(&why)),
        (Err(_), _) => return Err(hidden()),
    };
    let digest = hex::encode(Sha256::digest(&bytes));
    let manifest = Manifest::parse(&bytes).map_err(|_| damaged())?;
    let named = &manifest.computer;
    if (&named.namespace, &named.name, &named.uid) != (&id.namespace, &id.name, &id.uid) {
        return Err(hidden());
    }
    match &record {
        None if !permits(LivedIn { uid: named.namespace_uid.as_deref(), recorded: None }).await? => return Err(hidden()),
        None => is_in_receipt(remote, (&id.namespace, &id.uid), &digest).await?,
        Some(record) => is_verified(record, &digest)?,
    }
    let store = remote.store(&id.namespace);
    Ok((Opened { manifest, digest, store }, place))
}

/// Requires that the archive is the one that the deletion has verified.
fn is_verified(record: &ComputerRecord, digest: &str) -> Result<(), ApiError> {
    match record.spec.state.deletion.as_ref().and_then(|d| d.archive.as_ref()) {
        None => Err(hidden()),
        Some(archive) if archive.manifest_digest == digest => Ok(()),
        Some(_) => Err(damaged()),
    }
}

/// Requires the same of the receipt. Without one the deletion has not ended, or its archive was never verified.
async fn is_in_receipt(remote: &Remote, (namespace, uid): (&str, &str), digest: &str) -> Result<(), ApiError> {
    match remote.verified(namespace, uid).await {
        Ok(verified) if verified == digest => Ok(()),
        Err(Unread::Unavailable(why)) => Err(unavailable(&why)),
        _ => Err(hidden()),
    }
}

fn not_connected() -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "this API is not connected to the archives: ask the admin of the cluster to set ARCHIVES_ENDPOINT, ARCHIVES_CA and ARCHIVES_TOKEN, as the chart does",
    )
}

fn old() -> ApiError {
    ApiError::conflict(
        "this archive has the format of version 1, which this API does not send: ask the admin of the cluster for `archives export`",
    )
}

fn damaged() -> ApiError {
    ApiError::internal(
        "the archive in the store is not the one that the deletion has verified, or it is damaged: report the x-request-id to the admin of the cluster",
    )
}

fn unavailable(why: &str) -> ApiError {
    tracing::error!(why, "an archive cannot be read");
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the archive cannot be read at the moment: the operator or its store does not answer. Retry the request",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
