//! The `OpenAPI` 3.1 document of the API: generated from the handlers, committed as `docs/openapi.json`, served at `/openapi.json`, and rendered at
//! `/docs` without resources from the internet.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use bytes::Bytes;
use swagger_ui_dist::{ApiDefinition, OpenApiSource};
use utoipa::OpenApi;
use utoipa::openapi::RefOr;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::Ref;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::Shared;

/// The general part of the document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Computers API",
        description = "Wire-compatible with the published v0 Computers API. Requires authentication via the `Authorization: Bearer` header. \
            Parts marked \"Extension\" are specific to this server; clients of the published API do not need them. \
            Extension: the class of a computer says what the computer's own key may do (`key.allow`: `get`, `sessions`, `delete-sessions`, `patch`, `delete`); \
            what it does not allow answers 404, as if the object did not exist.",
    ),
    security(("BearerAuth" = [])),
    tags((name = "Computers"), (name = "Sessions")),
)]
struct Base;

/// Title, security scheme and tags.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    let mut base = Base::openapi();
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A computer's key, a token of an ApiKey, or a JWT that the cluster trusts"))
        .build();
    base.components.get_or_insert_default().add_security_scheme("BearerAuth", SecurityScheme::Http(scheme));
    base
}

/// The document as it is committed and served.
///
/// # Errors
/// Never in practice: it consists of literals.
pub fn document() -> Result<String, serde_json::Error> {
    let mut description = super::routes().into_openapi();
    complete(&mut description);
    Ok(description.to_pretty_json()? + "\n")
}

/// Errors that every operation can answer. A handler lists its own errors, and can describe one of these in its own words.
const ALWAYS: [(&str, &str); 4] = [
    ("401", "Missing or invalid credential"),
    ("429", "Too many requests of the caller's namespace are in flight"),
    ("500", "The request failed, or its outcome is unknown"),
    ("503", "Too many requests are in flight"),
];

/// Errors of every operation that reads a body.
const WITH_BODY: [(&str, &str); 3] = [
    ("408", "The request body was not received in time"),
    ("413", "The request body is too large"),
    ("415", "The request body is not JSON"),
];

/// Adds the errors that are common to operations.
pub(super) fn complete(description: &mut utoipa::openapi::OpenApi) {
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let with_body: &[_] = if operation.request_body.is_some() { &WITH_BODY } else { &[] };
            for (code, text) in ALWAYS.iter().chain(with_body) {
                operation.responses.responses.entry((*code).to_owned()).or_insert_with(|| error(text));
            }
        }
    }
}

/// An answer with the published error object.
fn error(description: &str) -> RefOr<utoipa::openapi::Response> {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
    ResponseBuilder::new().description(description).content("application/json", body).build().into()
}

/// `/openapi.json` and `/docs`.
pub(super) fn routes(description: &utoipa::openapi::OpenApi) -> Router<Arc<Shared>> {
    // All responses share the bytes, because unauthenticated clients can request the document as often as connections allow.
    let json = Bytes::from(description.to_json().unwrap_or_default());
    let page = ApiDefinition { uri_prefix: "/docs", api_definition: OpenApiSource::Uri("/openapi.json"), title: Some("Computers API") };
    let serve = move || async move { ([(CONTENT_TYPE, "application/json")], json.clone()) };
    let docs: Router<Arc<Shared>> = swagger_ui_dist::generate_routes(page).with_state(());
    Router::new().route("/openapi.json", get(serve)).merge(docs)
}
