//! `cat` prints nothing that was not compared, and sends no control characters to a terminal.

#![allow(clippy::unwrap_used)]

use super::super::test_server::{LIMITS, Next, Server, UID, client, document, id};
use super::*;

/// A session with two files.
fn session(content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    for (path, content) in [("s/one.jsonl", content), ("s/one.txt", b"another")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// What is printed of a file, and the result.
async fn cat(path: &str, next: &[Next]) -> (Vec<u8>, Result<()>) {
    let (_, url) = Server::with(session(b"line\n"), &["s/one"], next).await;
    let mut out = Vec::new();
    let result = run(&client(&url, LIMITS), &Target::archive(&id()), path, &mut out, false).await;
    (out, result)
}

#[tokio::test]
async fn a_file_is_printed_when_its_session_is_whole() {
    for next in [&[][..], &[Next::Usual, Next::Break(20)]] {
        let (out, result) = cat("s/one.jsonl", next).await;
        result.unwrap();
        assert_eq!(out, b"line\n");
    }
}

/// The file is at the beginning of the session, before the byte that is wrong.
#[tokio::test]
async fn nothing_is_printed_of_a_session_that_is_damaged() {
    for next in [Next::Damage, Next::Refuse(404, "")] {
        let (out, result) = cat("s/one.jsonl", &[Next::Usual, next]).await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains(&format!("session s/one in the archive of Computer team/box ({UID})")), "{error}");
        assert_eq!(out, b"");
    }
}

#[tokio::test]
async fn an_error_says_what_there_is_instead() {
    let error = cat("s/one.json", &[]).await.1.unwrap_err().to_string();
    assert!(error.contains("s/one.json is not in session s/one") && error.contains("It contains: s/one.jsonl, s/one.txt"), "{error}");
    let error = cat("t", &[]).await.1.unwrap_err().to_string();
    assert!(error.contains(&format!("no session in the archive of Computer team/box ({UID}) can contain t")), "{error}");
}

#[test]
fn a_file_is_looked_for_in_the_session_that_contains_it() {
    let document: Document = serde_json::from_value(document(&["s/one", "s/two", "s/folder"])).unwrap();
    for (path, id) in [("s/one.jsonl", Some("s/one")), ("s/two", Some("s/two")), ("s/folder/a/b.txt", Some("s/folder")), ("t/x", None)] {
        assert_eq!(session_of(&document, path).as_deref(), id, "{path}");
    }
}

#[test]
fn a_terminal_gets_text_and_a_pipe_gets_bytes() {
    let printed = |content: &[u8], terminal: bool| {
        let mut out = Vec::new();
        print(&mut &content[..], &mut out, terminal).unwrap();
        out
    };
    let content = [b"a\x1b[2J\xff".as_slice(), "ü".repeat(100_000).as_bytes(), b"\xc3"].concat();
    assert_eq!(printed(&content, false), content);
    let shown = String::from_utf8(printed(&content, true)).unwrap();
    assert_eq!(shown, format!("a\\u{{1b}}[2J\u{fffd}{}\u{fffd}", "ü".repeat(100_000)));
}
