//! The exit codes of `archives` as a script sees them, with the program itself and a server on the loopback interface.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";
const CONTENT: &[u8] = b"the export of an archive";
const SENT: usize = 10;

/// What the server does with one request.
#[derive(Clone, Copy)]
enum Next {
    Usual,
    Break,
    Refuse,
    Damage,
}

/// Serves these requests, refuses all others, and returns the range of each. It ends with a connection that has no request.
fn serve(listener: &TcpListener, next: &[Next]) -> Vec<String> {
    let next = next.iter().copied().chain(std::iter::repeat(Next::Refuse));
    next.map_while(|next| answer(&listener.accept().unwrap().0, next).ok()).collect()
}

fn answer(mut connection: &TcpStream, next: Next) -> io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let headers: BTreeMap<&str, &str> = head.lines().filter_map(|line| line.split_once(": ")).collect();
    let range = headers.get("range").copied().unwrap_or_default();
    if let Next::Refuse = next {
        connection.write_all(b"HTTP/1.1 404 X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")?;
        return Ok(range.to_owned());
    }
    let from = range.strip_prefix("bytes=").map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let (status, length, digest) = (if from > 0 { 206 } else { 200 }, CONTENT.len(), STANDARD.encode(Sha256::digest(CONTENT)));
    let mut body = CONTENT[from..].to_vec();
    match next {
        Next::Break => body.truncate(SENT),
        Next::Damage => body[0] ^= 1,
        _ => {}
    }
    write!(
        connection,
        "HTTP/1.1 {status} X\r\nconnection: close\r\netag: \"tag\"\r\nrepr-digest: sha-256=:{digest}:\r\ncontent-length: {}\r\n\
         content-range: bytes {from}-{}/{length}\r\n\r\n",
        length - from,
        length - 1
    )?;
    connection.write_all(&body)?;
    Ok(range.to_owned())
}

/// Runs `archives` with these requests, and returns what it printed and the ranges that it asked for.
fn run(folder: &Path, arguments: &[&str], next: &[Next]) -> (Output, Vec<String>) {
    run_to(Stdio::piped(), folder, arguments, next)
}

fn run_to(out: Stdio, folder: &Path, arguments: &[&str], next: &[Next]) -> (Output, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-computer"));
    command.arg("archives").args(arguments).args(["-n", "team", "--api", &url]).env("COMPUTER_API_TOKEN", "t").current_dir(folder);
    command.env_remove("COMPUTER_API_TOKEN_FILE").env_remove("COMPUTER_API_CA").env("KUBECONFIG", "/dev/null").stdout(out);
    std::thread::scope(|scope| {
        let served = scope.spawn(|| serve(&listener, next));
        let output = command.output().unwrap();
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        (output, served.join().unwrap())
    })
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_download_that_breaks_off_fails_and_the_same_command_resumes_it() {
    let folder = tempfile::tempdir().unwrap();
    let id = URL_SAFE_NO_PAD.encode(format!("team/box/{UID}"));
    let export = ["export", &id, "--file", "box.tar.zst"];
    let (output, ranges) = run(folder.path(), &export, &[Next::Break, Next::Refuse]);
    let error = error(&output);
    assert!(error.contains(UID) && error.contains("after 10 of 24 bytes") && error.contains("repeat the command to resume"), "{error}");
    assert_eq!(ranges, ["", "bytes=10-"]);
    assert!(!folder.path().join("box.tar.zst").exists());
    // The part begins what the first request asks about.
    let (output, ranges) = run(folder.path(), &export, &[Next::Usual, Next::Usual]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(ranges, ["", "bytes=10-"]);
    assert_eq!(std::fs::read(folder.path().join("box.tar.zst")).unwrap(), CONTENT);
    let (output, ranges) = run(folder.path(), &["verify", &id, "box.tar.zst"], &[Next::Usual]);
    assert!(output.status.success() && ranges == [""], "{output:?}");
}

#[test]
fn what_is_wrong_fails_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let id = URL_SAFE_NO_PAD.encode(format!("team/box/{UID}"));
    let (output, _) = run(folder.path(), &["export", &id, "--file", "box.tar.zst"], &[Next::Damage]);
    assert!(error(&output).contains("the sha256 is"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let (output, _) = run(folder.path(), &["verify", &id], &[Next::Damage]);
    assert!(error(&output).contains("the sha256 is") && output.stdout.is_empty());
    std::fs::write(folder.path().join("other"), "another file").unwrap();
    let (output, _) = run(folder.path(), &["verify", &id, "other"], &[Next::Usual]);
    let error = error(&output);
    assert!(error.contains("other is not the export of the archive of Computer team/box") && error.contains("12 bytes"), "{error}");
}

/// A script that redirects the output to a file must not take a part of it for everything.
#[test]
fn an_output_that_cannot_be_written_fails() {
    let folder = tempfile::tempdir().unwrap();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (output, _) = run_to(full.into(), folder.path(), &["verify", &URL_SAFE_NO_PAD.encode(format!("team/box/{UID}"))], &[Next::Usual]);
    assert!(error(&output).contains("the output is not complete"), "{output:?}");
}
