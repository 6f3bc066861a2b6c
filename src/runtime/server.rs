//! The one accept loop under every HTTP endpoint of this program. It bounds what a peer can cost before anybody knows who it is:
//! open connections, bytes of a request head, kernel buffers, and time. [`Limits::memory`] is the sum of these bounds.
//!
//! A slow or silent peer never keeps others out: when all connections are taken, the one that has waited longest for a request is
//! closed in favour of the newcomer ([`self::connections`]). Requests that are being answered are never cut off by this.
//! A head that is not valid HTTP never reaches a handler; [`self::stream`] replaces hyper's empty answer to it.

pub mod connections;
pub mod request_state;
pub mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::connections::{Crowd, Seat};
use self::request_state::{Answering, Turn};
use self::stream::Peer;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// TLS records of one connection: 64 KiB is the largest handshake that rustls collects; afterwards its buffers are smaller.
const TLS: usize = 64 * 1024;
/// Encrypted bytes that wait for a peer to read.
const TLS_OUT: usize = 16 * 1024;
/// Task, timers and hyper's own state of one connection, and the headers of one request.
const STATE: usize = 24 * 1024;

/// Headers and body of an answer to a head that is refused.
pub type Refused = (Vec<(&'static str, String)>, String);

/// Bounds of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections. A newcomer beyond them takes the place of one that waits for a request, or waits itself.
    pub connections: usize,
    /// Longest request head, bytes; at least 8 KiB. A longer one is refused with 431.
    pub head: usize,
    /// Kernel buffers of one connection, bytes, to receive and to send. The kernel keeps twice as much for its own accounting.
    pub socket: (usize, usize),
    /// A request's head must be there within this time after its first byte, or after the connection was opened.
    pub header: Duration,
    /// Longest time between two requests of one connection. Longer than that of proxies in front: they would send a request into a
    /// connection that is just being closed.
    pub idle: Duration,
    /// Longest life of a connection that serves one request only. `None`: it is kept for more requests.
    pub single: Option<Duration>,
    /// Requests under way when the process ends have this long to finish.
    pub drain: Duration,
    /// The answer to a head that no handler sees. `None`: hyper's own, which has no body.
    pub refusal: Option<fn(StatusCode) -> Refused>,
}

impl Limits {
    /// Most memory that connections can take, bytes, kernel buffers included, which count for a pod as well. Not in it: what handlers
    /// hold of requests and answers. A read buffer grows by doubling, so it can be twice as large as the longest head.
    pub const fn memory(&self, tls: bool) -> usize {
        let tls = if tls { TLS } else { 0 };
        self.connections * (2 * self.head + 2 * (self.socket.0 + self.socket.1) + tls + STATE)
    }
}

/// Accepts until `stop`, then lets requests under way finish.
pub async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router, limits: Limits, stop: CancellationToken) {
    // Accepted connections inherit these.
    let sized = sockopt::set_socket_recv_buffer_size(&listener, limits.socket.0)
        .and_then(|()| sockopt::set_socket_send_buffer_size(&listener, limits.socket.1));
    if let Err(error) = sized {
        tracing::warn!(%error, "cannot bound the kernel's buffers of connections");
    }
    let (slots, crowd) = (Arc::new(Semaphore::new(limits.connections)), Arc::new(Crowd::default()));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let (stream, peer) = listener.accept().await?;
            Ok::<_, std::io::Error>((stream, peer, slot(&slots, &crowd).await))
        };
        let next = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        match next {
            Ok((stream, peer, Some(slot))) => {
                let seat = crowd.seat(peer.ip());
                let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = accept(stream, peer, tls, router, limits, &seat, stop) => {}
                        () = seat.closed() => tracing::debug!("an idle connection was closed to make room for another one"),
                    }
                    drop(slot);
                });
            }
            Ok((_, _, None)) => break,
            Err(error) => {
                // Mostly out of file descriptors: trying again at once would only burn the processor.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let _ = tokio::time::timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await;
}

/// A place for one connection, that of another one if need be. Waits while all connections are being answered.
async fn slot(slots: &Arc<Semaphore>, crowd: &Crowd) -> Option<OwnedSemaphorePermit> {
    if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
        return Some(slot);
    }
    let slot = Arc::clone(slots).acquire_owned();
    tokio::pin!(slot);
    loop {
        let waits = crowd.somebody_waits();
        if crowd.close_one() {
            return slot.await.ok();
        }
        tokio::select! {
            slot = &mut slot => return slot.ok(),
            () = waits => {}
        }
    }
}

