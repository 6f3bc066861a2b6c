//! The accept loop of every HTTP endpoint of this program. It bounds the resources of unauthenticated clients: open connections, size of a request head,
//! kernel buffers, and time. [`Limits::memory`] is the sum of these bounds. axum's own server has none of these limits.
//!
//! A slow or silent client must never block others: when all connections are in use, the one that has been idle longest is closed for a new one
//! ([`self::connections`]). A connection whose request is being answered is never closed for that. An invalid request head never reaches a handler;
//! [`self::stream`] replaces hyper's empty response to it.

pub mod connections;
pub mod request_body;
pub mod request_state;
pub mod stream;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::connections::{Crowd, Seat};
use self::request_body::Received;
use self::request_state::{Answering, Turn};
use self::stream::Peer;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// TLS buffers of one connection: rustls buffers a handshake of up to 64 KiB; afterwards its buffers are smaller.
const TLS: usize = 64 * 1024;
/// Limit of encrypted bytes that the client has not read yet.
const TLS_OUT: usize = 16 * 1024;
/// Task, timers and hyper's state of one connection, and the headers of one request.
const STATE: usize = 24 * 1024;

/// Headers and body of the response to an invalid head.
pub type Refused = (Vec<(&'static str, String)>, String);

/// Limits of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of open connections. A further connection replaces an idle one, or waits.
    pub connections: usize,
    /// Maximum size of a request head in bytes, at least 8 KiB. A larger one is answered with 431.
    pub head: usize,
    /// Receive and send buffers of one connection in the kernel, in bytes. The kernel reserves twice as much for its own accounting.
    pub socket: (usize, usize),
    /// Time limit for a request head, from its first byte or from the start of the connection.
    pub header: Duration,
    /// Maximum idle time of a connection between two requests. Longer than that of proxies, which would otherwise send a request on a connection that is
    /// being closed.
    pub idle: Duration,
    /// Maximum lifetime of a connection that serves only one request. `None` if connections are kept for further requests.
    pub single: Option<Duration>,
    /// Time that requests in flight have to finish at shutdown.
    pub drain: Duration,
    /// The response to an invalid head. `None` for hyper's own response, which has no body.
    pub refusal: Option<fn(StatusCode) -> Refused>,
}

impl Limits {
    /// Maximum memory of all connections in bytes, including kernel buffers, which count for a pod as well. It does not include the memory of handlers for
    /// requests and responses. A read buffer grows by doubling, so it can be twice as large as the largest head.
    pub const fn memory(&self, tls: bool) -> usize {
        let tls = if tls { TLS } else { 0 };
        self.connections * (2 * self.head + 2 * (self.socket.0 + self.socket.1) + tls + STATE)
    }
}

/// Connections that the kernel accepts before this program does.
const BACKLOG: u32 = 1024;

/// Listens on an address. `[::]` accepts IPv4 and IPv6, whatever `net.ipv6.bindv6only` is on the node, and only IPv4 on a node without IPv6. It must be
/// called in a tokio runtime.
///
/// # Errors
/// When the address is not one of this machine, or is in use.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let any = address.ip().is_unspecified();
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        match TcpSocket::new_v6() {
            Ok(socket) => {
                sockopt::set_ipv6_v6only(&socket, !any)?;
                socket
            }
            Err(error) if any && Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => {
                return listen((Ipv4Addr::UNSPECIFIED, address.port()).into());
            }
            Err(error) => return Err(error),
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until `stop` is cancelled, and then lets requests in flight finish.
pub async fn run(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router, limits: Limits, stop: CancellationToken) {
    // Accepted connections inherit these.
    let sized = sockopt::set_socket_recv_buffer_size(&listener, limits.socket.0)
        .and_then(|()| sockopt::set_socket_send_buffer_size(&listener, limits.socket.1));
    if let Err(error) = sized {
        tracing::warn!(%error, "cannot limit the kernel buffers of connections");
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
                        () = seat.closed() => tracing::debug!("closed a connection to make room for others"),
                    }
                    drop(slot);
                });
            }
            Ok((_, _, None)) => break,
            Err(error) => {
                // Usually a lack of file descriptors; an immediate retry would only waste CPU time.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let _ = tokio::time::timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await;
}

