//! The layers around every request: a request id, the limit of requests in flight, the access log, metrics, and a response even if a handler panics. Logs
//! and metrics must name the route and never the path, because paths contain ids.
//!
//! A request is in flight until its response has been sent, not until its handler returns. A client that reads slowly therefore uses up its own tenant's
//! share, and the memory of its response is accounted for. A response for which there is no memory is replaced by 429, but never the response of a request
//! that may have changed something: its client must learn what was done. Such a response can be cut off later if its client reads slowly.
//!
//! A response to a client without a valid credential is static and has no tenant, so it keeps neither a slot nor its connection while it is sent.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rand::RngCore;
use tracing::Instrument as _;

use super::Shared;
use super::auth::Caller;
use super::error::ApiError;
use super::response_body;
use super::tenant_limits::{Room, SMALL, Share};
use crate::runtime::server::Refused;
use crate::runtime::server::connections::Seat;

const REQUEST_ID: &str = "x-request-id";

/// The authenticated caller, for the access log, and its share of the requests in flight, held as long as the request.
#[derive(Clone, Debug, Default)]
pub struct Who(Arc<OnceLock<(String, Share)>>);

impl Who {
    /// Stores the authenticated caller.
    pub fn note(&self, caller: &Caller, share: Share) {
        let _ = self.0.set((caller.describe(), share));
    }
}

/// The outermost layer of every route. Log lines of the handlers carry the request id in their span.
pub async fn observe(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(&request);
    let method = method_label(request.method());
    let writes = !request.method().is_safe();
    let seat = request.extensions().get::<Arc<Seat>>().cloned();
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| "none".to_owned(), |m| m.as_str().to_owned());
    let who = Who::default();
    request.extensions_mut().insert(who.clone());
    let counted = shared.metrics.begins();
    let mut response = match Arc::clone(&shared.slots).try_acquire_owned() {
        Ok(slot) => {
            let span = tracing::info_span!("request", %id, method, route);
            let how = Sent { free: free(shared.max_body, writes), writes, seat };
            let response = next.run(request).instrument(span).await;
            let slot = who.0.get().map(|_| slot);
            if let (None, Some(seat)) = (&slot, &how.seat) {
                // Another connection may take its place. Otherwise anybody could hold all connections by reading the documentation slowly.
                seat.waits();
            }
            sent(response, &who, &how, (slot, counted))
        }
        Err(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests are in flight: retry in a second").into_response(),
    };
    let (code, took) = (response.status().as_u16(), began.elapsed());
    shared.metrics.answered(method, &route, code, took);
    let caller = who.0.get().map_or("-", |known| &known.0);
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(target: "computer_operator::access", %id, method, route, code, millis, caller);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// What decides about the memory of a response.
struct Sent {
    /// Responses up to this size in bytes are not counted.
    free: usize,
    /// The request may have changed something.
    writes: bool,
    /// The connection; `None` in tests.
    seat: Option<Arc<Seat>>,
}

/// Size in bytes up to which a response is not counted. The response of a write uses the memory of the request body, which is free by then; only half of
/// it, because a JSON buffer can be reserved twice as large as needed.
fn free(max_body: usize, writes: bool) -> usize {
    if writes { SMALL.max(max_body / 2) } else { SMALL }
}

/// Makes a response keep the resources of its request until it has been sent. Returns 429 if the memory for large responses is used up.
fn sent(response: Response, who: &Who, how: &Sent, held: impl Send + Sync + 'static) -> Response {
    let bytes = response.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    // Responses without an authenticated caller are static data and use no memory of their own.
    let room = who.0.get().filter(|_| bytes > how.free).map(|(_, share)| {
        let seat = how.seat.clone();
        if how.writes { Some(share.room_after_write(bytes, seat)) } else { share.room(bytes, seat) }
    });
    let (response, room): (_, Option<Room>) = match room {
        None => (response, None),
        Some(Some(room)) => (response, Some(room)),
        Some(None) => {
            let detail = "too many large responses are being sent, for your namespace or in total: read them faster, or retry in a second";
            (ApiError::new(StatusCode::TOO_MANY_REQUESTS, detail).into_response(), None)
        }
    };
    let sent = room.as_ref().map(Room::sent).unwrap_or_default();
    let held = (held, who.clone(), room);
    response.map(|body| Body::new(response_body::Sending::new(body, held, sent)))
}

/// The response to an invalid request head, which never reaches a route.
pub fn refusal(status: StatusCode) -> Refused {
    let detail = match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => {
            format!(
                "the path and headers of the request exceed {} KiB, or there are more than 100 headers: reduce them",
                super::HEAD / 1024
            )
        }
        _ => "the request is not valid HTTP/1.1: check the request line, header names, Content-Length and Transfer-Encoding".to_owned(),
    };
    let id = new_id();
    tracing::info!(target: "computer_operator::access", %id, method = "-", route = "none", code = status.as_u16(), millis = 0, caller = "-");
    let body = ApiError::new(status, detail).body();
    (vec![("content-type", "application/json".to_owned()), (REQUEST_ID, id)], serde_json::to_string(&body).unwrap_or_default())
}

