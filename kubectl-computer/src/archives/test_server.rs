//! A server on the loopback interface for tests: the HTTP API with one archive, as a network and a proxy may spoil it. Every request has a connection of its own.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::api::{HttpApi, Limits};
use super::pace::Waits;
use super::token::Token;

/// What the server does with the next request.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// Answers it.
    Usual,
    /// Ends the connection after this many bytes of the body.
    Break(usize),
    /// Ends the connection without an answer.
    Drop,
    /// Sends no `Content-Length`, and ends the answer properly after this many bytes.
    End(usize),
    /// Sends this many bytes of the body, and then nothing.
    Stall(usize),
    /// Sends no answer.
    Silent,
    /// Sends the body in ten pieces, and waits before each.
    Slow(Duration),
    /// Answers with this status and this `Retry-After`.
    Refuse(u16, &'static str),
    /// Sends everything, whatever was asked for.
    Whole,
    /// Sends it with this tag.
    Tag(&'static str),
    /// Changes the last byte.
    Damage,
    /// Says that it sends this range.
    Range(&'static str),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub method: String,
    pub path: String,
    pub range: String,
    pub token: String,
}

/// The server.
pub struct Server {
    pub content: Vec<u8>,
    sessions: Vec<&'static str>,
    next: Mutex<VecDeque<Next>>,
    seen: Mutex<Vec<Seen>>,
    tokens: AtomicU32,
}

pub const TAG: &str = "\"0123456789abcdef\"";
pub const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// The id of the computer.
pub fn id() -> String {
    URL_SAFE_NO_PAD.encode(format!("team/box/{UID}"))
}

/// Limits with which no test waits long, and that no busy machine exceeds.
pub const LIMITS: Limits = Limits {
    list: Duration::from_secs(20),
    read: Duration::from_secs(20),
    waits: Waits {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(2),
        longest_asked: Duration::from_secs(5),
        patience: 15,
    },
};

/// The document of an archive with these sessions. It has fields that this program does not use.
pub fn document(ids: &[&str]) -> Value {
    let session = |id: &&str| json!({"id": id, "files": 1, "bytes": 2, "storedBytes": 3, "tarDigest": "d".repeat(64), "tarBytes": 4});
    json!({"namespace": "t", "name": "c", "uid": "u", "createdAt": 0, "manifestDigest": "m", "storedBytes": 9,
        "storedDigest": "s", "tarBytes": 10, "lost": 1, "leftOutBy": "the class", "sessions": ids.iter().map(session).collect::<Vec<_>>(),
        "problems": [{"path": "a\u{1b}[2Kb", "kind": "unreadable", "detail": "x"}]})
}

/// A digest in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Server {
    /// A server with some content, and its URL.
    pub async fn start(next: &[Next]) -> (Arc<Self>, String) {
        Self::with((0..20_000_u32).flat_map(u32::to_le_bytes).collect(), &["s/one"], next).await
    }

    /// A server with this content, in an archive with these sessions.
    pub async fn with(content: Vec<u8>, sessions: &[&'static str], next: &[Next]) -> (Arc<Self>, String) {
        let next = Mutex::new(next.iter().copied().collect());
        let server = Arc::new(Self { content, sessions: sessions.to_vec(), next, seen: Mutex::default(), tokens: AtomicU32::new(0) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (url, serving) = (format!("http://{}", listener.local_addr().unwrap()), Arc::clone(&server));
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let serving = Arc::clone(&serving);
                // A client may go away at any time.
                tokio::spawn(async move { serving.serve(connection).await.is_ok() });
            }
        });
        (server, url)
    }

    /// What was asked for.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The ranges that were asked for.
    pub fn ranges(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.range).collect()
    }

    /// The tokens that were sent.
    pub fn used(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.token).collect()
    }

    async fn serve(&self, mut connection: TcpStream) -> io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap();
        let headers: BTreeMap<&str, &str> = head.lines().filter_map(|line| line.split_once(": ")).collect();
        let text = |name: &str| headers.get(name).copied().unwrap_or_default();
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        if path.contains("/token") {
            let mut body = vec![0; text("content-length").parse().unwrap()];
            connection.read_exact(&mut body).await?;
            return send(&mut connection, 201, &[], self.new_token().to_string().as_bytes()).await;
        }
        let (range, token) = (text("range").to_owned(), text("authorization").replace("Bearer ", ""));
        assert!(range.is_empty() || text("if-range") == TAG);
        let seen = Seen { at: Instant::now(), method, path, range, token };
        self.seen.lock().unwrap().push(seen.clone());
        let next = self.next.lock().unwrap().pop_front().unwrap_or(Next::Usual);
        match next {
            Next::Drop => Ok(()),
            Next::Silent => stall(connection).await,
            Next::Refuse(status, after) => {
                let body = json!({"detail": "a reason", "status": status, "title": "No"}).to_string();
                send(&mut connection, status, &[("retry-after", after.to_owned())], body.as_bytes()).await
            }
            _ => self.answer(connection, &seen, next).await,
        }
    }

    /// A token of a `ServiceAccount`, another one each time.
    fn new_token(&self) -> Value {
        let token = format!("account-{}", self.tokens.fetch_add(1, Ordering::Relaxed));
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": {"audiences": []},
            "status": {"token": token, "expirationTimestamp": "2026-01-01T00:00:00Z"}})
    }

    async fn answer(&self, mut connection: TcpStream, seen: &Seen, next: Next) -> io::Result<()> {
        let mut body = self.body(&seen.path);
        let length = body.len();
        let asked = seen.range.strip_prefix("bytes=").map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
        let from: usize = if matches!(next, Next::Whole) { 0 } else { asked };
        let tag = if let Next::Tag(tag) = next { tag } else { TAG };
        let mut headers = vec![("etag", tag.to_owned())];
        headers.extend(self.digests(&seen.path));
        if from > 0 {
            let range = format!("bytes {from}-{}/{length}", length - 1);
            headers.push(("content-range", if let Next::Range(other) = next { other.to_owned() } else { range }));
        }
        if matches!(next, Next::Damage) {
            body[length - 1] ^= 1;
        }
        let status = if from > 0 { 206 } else { 200 };
        let body = &body[from..];
        if let Next::End(after) = next {
            headers.push(("transfer-encoding", "chunked".to_owned()));
            let chunk = [format!("{after:x}\r\n").as_bytes(), &body[..after], b"\r\n0\r\n\r\n"].concat();
            connection.write_all(head(status, &headers).as_bytes()).await?;
            return connection.write_all(&chunk).await;
        }
        headers.push(("content-length", body.len().to_string()));
        connection.write_all(head(status, &headers).as_bytes()).await?;
        match next {
            Next::Break(after) => connection.write_all(&body[..after]).await?,
            Next::Stall(after) => {
                connection.write_all(&body[..after]).await?;
                return stall(connection).await;
            }
            Next::Slow(wait) => {
                for piece in body.chunks(body.len().div_ceil(10)) {
                    tokio::time::sleep(wait).await;
                    connection.write_all(piece).await?;
                }
            }
            _ => connection.write_all(body).await?,
        }
        connection.shutdown().await
    }

    fn body(&self, path: &str) -> Vec<u8> {
        if path.contains("/deletions?") {
            let deletion = json!({"computerId": id(), "name": "box", "uid": UID, "state": "Deleted", "deletedAt": 0, "archive": {"sessions": 1, "bytes": 2}});
            return json!({"deletions": [deletion], "pagination": {"nextCursor": null}}).to_string().into();
        }
        if path.ends_with("/archive") { document(&self.sessions).to_string().into() } else { self.content.clone() }
    }

    fn digests(&self, path: &str) -> Vec<(&'static str, String)> {
        if path.ends_with("/export") {
            let digest = STANDARD.encode(Sha256::digest(&self.content));
            let name = format!("attachment; filename=\"box-{UID}.tar.zst\"");
            return vec![("repr-digest", format!("sha-256=:{digest}:")), ("content-disposition", name)];
        }
        let tar = zstd::decode_all(&self.content[..]).unwrap_or_default();
        vec![("computer-tar-sha256", sha256(&tar)), ("computer-tar-bytes", tar.len().to_string())]
    }
}

/// Keeps a connection until the client closes it.
async fn stall(mut connection: TcpStream) -> io::Result<()> {
    connection.read_u8().await.map(drop)
}

fn head(status: u16, headers: &[(&str, String)]) -> String {
    let lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{}\r\n", lines.concat())
}

async fn send(connection: &mut TcpStream, status: u16, headers: &[(&str, String)], body: &[u8]) -> io::Result<()> {
    let headers = [headers, &[("content-type", "application/json".to_owned()), ("content-length", body.len().to_string())]].concat();
    connection.write_all(head(status, &headers).as_bytes()).await?;
    connection.write_all(body).await?;
    connection.shutdown().await
}

/// How long a request or a download of a test may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits with a deadline: what is never cut off would wait without end.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.unwrap()
}

/// The API as a client with a token that nothing replaces sees it.
pub fn client(url: &str, limits: Limits) -> HttpApi {
    HttpApi::of(url, Token::given("t"), limits).unwrap()
}
