//! The runbooks of the alerts, at `/docs/runbooks/`: the pages of the book that an admin needs while something is wrong, compiled into the
//! program. They need no internet and no credential, because they are the same for everybody.
//!
//! The pages are shown as text; only headings and links are marked up, so no parser of Markdown is needed. A page must never contain a script
//! or refer to another host.
//!
//! `co.runbooks` in the chart's `_helpers.tpl` makes the `runbook_url` of an alert.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;

use super::Shared;
use super::error::ApiError;

macro_rules! pages {
    ($($name:literal from $file:literal,)+) => {
        /// The name of each page, and its text in the book.
        const PAGES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../docs/book/src/", $file)))),+];
    };
}

pages! {
    "ComputerApiErrors" from "runbooks/ComputerApiErrors.md",
    "ComputerApiUnavailable" from "runbooks/ComputerApiUnavailable.md",
    "ComputerArchiveStoreFilling" from "runbooks/ComputerArchiveStoreFilling.md",
    "ComputerArchiveStoreUnavailable" from "runbooks/ComputerArchiveStoreUnavailable.md",
    "ComputerArchiveVolumeNotRetained" from "runbooks/ComputerArchiveVolumeNotRetained.md",
    "ComputerDeletionBlocked" from "runbooks/ComputerDeletionBlocked.md",
    "ComputerOperatorNoLeader" from "runbooks/ComputerOperatorNoLeader.md",
    "ComputerOperatorPanics" from "runbooks/ComputerOperatorPanics.md",
    "ComputerOrphans" from "runbooks/ComputerOrphans.md",
    "reasons" from "reasons.md",
    "stuck" from "stuck.md",
}

/// `/docs/runbooks/` lists the pages, `/docs/runbooks/NAME` is one.
pub(super) fn routes() -> Router<Arc<Shared>> {
    // Rendered once: all responses share the bytes, because unauthenticated clients can request them as often as connections allow.
    let pages: BTreeMap<&str, Bytes> = PAGES.iter().map(|(name, text)| (*name, page(name, text).into())).collect();
    let names: Vec<String> = PAGES.iter().map(|(name, _)| format!("- [{name}]({name}.md)")).collect();
    let index = Bytes::from(page("Runbooks", &format!("# Runbooks\n\n{}\n", names.join("\n"))));
    let (slash, pages) = (index.clone(), Arc::new(pages));
    let one = move |Path(name): Path<String>| async move {
        let name = name.trim_end_matches(".html").trim_end_matches(".md");
        let absent = || ApiError::new(StatusCode::NOT_FOUND, "there is no such runbook: see /docs/runbooks/").into_response();
        pages.get(name).cloned().map_or_else(absent, html)
    };
    Router::new()
        .route("/docs/runbooks", get(move || async { html(index) }))
        .route("/docs/runbooks/", get(move || async { html(slash) }))
        .route("/docs/runbooks/{name}", get(one))
}

fn html(page: Bytes) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ];
    (headers, page).into_response()
}

/// A page as HTML. Links are absolute, so that they work with and without a slash at the end of the path.
fn page(title: &str, text: &str) -> String {
    let mut body = String::new();
    let mut code = false;
    for line in text.lines() {
        code ^= line.starts_with("```");
        let heading = line.strip_prefix('#').filter(|_| !code).map(|rest| rest.trim_start_matches('#').trim());
        let _ = match heading {
            Some(heading) => writeln!(body, "<b id=\"{}\">{}</b>", anchor(heading), escaped(line)),
            None if code => writeln!(body, "{}", escaped(line)),
            None => writeln!(body, "{}", linked(line)),
        };
    }
    let style = "body{max-width:64em;margin:2em auto;padding:0 1em;font:15px/1.45 monospace;white-space:pre-wrap;overflow-wrap:anywhere}";
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{}</title><style>{style}</style>\n{body}</html>\n",
        escaped(title)
    )
}

