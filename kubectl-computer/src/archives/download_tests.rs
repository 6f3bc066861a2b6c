//! Downloads from a server that breaks off, asks to wait, refuses tokens, or sends something else.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::super::token::Token;
use super::*;

/// What the server does with the next request.
enum Next {
    /// Ends the connection after this many bytes.
    Break(usize),
    /// Answers with this status, and a `Retry-After` of a second.
    Refuse(u16),
    /// Sends everything, whatever was asked for.
    Whole,
    /// Sends it with another tag.
    Other,
}

struct Server {
    content: Vec<u8>,
    next: Mutex<VecDeque<Next>>,
    /// Method, range and token of each request.
    seen: Mutex<Vec<[String; 3]>>,
}

const TAG: &str = "\"0123456789abcdef\"";

impl Server {
    /// Answers the request of a connection and closes it: what was written arrives.
    async fn serve(&self, mut connection: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await.unwrap());
        }
        let (head, body) = self.answer(&String::from_utf8(head).unwrap());
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(body).await.unwrap();
        connection.shutdown().await.unwrap();
    }

    fn answer(&self, request: &str) -> (String, &[u8]) {
        let method = request.split(' ').next().unwrap();
        let headers: BTreeMap<&str, &str> = request.lines().filter_map(|line| line.split_once(": ")).collect();
        let text = |name: &str| headers.get(name).copied().unwrap_or_default();
        self.seen.lock().unwrap().push([method, text("range"), &text("authorization").replace("Bearer ", "")].map(str::to_owned));
        let next = if method == "HEAD" { None } else { self.next.lock().unwrap().pop_front() };
        if let Some(Next::Refuse(status)) = next {
            return (format!("HTTP/1.1 {status} No\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"), &[]);
        }
        let asked = text("range").strip_prefix("bytes=").map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
        assert!(asked == 0 || text("if-range") == TAG);
        let from: usize = if matches!(next, Some(Next::Whole)) { 0 } else { asked };
        let tag = if matches!(next, Some(Next::Other)) { "\"other\"" } else { TAG };
        let length = self.content.len();
        let mut head = format!("HTTP/1.1 {} OK\r\nconnection: close\r\netag: {tag}\r\n", if from > 0 { 206 } else { 200 });
        write!(head, "content-length: {}\r\ncontent-range: bytes {from}-{}/{length}\r\n\r\n", length - from, length - 1).unwrap();
        let end = if let Some(Next::Break(after)) = next { from + after } else { length };
        (head, if method == "HEAD" { &[] } else { &self.content[from..end] })
    }
}

/// The server, the API as a client sees it, and what it must send.
async fn serve(next: Vec<Next>, token: Token) -> (Arc<Server>, HttpApi, Expected) {
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let stored = Some(hex::encode(Sha256::digest(&content)));
    let server = Arc::new(Server { content, next: Mutex::new(next.into()), seen: Mutex::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, serving) = (listener.local_addr().unwrap(), Arc::clone(&server));
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            serving.serve(connection).await;
        }
    });
    let api = HttpApi::of(&format!("http://{address}"), token).unwrap();
    let expected = Expected { stored, ..Expected::ask(&api, "id", None).await.unwrap() };
    (server, api, expected)
}

#[tokio::test]
async fn a_download_is_resumed_and_waits_for_an_api_that_is_busy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("box.tar.zst");
    let (server, api, expected) =
        serve(vec![Next::Break(1000), Next::Refuse(429), Next::Break(500), Next::Refuse(503)], Token::given("t")).await;
    to_file(&api, &expected, &file).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), server.content);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the part is left");
    let ranges: Vec<String> = server.seen.lock().unwrap().iter().map(|[_, range, _]| range.clone()).collect();
    let all = ["", "", "bytes=1000-", "bytes=1000-", "bytes=1500-", "bytes=1500-"];
    assert_eq!(ranges, all, "a byte was asked for twice");
}

/// Nothing is written for it, also when the connection breaks.
#[tokio::test]
async fn an_archive_is_verified_without_a_file() {
    let (server, api, expected) = serve(vec![Next::Break(1000)], Token::given("t")).await;
    assert_eq!(to_nothing(&api, &expected).await.unwrap(), format!("sha256:{}", hex::encode(Sha256::digest(&server.content))));
    let (_, api, expected) = serve(vec![], Token::given("t")).await;
    let wrong = Expected { stored: Some("0".repeat(64)), ..expected };
    assert!(to_nothing(&api, &wrong).await.is_err());
}

#[tokio::test]
async fn a_proxy_that_drops_ranges_costs_bytes_and_no_download() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a");
    let (server, api, expected) = serve(vec![Next::Break(1000), Next::Whole], Token::given("t")).await;
    to_file(&api, &expected, &file).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), server.content);
}

#[tokio::test]
async fn what_another_request_cannot_change_ends_the_download_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for (n, (next, requests)) in [(Next::Refuse(404), 2), (Next::Refuse(401), 2), (Next::Other, 2)].into_iter().enumerate() {
        let (server, api, expected) = serve(vec![next], Token::given("t")).await;
        let error = to_file(&api, &expected, &folder.path().join(n.to_string())).await.unwrap_err();
        assert_eq!(server.seen.lock().unwrap().len(), requests, "{error:#}");
    }
}

/// A token of a ServiceAccount lives for an hour, a download may take longer.
#[tokio::test]
async fn a_token_that_expires_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("token");
    std::fs::write(&tokens, "first\n").unwrap();
    let token = Token::in_file(tokens.clone());
    assert!(token.renew("").await.unwrap());
    let (server, api, expected) = serve(vec![Next::Refuse(401), Next::Refuse(401)], token).await;
    std::fs::write(&tokens, "second\n").unwrap();
    let error = to_nothing(&api, &expected).await.unwrap_err();
    let seen: Vec<String> = server.seen.lock().unwrap().iter().map(|[.., token]| token.clone()).collect();
    assert_eq!(seen, ["first", "first", "second"], "{error:#}");
    to_nothing(&api, &expected).await.unwrap();
}

#[test]
fn an_existing_file_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (part, file) = (folder.path().join("a.part"), folder.path().join("a"));
    std::fs::write(&part, "new").unwrap();
    std::fs::write(&file, "old").unwrap();
    assert!(name(&part, &file).is_err());
    assert_eq!((std::fs::read(&part).unwrap(), std::fs::read(&file).unwrap()), (b"new".to_vec(), b"old".to_vec()));
    std::fs::remove_file(&file).unwrap();
    name(&part, &file).unwrap();
    assert!(!part.exists() && std::fs::read(&file).unwrap() == b"new");
}

/// The tag of a session begins with the digest of its tar, which another archive may have as well.
#[test]
fn a_part_of_another_archive_is_not_continued() {
    let file = Path::new("box.tar.zst");
    let (one, other) = (part_of(file, "\"0123456789abcdef0123-1\""), part_of(file, "\"0123456789abcdef0123-2\""));
    assert_ne!(one, other);
    assert!(one.to_str().unwrap().starts_with("box.tar.zst.") && one.extension().unwrap() == "part");
}
