//! Every error is the published object: unknown routes, wrong methods, invalid escapes, and bodies that are not JSON, too large or truncated.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::json;

use crate::Scenario;
use crate::client::{Ask, raw};
use crate::harness::Bench;

const ALL: &str = "/api/v0/computers";

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        unknown_paths_and_methods_are_published_errors,
        an_invalid_path_is_not_found,
        an_invalid_body_is_a_published_error,
        invalid_http_ends_the_connection,
    ]
}

async fn unknown_paths_and_methods_are_published_errors(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("unknown").await?;
    let id = bench.byom(&token, "box").await?;
    for path in ["", "/", "/api", "/api/v0", "/api/v1/computers", "/api/v0/Computers", "/api/v0/computers/", "//api/v0/computers"] {
        bench.send(Ask::get(path).by(&token)).await?.says(404, "this path does not exist").with_context(|| path.to_owned())?;
    }
    for path in [format!("{ALL}/{id}/other"), format!("{ALL}/{id}/deletion/x"), format!("{ALL}/name"), format!("{ALL}/name/a/b")] {
        bench.send(Ask::get(&path).by(&token)).await?.is(404).context(path)?;
    }
    for (method, path, allowed) in [
        (Method::PUT, ALL.to_owned(), "POST"),
        (Method::DELETE, ALL.to_owned(), "GET"),
        (Method::PUT, format!("{ALL}/{id}"), "DELETE"),
        (Method::POST, format!("{ALL}/{id}"), "PATCH"),
        (Method::GET, format!("{ALL}/{id}/restart"), "POST"),
        (Method::POST, format!("{ALL}/{id}/metrics"), "GET"),
        (Method::DELETE, format!("{ALL}/name/box"), "GET"),
        (Method::PUT, "/api/v0/sessions".to_owned(), "GET"),
        (Method::POST, "/openapi.json".to_owned(), "GET"),
        (Method::OPTIONS, ALL.to_owned(), "GET"),
        (Method::TRACE, ALL.to_owned(), "GET"),
        (Method::from_bytes(b"BREW")?, ALL.to_owned(), "GET"),
    ] {
        let what = format!("{method} {path}");
        let answer = bench.send(Ask::new(method, path).by(&token)).await?.says(405, "does not support the method").context(what.clone())?;
        ensure!(answer.header("allow").split(',').any(|m| m == allowed), "{what}: Allow is {:?}", answer.header("allow"));
    }
    // HEAD is GET without a body.
    bench.send(Ask::new(Method::HEAD, format!("{ALL}/{id}")).by(&token)).await?.is(200)?;
    bench.send(Ask::new(Method::HEAD, format!("{ALL}/{id}x")).by(&token)).await?.is(404)?;
    bench.send(Ask::new(Method::HEAD, ALL)).await?.is(401)?;
    Ok(())
}

async fn an_invalid_path_is_not_found(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("paths").await?;
    let id = bench.byom(&token, "box").await?;
    let address = bench.replicas[0].address;
    let base64 = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    };
    let words = [
        "%ff".to_owned(),
        "%".to_owned(),
        "%zz".to_owned(),
        "%00".to_owned(),
        "..".to_owned(),
        "%2e%2e".to_owned(),
        "comp%2Fspecial".to_owned(),
        "a".repeat(5000),
        format!("{id}%20"),
        format!("{id}="),
        base64("kube-system/../0b4f9f3e-5d1c-4a53-8a0e-3a9c0f8f6f11"),
        base64("a/b"),
        base64("\0/\0/\0"),
    ];
    for word in words {
        for (method, rest) in [("GET", ""), ("DELETE", ""), ("POST", "/restart"), ("GET", "/metrics"), ("GET", "/deletion")] {
            let request = format!(
                "{method} {ALL}/{word}{rest} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            raw(address, request.as_bytes()).await?.is_error(404).with_context(|| format!("{method} {word}{rest}"))?;
        }
    }
    // An invalid query is ignored or rejected, and never causes an internal error.
    for query in ["?%", "?=", "?&&", "?%ff=%ff", "?includeProvisioningSteps", "?a[]=1", &format!("?x={}", "y".repeat(8000))] {
        let answer = bench.send(Ask::get(format!("{ALL}/{id}{query}")).by(&token)).await?;
        ensure!(answer.status == 200, "{query}: {}", answer.text);
        let answer = bench.send(Ask::get(format!("{ALL}{query}")).by(&token)).await?;
        ensure!(matches!(answer.status, 200 | 400), "{query}: {}", answer.text);
    }
    Ok(())
}

