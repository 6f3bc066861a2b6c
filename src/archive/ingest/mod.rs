//! The ingest endpoint: archive pods send chunks here, and the HTTP API reads archives; only the operator has the store's credentials.
//!
//! Writes are create-only, for the caller's own UID, in bounded memory. Content of an archive must never be returned to anyone but the HTTP API.

pub mod auth;
pub mod handlers;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod hostile_input_tests;
pub mod keep_alive;
mod named_objects;
pub mod readers;
pub mod reads;
mod shares;
#[cfg(test)]
mod tests;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use shares::IN_FLIGHT;

use super::Archives;
use crate::runtime::server;
use crate::runtime::settings::Settings;

/// Bounds of this endpoint. An archive pod packs a session between two requests, and may find its connection closed by then.
pub const LIMITS: server::Limits = server::Limits {
    connections: 144,
    head: 16 * 1024,
    socket: (64 * 1024, 8 * 1024),
    header: Duration::from_secs(10),
    idle: Duration::from_secs(60),
    single: None,
    drain: Duration::from_secs(20),
    refusal: None,
};

/// Serves at this address until `stop`. Pods of the ServiceAccount `api_account` may read archives.
///
/// # Errors
/// When the address cannot be bound or the certificate cannot be used.
pub fn serve(
    (address, tls): (SocketAddr, tls::Certificate),
    (client, api_account): (Client, Option<&str>),
    settings: &Settings,
    archives: &Archives,
    stop: CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let readers = readers::Readers::new(client.clone(), &settings.namespace, api_account);
    let pods = auth::PodTokens::new(client, settings.namespace.clone(), settings.archive_service_account.clone());
    let pods = auth::Authenticator::Pods(Arc::new(pods));
    let writes = handlers::router(Arc::clone(archives.store()), pods, Arc::clone(archives.uploads()));
    let router = writes.merge(reads::router(Arc::clone(archives.store()), readers));
    let listener = server::listen(address)?;
    let acceptor = tls.acceptor()?;
    tasks.spawn(server::run(listener, Some(acceptor), router, LIMITS, stop));
    Ok(())
}
