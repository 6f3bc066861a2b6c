//! What handlers take from a request. Every refusal is the published error object, and a body that comes slowly, is too long or
//! is no JSON costs nobody else anything.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use serde::{Deserialize as _, Deserializer};

use super::Shared;
use super::auth::{Caller, authenticate};
use super::error::ApiError;
use super::layers::Who;
use crate::credentials::ComputerId;

/// A JSON body: an object, as all that are described.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Shared>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the body as JSON, with `Content-Type: application/json`"));
        }
        let limited = Limited::new(request.into_body(), shared.max_body);
        let bytes = match tokio::time::timeout(shared.read_limit, limited.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                let detail = format!("the body is longer than {} bytes", shared.max_body);
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
            }
            Ok(Err(_)) => return Err(ApiError::invalid("the body broke off")),
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
    use super::parse;

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