/// The request id of the client if it is safe to log, or a new one.
fn request_id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok());
    let harmless = |id: &&str| (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    given.filter(harmless).map_or_else(new_id, str::to_owned)
}

fn new_id() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// A bounded label for the method, because clients can invent methods.
fn method_label(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// The response after a panic of a handler. The text of the panic may contain anything, so it is only in the log of the process.
#[allow(clippy::needless_pass_by_value)] // the layer's signature
pub fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal("the request failed because of an internal error: retry it, and report the x-request-id to the admin of the cluster")
        .into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::credentials::{ComputerId, KeyRights};
    use crate::runtime::server;

    const LARGE: usize = 4 * 1024 * 1024;

    async fn serve(shared: &Arc<Shared>, connections: usize) -> (std::net::SocketAddr, tokio_util::sync::DropGuard) {
        let anonymous = get(|| async { vec![b'x'; LARGE] });
        let router = crate::http::with_layers(Router::new().route("/large", get(large)).route("/docs", anonymous), Arc::clone(shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let limits = server::Limits { connections, ..crate::http::tests::config().limits() };
        tokio::spawn(server::run(listener, None, router, limits, stop.clone()));
        (address, stop.drop_guard())
    }

    /// L9: slot and share used to be released when the handler returned, while a slow client could keep the response in memory.
    #[tokio::test]
    async fn a_request_is_in_flight_until_its_response_has_been_read() {
        let shared = crate::http::tests::shared();
        let free = || shared.slots.available_permits();
        let all = free();
        let (address, _stop) = serve(&shared, 8).await;
        let mut slow = ask(address, "one").await.0;
        assert_eq!((free(), shared.metrics.in_flight()), (all - 1, 1), "the handler has returned, but the response has not been read");
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() > LARGE);
        let deadline = Instant::now() + Duration::from_secs(20);
        while free() < all || shared.metrics.in_flight() > 0 {
            assert!(Instant::now() < deadline, "a slot was not released");
            tokio::task::yield_now().await;
        }
        // A client that disconnects releases the slot as well.
        let gone = ask(address, "one").await;
        assert_eq!(free(), all - 1);
        drop(gone);
        while free() < all {
            assert!(Instant::now() < deadline, "a slot was not released");
            tokio::task::yield_now().await;
        }
    }

    /// L9: clients without any credential that read the documentation slowly held all slots and all connections.
    #[tokio::test]
    async fn slow_readers_without_a_credential_hold_neither_slots_nor_connections() {
        let shared = crate::http::tests::shared();
        let all = shared.slots.available_permits();
        let (address, _stop) = serve(&shared, 2).await;
        let mut slow = Vec::new();
        for _ in 0..6 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /docs HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            let mut head = [0; 12];
            let read = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut head)).await;
            read.expect("two connections were kept by clients that do not read").unwrap();
            assert_eq!(shared.slots.available_permits(), all);
            slow.push(stream);
        }
    }

    #[test]
    fn a_tenant_that_does_not_read_gets_no_further_large_responses() {
        let shares = crate::http::tenant_limits::Shares::new(8, 2 * LARGE);
        let who = |namespace: &str| {
            let caller =
                Caller::Computer(ComputerId { namespace: namespace.into(), name: "c".into(), uid: "u".into() }, KeyRights::default());
            let who = Who::default();
            who.note(&caller, shares.take(&caller).unwrap());
            who
        };
        let (greedy, other) = (who("greedy"), who("other"));
        let how = |writes| Sent { free: free(128 * 1024, writes), writes, seat: None };
        let answer = |who: &Who, bytes: usize| sent(vec![b'x'; bytes].into_response(), who, &how(false), ());
        let unread = answer(&greedy, LARGE);
        assert_eq!(unread.status(), StatusCode::OK);
        let refused = answer(&greedy, SMALL + 1);
        assert_eq!((refused.status(), &refused.headers()["retry-after"]), (StatusCode::TOO_MANY_REQUESTS, &HeaderValue::from_static("1")));
        assert_eq!(answer(&greedy, SMALL).status(), StatusCode::OK, "small responses are not counted");
        // A POST that created something got 429, and the client created it a second time.
        for bytes in [SMALL + 1, 64 * 1024, LARGE] {
            let written = sent(vec![b'x'; bytes].into_response(), &greedy, &how(true), ());
            assert_eq!(written.status(), StatusCode::OK, "{bytes}");
        }
        assert_eq!(answer(&other, LARGE).status(), StatusCode::OK, "other tenants have their own share");
        assert_eq!(answer(&Who::default(), LARGE).status(), StatusCode::OK, "static responses use no memory");
        drop(unread);
        assert_eq!(answer(&greedy, LARGE).status(), StatusCode::OK);
    }

    /// `/large`, for the namespace that a header names, as a handler responds after authentication.
    async fn large(State(shared): State<Arc<Shared>>, request: Request) -> Response {
        let namespace = request.headers()["x-namespace"].to_str().unwrap().to_owned();
        let caller = Caller::Computer(ComputerId { namespace, name: "c".into(), uid: "u".into() }, KeyRights::default());
        request.extensions().get::<Who>().unwrap().note(&caller, shared.shares.take(&caller).unwrap());
        vec![b'x'; LARGE].into_response()
    }

    async fn ask(address: std::net::SocketAddr, namespace: &str) -> (TcpStream, String) {
        // Otherwise the kernel takes a whole response that nobody reads.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let head = format!("GET /large HTTP/1.1\r\nHost: h\r\nX-Namespace: {namespace}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        (stream, String::from_utf8_lossy(&status[9..]).into_owned())
    }

    /// Two namespaces whose clients did not read held all of the memory for large responses, and every other namespace got 429. Over real connections:
    /// stalled connections are closed, and a slow client that reads is not cut off.
    #[tokio::test]
    async fn responses_that_are_not_read_give_way_to_those_of_other_tenants() {
        let shared = crate::http::tests::shared();
        let (address, _stop) = serve(&shared, 16).await;
        let mut healthy = ask(address, "one").await.0;
        let ((served, enough), (ahead, read)) = (tokio::sync::oneshot::channel::<()>(), tokio::sync::oneshot::channel::<()>());
        let slow = tokio::spawn(async move {
            let (mut bytes, mut all) = (vec![0; 64 * 1024], 0);
            while all < LARGE / 4 {
                all += healthy.read(&mut bytes).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            ahead.send(()).unwrap();
            // It reads on, but very slowly, until the other tenant has been served.
            tokio::pin!(enough);
            while tokio::time::timeout(Duration::from_millis(50), &mut enough).await.is_err() {
                all += healthy.read(&mut bytes[..1]).await.unwrap();
            }
            all + healthy.read_to_end(&mut Vec::new()).await.unwrap()
        });
        let mut stalled = vec![ask(address, "one").await, ask(address, "two").await, ask(address, "two").await];
        assert!(stalled.iter().all(|(_, code)| code == "200"), "{stalled:?}");
        read.await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut other = loop {
            match ask(address, "three").await {
                (stream, code) if code == "200" => break stream,
                (_, code) => assert_eq!(code, "429"),
            }
            assert!(Instant::now() < deadline, "L9: two namespaces that do not read block another one");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        served.send(()).unwrap();
        let mut rest = Vec::new();
        other.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() > LARGE, "the response is complete");
        let mut short = 0;
        for (stream, _) in &mut stalled {
            rest.clear();
            let whole = stream.read_to_end(&mut rest).await.is_ok() && rest.len() > LARGE;
            short += u32::from(!whole);
        }
        assert_eq!(short, 1, "only as many as necessary are closed");
        assert!(slow.await.unwrap() > LARGE, "a slow client was cut off");
    }
}
