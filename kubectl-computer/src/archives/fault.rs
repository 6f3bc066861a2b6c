//! Why a request or a download failed, and whether another request can help. A fault must never contain the token or the URL, and every text of the API in it is
//! made plain.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;

use super::answer::Answer;
use crate::text::plain;

/// Largest error document that is read.
const DETAIL: usize = 64 * 1024;

/// What a fault costs of the patience for requests that bring no progress (see [`Waits`](super::pace::Waits)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// It passes by itself, as a connection that breaks, or an API that is busy.
    Usual,
    /// It may be permanent, or it has taken long already.
    High,
}

/// Why a request or a download failed.
#[derive(Debug)]
pub enum Fault {
    /// Another request may succeed, after this time at the earliest.
    Passing(anyhow::Error, Duration, Cost),
    /// Another request would fail as well. What has arrived is still right.
    Lasting(anyhow::Error),
    /// What has arrived is not what was expected: it cannot be used.
    Wrong(anyhow::Error),
}

impl Fault {
    /// Another request may succeed.
    pub fn passing(error: anyhow::Error, cost: Cost) -> Self {
        Self::Passing(error, Duration::ZERO, cost)
    }

    /// No byte has arrived for this time.
    pub fn idle(limit: Duration) -> Self {
        Self::passing(anyhow::anyhow!("the HTTP API has sent nothing for {limit:?}"), Cost::High)
    }

    /// An answer that ended too early.
    pub fn broken(text: String) -> Self {
        Self::passing(anyhow::anyhow!(text), Cost::Usual)
    }

    /// A request that got no answer, or an answer that broke off.
    pub fn network(error: reqwest::Error) -> Self {
        let lasting = error.is_builder() || is_untrusted(&error);
        let error = anyhow::Error::new(error.without_url()).context("the connection to the HTTP API failed");
        if lasting { Self::Lasting(error) } else { Self::passing(error, Cost::Usual) }
    }

    /// An answer that is an error.
    pub async fn refused(answer: Answer) -> Self {
        let (status, after) = (answer.status(), answer.header("retry-after").and_then(|value| asked_wait(value, Timestamp::now())));
        let body = answer.all(DETAIL).await.unwrap_or_default();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut text = format!("the HTTP API answers {status}: {}", plain(body["detail"].as_str().unwrap_or("without a reason")));
        if let Some(after) = after {
            text = format!("{text} (retry after {} s)", after.as_secs());
        }
        let hint = match status {
            StatusCode::UNAUTHORIZED => {
                ". The token is unknown, revoked or expired: get a new one. A download that takes longer than a token is valid needs --token-file or --service-account, which renew it"
            }
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                ". Check the name of the computer and the session with `archives ls` and `archives show`, and that the token may get computers/archive"
            }
            _ => "",
        };
        let error = anyhow::anyhow!("{text}{hint}");
        match cost(status) {
            Some(cost) => Self::Passing(error, after.unwrap_or_default(), cost),
            None => Self::Lasting(error),
        }
    }

    /// Says where.
    #[must_use]
    pub fn context(self, place: impl Display + Send + Sync + 'static) -> Self {
        match self {
            Self::Passing(error, after, cost) => Self::Passing(error.context(place), after, cost),
            Self::Lasting(error) => Self::Lasting(error.context(place)),
            Self::Wrong(error) => Self::Wrong(error.context(place)),
        }
    }

    /// The error without the decision about it.
    pub fn error(self) -> anyhow::Error {
        match self {
            Self::Passing(error, ..) | Self::Lasting(error) | Self::Wrong(error) => error,
        }
    }
}

/// With its causes, on one line.
impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passing(error, ..) | Self::Lasting(error) | Self::Wrong(error) => write!(f, "{error:#}"),
        }
    }
}

/// What an answer with this status costs. `None`: another request gets the same answer.
fn cost(status: StatusCode) -> Option<Cost> {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Some(Cost::Usual),
        // Also the answer for an archive that is damaged in the store.
        StatusCode::INTERNAL_SERVER_ERROR => Some(Cost::High),
        StatusCode::NOT_IMPLEMENTED => None,
        other => other.is_server_error().then_some(Cost::Usual),
    }
}

/// `Retry-After`: seconds, or a date, which a proxy may send.
fn asked_wait(value: &str, now: Timestamp) -> Option<Duration> {
    let text = value.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    // One that has passed asks for no wait.
    Some(Duration::try_from(date.timestamp().duration_since(now)).unwrap_or_default())
}

/// Whether the certificate of the API is the cause: it remains the same with another request.
fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An `io::Error` hides the error that it contains from `source`.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref).map(|inner| inner as &(dyn Error + 'static));
        let tls = [Some(error), inner].into_iter().flatten().find_map(|error| error.downcast_ref::<rustls::Error>());
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        next = inner.or_else(|| error.source());
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_api_asks_to_wait_in_seconds_or_until_a_date() {
        let now: Timestamp = "2026-10-21T07:27:30Z".parse().unwrap();
        let asked = |value: &str| asked_wait(value, now).map(|wait| wait.as_secs());
        assert_eq!((asked("7"), asked("0"), asked(" 120 ")), (Some(7), Some(0), Some(120)));
        assert_eq!(asked("Wed, 21 Oct 2026 07:28:00 GMT"), Some(30));
        assert_eq!(asked("Wed, 21 Oct 2020 07:28:00 GMT"), Some(0));
        assert_eq!((asked("soon"), asked("-1")), (None, None));
    }

    #[test]
    fn a_request_is_repeated_only_where_that_can_help() {
        for (status, expected) in [
            (429, Some(Cost::Usual)),
            (503, Some(Cost::Usual)),
            (502, Some(Cost::Usual)),
            (408, Some(Cost::Usual)),
            (500, Some(Cost::High)),
            (501, None),
            (401, None),
            (404, None),
            (409, None),
            (302, None),
        ] {
            assert_eq!(cost(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_no_network_fault() {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(is_untrusted(&std::io::Error::other(std::io::Error::other(unknown))));
        assert!(!is_untrusted(&std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
    }
}
