//! The `OpenAPI` 3.1 document of the API: generated from the handlers, committed as `docs/openapi.json`, served at `/openapi.json`, and rendered at
//! `/docs` without resources from the internet.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use bytes::Bytes;
use swagger_ui_dist::{ApiDefinition, OpenApiSource};
use utoipa::OpenApi;
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

/// Adds the responses of an overloaded server to every operation.
pub(super) fn complete(description: &mut utoipa::openapi::OpenApi) {
    let busy = [("429", "Too many requests of the caller's namespace are in flight"), ("503", "Too many requests are in flight")];
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            for (code, text) in busy {
                let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
                let response = ResponseBuilder::new().description(text).content("application/json", body).build();
                operation.responses.responses.insert(code.to_owned(), response.into());
            }
        }
    }
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
