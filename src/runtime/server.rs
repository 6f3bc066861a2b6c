//! The one accept loop under every HTTP endpoint of this program: bounds on connections and on the time of a header, which axum's
//! own `serve` does not set, TLS where asked for, and an end that lets what runs finish. A peer that is slow or silent must never
//! keep others out, nor keep the process from ending. What is no HTTP at all never reaches a handler: hyper refuses it without a body.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::peer::Peer;

const HANDSHAKE: Duration = Duration::from_secs(10);

/// Bounds of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; more wait in the kernel's queue.
    pub connections: usize,
    /// A request's header must be there within this time; also the longest time that a connection may be idle.
    pub header: Duration,
    /// Longest life of a connection that serves one request only. `None`: it is kept for more requests.
    pub single: Option<Duration>,
    /// What is under way at the end has this long to finish.
    pub drain: Duration,
}

/// Accepts until `stop`, then lets what runs finish.
pub async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router, limits: Limits, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((listener.accept().await, slot))
        };
        let (accepted, slot) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => match next { Some(next) => next, None => break },
        };
        match accepted {
            Ok((stream, _)) => {
                let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
                connections.spawn(async move {
                    accept(stream, tls, router, limits, stop).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: trying again at once would only burn the processor.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let _ = tokio::time::timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await;
}

async fn accept(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router, limits: Limits, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => connection(stream, router, limits, stop).await,
        Some(tls) => {
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else {
                return tracing::debug!("a TLS handshake failed or took too long");
            };
            connection(stream, router, limits, stop).await;
        }
    }
}

async fn connection<S>(stream: S, router: Router, limits: Limits, stop: CancellationToken)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header).keep_alive(limits.single.is_none());
    let connection = http.serve_connection(TokioIo::new(Peer::new(stream)), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = async {
        tokio::select! {
            result = &mut connection => result,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    let result = match limits.single {
        None => ended.await,
        Some(limit) => match tokio::time::timeout(limit, ended).await {
            Ok(result) => result,
            Err(_) => return tracing::debug!("a connection took too long and was closed"),
        },
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
}