/// A slot for a new connection; closes an idle connection if necessary. Waits while all connections are busy.
async fn slot(slots: &Arc<Semaphore>, crowd: &Crowd) -> Option<OwnedSemaphorePermit> {
    if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
        return Some(slot);
    }
    let slot = Arc::clone(slots).acquire_owned();
    tokio::pin!(slot);
    loop {
        let waits = crowd.next_idle();
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
                return tracing::debug!(%peer, "TLS handshake failed or timed out");
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
    // The stream enforces the time limits, because hyper cannot distinguish an idle connection from a slow head.
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(limits.head).keep_alive(limits.single.is_none());
    let service = {
        let turn = turn.clone();
        let seat = Arc::clone(seat);
        tower::service_fn(move |mut request: axum::http::Request<hyper::body::Incoming>| {
            let (turn, router) = (turn.clone(), router.clone());
            turn.begins();
            // What holds memory for this connection can end it.
            request.extensions_mut().insert(Arc::clone(&seat));
            let (request, unread) = Received::of(request);
            async move { Ok::<_, std::convert::Infallible>(unread.announce(Answering::wrap(router.oneshot(request).await, turn))) }
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
            Err(_) => return tracing::debug!("closed a connection that exceeded its maximum lifetime"),
        },
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended with an error");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
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
        let (address, stop, release) = (listener.local_addr().unwrap(), CancellationToken::new(), Arc::new(Notify::new()));
        let held = Arc::clone(&release);
        let slow = move || {
            let held = Arc::clone(&held);
            async move {
                held.notified().await;
                "late"
            }
        };
        let read = post(|body: String| async move { body });
        let router = Router::new()
            .route("/fast", get(|| async { "now" }).post(|| async { "unread" }))
            .route("/slow", get(slow))
            .route("/read", read);
        tokio::spawn(run(listener, None, router, LIMITS, stop.clone()));
        (address, release, stop.drop_guard())
    }

    async fn send(address: SocketAddr, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(ENOUGH, stream.read(&mut bytes)).await.expect("no response").unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// The idle connections (silent, with half a head, and between two requests) would otherwise keep their slots for an hour.
    #[tokio::test]
    async fn a_new_connection_replaces_an_idle_one() {
        let (address, _, _stop) = start().await;
        let mut idle = send(address, "GET /fast HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert!(answer(&mut idle).await.contains("200 OK"));
        let mut waiting = vec![idle, send(address, "").await, send(address, "GET /fast HTT").await];
        for _ in 0..10 {
            let mut newcomer = send(address, "GET /fast HTTP/1.1\r\nHost: h\r\n\r\n").await;
            assert!(answer(&mut newcomer).await.contains("200 OK"));
            waiting.push(newcomer);
        }
        assert_eq!(answer(&mut waiting[0]).await, "", "the connection that was idle longest is closed");
    }

    #[tokio::test]
    async fn a_new_connection_waits_while_all_others_are_busy() {
        let (address, release, _stop) = start().await;
        let slow = "GET /slow HTTP/1.1\r\nHost: h\r\n\r\n";
        let (mut one, mut two) = (send(address, slow).await, send(address, slow).await);
        let mut newcomer = send(address, "GET /fast HTTP/1.1\r\nHost: h\r\n\r\n").await;
        let waits = tokio::time::timeout(Duration::from_millis(200), newcomer.read(&mut [0; 16])).await;
        assert!(waits.is_err(), "all slots are in use: {waits:?}");
        release.notify_one();
        assert!(answer(&mut newcomer).await.contains("200 OK"), "it is served once another connection is idle");
        release.notify_one();
        for stream in [&mut one, &mut two] {
            assert!(answer(stream).await.contains("late"), "busy connections are not closed");
        }
    }

    /// A client reused a connection on which the server had answered 413 without reading the body, and its next request failed.
    #[tokio::test]
    async fn a_response_to_an_unread_request_announces_that_the_connection_is_closed() {
        let (address, _, _stop) = start().await;
        let half = "POST /fast HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\nhalf";
        let mut unread = answer(&mut send(address, half).await).await.to_lowercase();
        assert!(unread.contains("200 ok") && unread.contains("connection: close"), "{unread}");
        let whole = "POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nwhole";
        let chunked = "POST /read HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n";
        for request in [whole, chunked, "GET /fast HTTP/1.1\r\nHost: h\r\n\r\n"] {
            let mut stream = send(address, request).await;
            let read = answer(&mut stream).await.to_lowercase();
            assert!(read.contains("200 ok") && !read.contains("connection"), "{read}");
            stream.write_all(half.as_bytes()).await.unwrap();
            unread = answer(&mut stream).await.to_lowercase();
            assert!(unread.contains("connection: close"), "the connection was reused: {unread}");
        }
    }

    /// A Service with an IPv6 address reached no pod, and on a cluster with IPv6 only no probe succeeded.
    #[tokio::test]
    async fn the_unspecified_address_accepts_ipv4_and_ipv6() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(run(listener, None, Router::new().route("/fast", get(|| async { "now" })), LIMITS, CancellationToken::new()));
        // A machine without IPv6 has no such loopback address.
        let six = tokio::net::TcpListener::bind("[::1]:0").await.is_ok();
        for host in ["127.0.0.1", "::1"].iter().take(1 + usize::from(six)) {
            let address = SocketAddr::new(host.parse().unwrap(), port);
            assert!(answer(&mut send(address, "GET /fast HTTP/1.1\r\nHost: h\r\n\r\n").await).await.contains("200 OK"), "{host}");
        }
    }

    #[tokio::test]
    async fn the_memory_limit_is_the_sum_of_its_parts() {
        let one = 2 * 8 * 1024 + 2 * 16 * 1024 + STATE;
        assert_eq!((LIMITS.memory(false), LIMITS.memory(true)), (2 * one, 2 * (one + TLS)));
    }
}
