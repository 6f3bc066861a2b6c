//! Tokens that expire, and lists that are slow or silent.

#![allow(clippy::unwrap_used)]

use super::super::test_server::{LIMITS, Next, Server, UID, client, document, id, soon};
use super::*;
use crate::cluster::Cluster;

async fn read(api: &HttpApi) -> Result<Vec<u8>, Fault> {
    api.read(&Target::archive(&id()), &[]).await?.all(1 << 30).await
}

/// A cluster that gives tokens, another one each time.
fn cluster(url: &str) -> Cluster {
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    Cluster { client, namespace: "team".to_owned(), global: Global::default() }
}

/// A token of a `ServiceAccount` is valid for an hour, a download may take longer.
#[tokio::test]
async fn a_token_that_expires_is_requested_again() {
    let (server, url) = Server::start(&[Next::Refuse(401, ""), Next::Usual, Next::Refuse(401, "")]).await;
    let token = Token::of_account(cluster(&url), "reader");
    assert!(token.renew("").await.unwrap());
    let api = HttpApi::of(&url, token, LIMITS).unwrap();
    assert!(read(&api).await.unwrap() == server.content);
    assert!(read(&api).await.unwrap() == server.content);
    assert_eq!(server.used(), ["account-0", "account-1", "account-1", "account-2"]);
}

#[tokio::test]
async fn a_token_that_expires_is_read_again_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let token = Token::in_file(file.clone());
    assert!(token.renew("").await.unwrap());
    let (server, url) = Server::start(&[Next::Refuse(401, ""), Next::Refuse(401, "")]).await;
    let api = HttpApi::of(&url, token, LIMITS).unwrap();
    // Nothing has replaced it.
    let error = read(&api).await.unwrap_err().to_string();
    assert!(error.contains("--token-file or --service-account"), "{error}");
    std::fs::write(&file, "second\n").unwrap();
    assert!(read(&api).await.unwrap() == server.content);
    assert_eq!(server.used(), ["first", "first", "second"]);
}

/// A `ServiceAccount` has another token each time, also when it has no right.
#[tokio::test]
async fn a_token_is_renewed_once_for_a_request() {
    let (server, url) = Server::start(&[Next::Refuse(401, ""); 6]).await;
    let token = Token::of_account(cluster(&url), "reader");
    assert!(token.renew("").await.unwrap());
    let fault = read(&HttpApi::of(&url, token, LIMITS).unwrap()).await.unwrap_err();
    assert!(matches!(fault, Fault::Lasting(_)), "{fault}");
    assert_eq!(server.used(), ["account-0", "account-1"]);
}

/// The cluster or the folder may be away for a moment in hours of a download.
#[tokio::test]
async fn a_token_that_cannot_be_renewed_now_is_renewed_later() {
    let folder = tempfile::tempdir().unwrap();
    let (_, url) = Server::start(&[Next::Refuse(401, "")]).await;
    let fault = read(&HttpApi::of(&url, Token::in_file(folder.path().join("none")), LIMITS).unwrap()).await.unwrap_err();
    assert!(matches!(fault, Fault::Passing(..)) && fault.to_string().contains("could not be obtained"), "{fault}");
}

#[tokio::test]
async fn a_list_that_is_silent_is_cut_off_and_a_slow_one_is_not() {
    let quick = Limits { list: Duration::from_millis(200), ..LIMITS };
    let (server, url) = Server::start(&[Next::Silent, Next::Stall(10)]).await;
    let error = soon(client(&url, quick).deletions()).await.unwrap_err();
    assert!(format!("{error:#}").contains("of namespace team failed: the HTTP API has sent nothing for 200ms"), "{error:#}");
    assert_eq!(server.seen().len(), 2, "a user waits for it");
    let slow = Limits { list: Duration::from_secs(3), ..LIMITS };
    let (server, url) = Server::start(&[Next::Slow(Duration::from_millis(400))]).await;
    assert_eq!(client(&url, slow).deletions().await.unwrap()[0].uid, UID);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn what_an_archive_contains_may_take_as_long_as_the_archive_itself() {
    let quick = Limits { list: Duration::from_millis(1), ..LIMITS };
    let (_, url) = Server::start(&[Next::Slow(Duration::from_millis(10))]).await;
    assert_eq!(client(&url, quick).document(&Target::archive(&id())).await.unwrap()["lost"], 1);
    let quick = Limits { read: Duration::from_millis(200), ..LIMITS };
    let (_, url) = Server::start(&[Next::Stall(10), Next::Silent]).await;
    let error = soon(client(&url, quick).document(&Target::archive(&id()))).await.unwrap_err();
    assert!(format!("{error:#}").contains(&format!("listing the archive of Computer team/box ({UID}) failed: ")), "{error:#}");
}

#[tokio::test]
async fn a_list_waits_for_an_api_that_is_busy_and_is_never_shorter() {
    let (server, url) = Server::start(&[Next::Refuse(503, "0"), Next::Break(20), Next::End(20)]).await;
    let api = client(&url, LIMITS);
    assert!(format!("{:#}", api.deletions().await.unwrap_err()).contains("cannot parse"));
    assert_eq!((api.deletions().await.unwrap().len(), server.seen().len()), (1, 4));
}

/// What an archive contains is never shown in part, wherever its answer ends: with the connection, or as a proxy ends it properly.
#[tokio::test]
async fn what_an_archive_contains_is_whole_or_an_error() {
    let whole = document(&["s/one", "s/two"]).to_string().len();
    for end in [0, 1, whole / 2, whole - 1] {
        let (server, url) = Server::with(Vec::new(), &["s/one", "s/two"], &[Next::End(end), Next::Break(end)]).await;
        let api = client(&url, LIMITS);
        let error = format!("{:#}", api.document(&Target::archive(&id())).await.unwrap_err());
        assert!(error.contains("cannot parse"), "{end} of {whole} bytes: {error}");
        // The API had said how much it sends, so the request is repeated.
        assert_eq!(api.document(&Target::archive(&id())).await.unwrap()["sessions"].as_array().unwrap().len(), 2);
        assert_eq!(server.seen().len(), 3);
    }
}

#[test]
fn a_token_is_never_sent_in_plain_text_to_another_machine() {
    for url in [
        "https://computers.example",
        "https://computers.example/prefix/",
        "http://127.0.0.1:8000",
        "http://localhost:8000",
        "http://[::1]:8000",
    ] {
        assert!(base(url).is_ok(), "{url}");
    }
    for url in ["http://computers.example", "http://127.0.0.1.example", "ftp://localhost", "https://user:secret@host", "computers"] {
        assert!(base(url).is_err(), "{url}");
    }
}
