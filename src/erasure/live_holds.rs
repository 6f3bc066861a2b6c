//! Reads the ArchiveHolds of the cluster for [`Holds`]. Every question is a live read of all of them, never a cache: a hold is in effect from the moment
//! in which the API server has accepted it. Whatever is not a complete list of holds that can be understood counts as held.

use async_trait::async_trait;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::{Client, ResourceExt as _};

use crate::archive::holds::{Holds, Stop, Subject};
use crate::resources::{ArchiveHold, ArchiveHoldSpec};
use crate::runtime::caches::ADMINS_PAGE;
use crate::runtime::client::list;

/// Holds that a message names.
const NAMED: usize = 3;

/// The holds of a cluster.
pub struct LiveHolds {
    holds: Api<DeserializeGuard<ArchiveHold>>,
}

impl LiveHolds {
    /// Reads them with this client.
    pub fn new(client: &Client) -> Self {
        Self { holds: Api::all(client.clone()) }
    }
}

/// Whether a hold names an archive, or may name it.
fn names(hold: &ArchiveHoldSpec, archive: &Subject) -> bool {
    match (&hold.computer_uid, &hold.namespace_uid) {
        // The schema refuses both, and neither: a hold of another version may mean anything.
        (None, None) | (Some(_), Some(_)) => true,
        // A client may change the case of a UID that it copies.
        (Some(uid), None) => uid.eq_ignore_ascii_case(&archive.computer_uid),
        (None, Some(uid)) => archive.namespace_uid.as_ref().is_none_or(|namespace| namespace.eq_ignore_ascii_case(uid)),
    }
}

#[async_trait]
impl Holds for LiveHolds {
    async fn permit(&self, archive: &Subject) -> Result<(), Stop> {
        let naming = |hold: DeserializeGuard<ArchiveHold>| match hold.0 {
            Ok(hold) => names(&hold.spec, archive).then(|| Ok(format!("ArchiveHold {} (matter {})", hold.name_any(), hold.spec.matter))),
            Err(invalid) => Some(Err(invalid.metadata.name.unwrap_or_default())),
        };
        let found = list(&self.holds, ADMINS_PAGE, naming).await;
        let found = found.map_err(|error| Stop::HoldsUnknown(format!("the ArchiveHolds cannot be read: {error}")))?;
        let mut named = Vec::new();
        for hold in found {
            named.push(hold.map_err(|name| Stop::HoldsUnknown(format!("ArchiveHold {name} cannot be parsed")))?);
        }
        if named.is_empty() {
            return Ok(());
        }
        // In a stable order, so that the message changes only with the holds.
        named.sort();
        let more = named.len().saturating_sub(NAMED);
        named.truncate(NAMED);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        let unsure =
            if archive.namespace_uid.is_none() { ", as far as is known: the receipt does not name the namespace's UID" } else { "" };
        Err(Stop::Held(format!("the archive is held by {}{rest}{unsure}", named.join(", "))))
    }
}
