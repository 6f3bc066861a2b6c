//! What handlers take from a request. Every refusal is the published error object, and a body that comes slowly, is too long or
//! is no JSON costs nobody else anything.

use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use serde::{Deserialize as _, Deserializer};

use super::Shared;
use super::auth::{Caller, authenticate};
use super::error::ApiError;
use super::middleware::Who;
use crate::credentials::ComputerId;

/// A JSON body: an object, as all that are described.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Shared>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the body as JSON, with `Content-Type: application/json`"));
        }
        let bytes = match tokio::time::timeout(shared.read_limit, collect(request.into_body(), shared.max_body)).await {
            Ok(Ok(body)) => body,
            Ok(Err(None)) => {
                let detail = format!("the body is longer than {} bytes", shared.max_body);
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
            }
            Ok(Err(Some(_))) => return Err(ApiError::invalid("the body broke off")),
            Err(_) => {
                let detail = format!("the body did not arrive within {} s", shared.read_limit.as_secs());
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, detail));
            }
        };
        // Serde reads a struct from a list of its fields' values too.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::invalid("the body is not what is expected: it has to be a JSON object, `{...}`"));
        }
        parse(&bytes).map(Self).map_err(|error| ApiError::invalid(format!("the body is not what is expected: {error}")))
    }
}

/// A body as one piece, no larger than it is: a frame of one byte holds the whole buffer of at least 8 KiB that it was read into, so
/// frames that are kept could take thousands of times as much. An error without a reason: it is longer than `most`.
async fn collect(mut body: axum::body::Body, most: usize) -> Result<Vec<u8>, Option<axum::Error>> {
    let too_long = |length: u64| length > most as u64;
    if too_long(body.size_hint().lower()) {
        return Err(None);
    }
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Some)?.into_data() else { continue };
        if data.len() > most - all.len() {
            return Err(None);
        }
        if all.capacity() - all.len() < data.len() {
            // In steps, so that no more than `most` is ever reserved.
            all.reserve_exact(data.len().max(STEP).min(most - all.len()));
        }
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// By how much the memory of a body grows at least.
const STEP: usize = 16 * 1024;

/// An error names the field.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut from = serde_json::Deserializer::from_slice(bytes);
    let body = serde_path_to_error::deserialize(&mut from).map_err(|error| match error.path().to_string() {
        path if path == "." => error.inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    })?;
    from.end().map(|()| body).map_err(|error| error.to_string())
}

/// One of an enum's words, or `null`. Serde itself reads `{"word": null}` for it too.
///
/// # Errors
/// What is another word, or none.
pub fn word<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    let word = Option::<String>::deserialize(from)?;
    word.map(|word| T::deserialize(word.into_deserializer())).transpose()
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
}

/// Query parameters; those that are not known are ignored.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Shared>> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<Shared>) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(value)| Self(value)).map_err(|error| ApiError::invalid(error.body_text()))
    }
}

/// The id of a computer in the path. What is no id names nothing.
pub struct Id(pub ComputerId);

impl FromRequestParts<Arc<Shared>> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<Shared>) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(word)| ComputerId::decode(&word));
        id.map(Self).ok_or_else(|| ApiError::not_found("computer"))
    }
}

impl FromRequestParts<Arc<Shared>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let caller = authenticate(shared, &parts.headers).await?;
        let share = shared.shares.take(&caller).ok_or_else(|| {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too many requests of your namespace are in flight: try again in a second")
        })?;
        if let Some(who) = parts.extensions.get::<Who>() {
            who.note(&caller, share);
        }
        Ok(caller)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use bytes::{Bytes, BytesMut};

    use super::{collect, parse};

    /// A peer that sends a byte at a time is served from a new buffer each time.
    #[tokio::test]
    async fn a_body_holds_its_bytes_and_not_the_buffers_that_they_came_in() {
        const MOST: usize = 64 * 1024;
        let read = |length: usize| {
            let frames = (0..length).map(|_| {
                let mut buffer = BytesMut::with_capacity(8192);
                buffer.extend_from_slice(b"x");
                Ok::<_, std::io::Error>(buffer.freeze())
            });
            collect(Body::from_stream(futures::stream::iter(frames)), MOST)
        };
        let body = read(MOST).await.unwrap();
        assert_eq!((body.len(), body.capacity()), (MOST, MOST));
        assert!(read(MOST + 1).await.unwrap_err().is_none());
        assert!(collect(Body::from(vec![b'x'; MOST + 1]), MOST).await.unwrap_err().is_none());
        let broken = futures::stream::iter([Ok(Bytes::from_static(b"x")), Err(std::io::Error::other("gone"))]);
        assert!(collect(Body::from_stream(broken), MOST).await.unwrap_err().is_some());
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        name: Option<String>,
    }

    #[test]
    fn an_error_names_the_field() {
        assert_eq!(parse::<Asked>(br#"{"name": "a"}"#).unwrap().name.as_deref(), Some("a"));
        let error = |text: &str| parse::<Asked>(text.as_bytes()).unwrap_err();
        assert!(error(r#"{"name": 5}"#).starts_with("name: invalid type: integer `5`, expected a string"), "{}", error(r#"{"name": 5}"#));
        assert!(error(r#"{"nam": 5}"#).contains("unknown field `nam`, expected `name`"));
        assert!(error(r#"{"name": "a"} {}"#).contains("trailing characters"));
        assert!(error("{").contains("EOF"));
    }
}