async fn an_invalid_body_is_a_published_error(bench: Arc<Bench>) -> Result<()> {
    let (_, token) = bench.tenant("bodies").await?;
    let id = bench.byom(&token, "box").await?;
    let deep = format!("{}{}", "[".repeat(60_000), "]".repeat(60_000));
    let bad: [(&str, Vec<u8>, u16); 13] = [
        ("application/json", b"".to_vec(), 400),
        ("application/json", b"{".to_vec(), 400),
        ("application/json", b"{\"name\": \"a\",}".to_vec(), 400),
        ("application/json", b"\xff\xfe".to_vec(), 400),
        ("application/json", b"{\"name\": \"\xff\", \"remoteUser\": \"u\"}".to_vec(), 400),
        ("application/json", b"{\"name\": \"\\ud800\", \"remoteUser\": \"u\"}".to_vec(), 400),
        ("application/json", b"{\"name\": \"a\", \"name\": \"b\", \"remoteUser\": \"u\"}".to_vec(), 400),
        ("application/json", deep.clone().into_bytes(), 400),
        ("application/json", format!("{{\"sessionSettings\": {deep}}}").into_bytes(), 400),
        ("application/json; charset=utf-8", b"nothing".to_vec(), 400),
        ("text/plain", b"{}".to_vec(), 415),
        ("application/x-www-form-urlencoded", b"name=a".to_vec(), 415),
        ("application/json", vec![b' '; 300_000], 413),
    ];
    for (kind, body, code) in bad {
        for ask in [Ask::post(ALL), Ask::patch(format!("{ALL}/{id}")), Ask::post("/api/v0/sessions")] {
            let what = format!("{} {} {kind} {:?}", ask.method, ask.path, String::from_utf8_lossy(&body[..body.len().min(60)]));
            bench.send(ask.by(&token).raw(kind, body.clone())).await?.is(code).context(what)?;
        }
    }
    bench.send(Ask::post(ALL).by(&token)).await?.says(415, "Content-Type: application/json")?;
    // The contents of a string can change neither other fields nor a path.
    for name in ["\"}, {\"", "a\u{0}b", "../../x", "${{x}}"] {
        bench
            .send(Ask::post(ALL).by(&token).json(&json!({"name": name, "remoteUser": "u"})))
            .await?
            .says(400, "name is invalid: it must have 1 to 63")?;
    }
    let odd = json!({"name": "odd", "remoteUser": "a\u{0}\n\u{1b}[31m\u{202e}b", "provider": "byom"});
    let made = bench.send(Ask::post(ALL).by(&token).json(&odd)).await?;
    ensure!(matches!(made.status, 201 | 400), "{}", made.text);
    ensure!(made.status == 400 || made.body["remoteUser"] == odd["remoteUser"], "{}", made.text);
    // An unexpected body is ignored.
    bench.send(Ask::post(format!("{ALL}/{id}/refresh")).by(&token).raw("text/plain", "x".repeat(1000))).await?.is(200)?;
    bench.send(Ask::delete(format!("{ALL}/{id}?dryRun=All")).by(&token).json(&json!({"a": 1}))).await?.is(200)?;
    Ok(())
}

/// Invalid HTTP never reaches a handler: hyper responds with a status code or closes the connection, and other clients are served.
async fn invalid_http_ends_the_connection(bench: Arc<Bench>) -> Result<()> {
    let address = bench.replicas[0].address;
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "h: v\r\n".repeat(300));
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nx: {}\r\n\r\n", "y".repeat(1_000_000));
    for bytes in [
        "GET\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nzz\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &many,
        &long,
    ] {
        let shown: String = bytes.chars().take(60).collect();
        match raw(address, bytes.as_bytes()).await {
            Ok(answer) => ensure!((400..500).contains(&answer.status), "{shown:?}: {answer:?}"),
            Err(error) => ensure!(!error.to_string().contains("deadline"), "{shown:?}: {error}"),
        }
    }
    bench.send_to(0, Ask::get("/openapi.json")).await?.is(200)?;
    Ok(())
}
