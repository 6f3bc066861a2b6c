//! Extractors of the handlers. Every rejection is the published error object. A body that is slow, too large or not JSON must never affect other clients.

use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use serde::{Deserialize as _, Deserializer};

use super::Shared;
use super::auth::{Authenticated, Caller, authenticate};
use super::error::ApiError;
use super::middleware::Who;
use crate::credentials::ComputerId;

/// A JSON object as the request body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Shared>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the request body must be JSON: send it with the header `Content-Type: application/json`",
            ));
        }
        let bytes = match tokio::time::timeout(shared.read_limit, collect(request.into_body(), shared.max_body)).await {
            Ok(Ok(body)) => body,
            Ok(Err(None)) => {
                let detail = format!("the request body is larger than the limit of {} bytes", shared.max_body);
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
            }
            Ok(Err(Some(_))) => {
                return Err(ApiError::invalid(
                    "the request body is incomplete: the connection was closed before the whole body was received",
                ));
            }
            Err(_) => {
                let detail = format!("the request body was not received within {} s", shared.read_limit.as_secs());
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, detail));
            }
        };
        // Serde also deserializes a struct from an array of its field values.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::invalid("the request body is invalid: it must be a JSON object, `{...}`"));
        }
        parse(&bytes).map(Self).map_err(|error| ApiError::invalid(format!("the request body is invalid: {error}")))
    }
}

/// Collects a body into one exactly sized buffer. A frame of one byte keeps its whole read buffer of at least 8 KiB alive, so keeping the frames could
/// take thousands of times as much memory. `Err(None)` if the body is larger than `most`.
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
            // Grow in steps, so that never more than `most` is reserved.
            all.reserve_exact(data.len().max(STEP).min(most - all.len()));
        }
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// Minimum growth of the buffer.
const STEP: usize = 16 * 1024;

/// Deserializes a body. The error names the field.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut from = serde_json::Deserializer::from_slice(bytes);
    let body = serde_path_to_error::deserialize(&mut from).map_err(|error| match error.path().to_string() {
        path if path == "." => error.inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    })?;
    from.end().map(|()| body).map_err(|error| error.to_string())
}

/// Deserializes a unit variant of an enum from a string, or `null`. Serde itself would also accept `{"variant": null}`.
///
/// # Errors
/// If the value is not a string or not a variant.
pub fn word<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    let word = Option::<String>::deserialize(from)?;
    word.map(|word| T::deserialize(word.into_deserializer())).transpose()
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
}

/// Query parameters. Unknown ones are ignored.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Shared>> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<Shared>) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(value)| Self(value)).map_err(|error| ApiError::invalid(error.body_text()))
    }
}

/// The id of a computer in the path. An invalid id is answered with 404.
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
        Ok(Authenticated::from_request_parts(parts, shared).await?.caller)
    }
}

impl FromRequestParts<Arc<Shared>> for Authenticated {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let authenticated = authenticate(shared, &parts.headers).await?;
        let caller = &authenticated.caller;
        let share = shared.shares.take(caller).ok_or_else(|| {
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too many requests of your namespace or user are in flight: retry in a second")
        })?;
        if let Some(who) = parts.extensions.get::<Who>() {
            who.note(caller, share);
        }
        Ok(authenticated)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use bytes::{Bytes, BytesMut};

    use super::{collect, parse};

    /// A client that sends single bytes causes a new read buffer for each of them.
    #[tokio::test]
    async fn a_body_keeps_only_its_bytes_and_not_the_read_buffers() {
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