async fn accept(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    seat: &Arc<Seat>,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => connection(stream, router, limits, seat, stop).await,
        Some(tls) => {
            let handshake = tls.accept_with(stream, |session| session.set_buffer_limit(Some(TLS_OUT)));
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, handshake).await else {
                return tracing::debug!(%peer, "a TLS handshake failed or took too long");
            };
            connection(stream, router, limits, seat, stop).await;
        }
    }
}

async fn connection<S>(stream: S, router: Router, limits: Limits, seat: &Arc<Seat>, stop: CancellationToken)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let turn = Turn::new(Arc::clone(seat));
    let mut http = hyper::server::conn::http1::Builder::new();
    // The peer's stream has the time limits: hyper cannot tell an idle connection from a slow head.
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(limits.head).keep_alive(limits.single.is_none());
    let service = {
        let turn = turn.clone();
        tower::service_fn(move |request| {
            let (turn, router) = (turn.clone(), router.clone());
            turn.begins();
            async move { Ok::<_, std::convert::Infallible>(Answering::wrap(router.oneshot(request).await, turn)) }
        })
    };
    let peer = Peer::new(stream, turn, limits);
    let connection = http.serve_connection(TokioIo::new(peer), TowerToHyperService::new(service));
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;

    use super::*;

    const LIMITS: Limits = Limits {
        connections: 2,
        head: 8 * 1024,
        socket: (8 * 1024, 8 * 1024),
        header: Duration::from_secs(3600),
        idle: Duration::from_secs(3600),
        single: None,
        drain: Duration::from_secs(1),
        refusal: None,
    };
    const ENOUGH: Duration = Duration::from_secs(20);

    async fn start() -> (SocketAddr, Arc<Notify>, tokio_util::sync::DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop, goes_on) = (listener.local_addr().unwrap(), CancellationToken::new(), Arc::new(Notify::new()));
        let held = Arc::clone(&goes_on);
        let slow = move || {
            let held = Arc::clone(&held);
            async move {
                held.notified().await;
                "late"
            }
        };
        let router = Router::new().route("/fast", get(|| async { "now" })).route("/slow", get(slow));
        tokio::spawn(run(listener, None, router, LIMITS, stop.clone()));
        (address, goes_on, stop.drop_guard())
    }

    async fn send(address: SocketAddr, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(ENOUGH, stream.read(&mut bytes)).await.expect("no answer").unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Silent ones, one with half a head, and one between two requests: each has taken a place for an hour.
    #[tokio::test]
    async fn a_newcomer_takes_the_place_of_who_waits() {
        let (address, _, _stop) = start().await;
        let mut idle = send(address, "GET /fast HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert!(answer(&mut idle).await.contains("200 OK"));
        let mut waiting = vec![idle, send(address, "").await, send(address, "GET /fast HTT").await];
        for _ in 0..10 {
            let mut newcomer = send(address, "GET /fast HTTP/1.1\r\nHost: h\r\n\r\n").await;
            assert!(answer(&mut newcomer).await.contains("200 OK"));
            waiting.push(newcomer);
        }
        assert_eq!(answer(&mut waiting[0]).await, "", "the oldest one is closed");
    }

    #[tokio::test]
    async fn who_is_being_answered_is_waited_for() {
        let (address, goes_on, _stop) = start().await;
        let slow = "GET /slow HTTP/1.1\r\nHost: h\r\n\r\n";
        let (mut one, mut two) = (send(address, slow).await, send(address, slow).await);
        let mut newcomer = send(address, "GET /fast HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let waits = tokio::time::timeout(Duration::from_millis(200), newcomer.read(&mut [0; 16])).await;
        assert!(waits.is_err(), "all places are taken: {waits:?}");
        goes_on.notify_one();
        assert!(answer(&mut newcomer).await.contains("200 OK"), "as soon as one of them waits for its next request");
        goes_on.notify_one();
        for stream in [&mut one, &mut two] {
            assert!(answer(stream).await.contains("late"), "nobody was cut off");
        }
    }

    #[tokio::test]
    async fn the_sum_is_that_of_its_parts() {
        let one = 2 * 8 * 1024 + 2 * 16 * 1024 + STATE;
        assert_eq!((LIMITS.memory(false), LIMITS.memory(true)), (2 * one, 2 * (one + TLS)));
    }
}