/// The anchor of a heading, as mdBook and GitHub generate it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect()
}

/// A line whose links to pages that are served here can be followed. Other links stay text.
fn linked(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((text, target, before, after)) = link(rest) {
        out.push_str(&escaped(before));
        let (file, anchor) = target.split_once('#').map_or((target, String::new()), |(file, anchor)| (file, format!("#{anchor}")));
        let name = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".md");
        let _ = match name {
            "" => write!(out, "<a href=\"{}\">{}</a>", escaped(&anchor), escaped(text)),
            name if PAGES.iter().any(|(known, _)| *known == name) => {
                write!(out, "<a href=\"/docs/runbooks/{name}{}\">{}</a>", escaped(&anchor), escaped(text))
            }
            _ => write!(out, "{}", escaped(text)),
        };
        rest = after;
    }
    out.push_str(&escaped(rest));
    out
}

/// The first link of a line: its text, its target, and what is before and after it.
fn link(line: &str) -> Option<(&str, &str, &str, &str)> {
    let middle = line.find("](")?;
    let (before, text) = line[..middle].rsplit_once('[')?;
    let (target, after) = line[middle + 2..].split_once(')')?;
    Some((text, target, before, after))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::http::{router, tests::shared};

    async fn get(path: &str) -> (StatusCode, axum::http::HeaderMap, String) {
        let response = router(shared()).oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        (head.status, head.headers, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn every_alert_has_a_runbook_that_needs_no_credential() {
        let alerts = include_str!("../../charts/computer-operator/templates/alerts.yaml");
        let names: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        assert!(names.len() > 5, "{names:?}");
        for name in names {
            let (status, headers, body) = get(&format!("/docs/runbooks/{name}")).await;
            assert_eq!(status, StatusCode::OK, "{name}");
            assert_eq!(headers["content-type"], "text/html; charset=utf-8");
            assert_eq!(headers["x-content-type-options"], "nosniff");
            assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
            for part in ["Meaning", "Impact", "Diagnosis", "Mitigation"] {
                assert!(body.contains(&format!("<b id=\"{}\">", anchor(part))), "{name} has no section {part}");
            }
        }
    }

    #[tokio::test]
    async fn the_index_lists_every_page_and_every_link_leads_to_one() {
        let mut wanted = vec!["/docs/runbooks".to_owned(), "/docs/runbooks/".to_owned()];
        wanted.extend(PAGES.iter().flat_map(|(name, _)| [format!("/docs/runbooks/{name}"), format!("/docs/runbooks/{name}.html")]));
        let (_, _, index) = get("/docs/runbooks/").await;
        assert!(PAGES.iter().all(|(name, _)| index.contains(&format!("href=\"/docs/runbooks/{name}\""))), "{index}");
        for path in wanted {
            let (status, _, body) = get(&path).await;
            assert_eq!(status, StatusCode::OK, "{path}");
            assert!(!body.contains("<script") && !body.contains("src="), "{path}");
            for link in body.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = if file.is_empty() { body.clone() } else { get(file).await.2 };
                assert!(anchor.is_empty() || target.contains(&format!("id=\"{anchor}\"")), "{path}: {link}");
            }
        }
        let (status, _, body) = get("/docs/runbooks/none").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains("/docs/runbooks/"), "{body}");
    }

    #[test]
    fn a_page_is_escaped_and_only_its_own_links_can_be_followed() {
        let text = "# A & B\n<script>\n[x](../stuck.md#a) [y](https://h/p) [z](#q)\n```\n# [c](stuck.md)\n```\n";
        let page = page("t", text);
        assert!(page.contains("<b id=\"a--b\"># A &amp; B</b>") && page.contains("&lt;script&gt;"), "{page}");
        assert!(page.contains("<a href=\"/docs/runbooks/stuck#a\">x</a> y <a href=\"#q\">z</a>"), "{page}");
        assert!(page.contains("\n# [c](stuck.md)\n"), "{page}");
    }
}
