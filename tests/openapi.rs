//! The committed `OpenAPI` document matches the handlers, and its DELETE is the published operation.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use computer_operator::http::openapi;
use serde_json::{Value, json};

#[test]
fn the_committed_document_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == openapi::document().unwrap(), "docs/openapi.json is out of date: run `cargo xtask generate`");
}

/// Replaces every reference by its target.
fn resolved(value: &Value, whole: &Value) -> Value {
    match value {
        Value::Object(map) => match map.get("$ref").and_then(Value::as_str) {
            Some(reference) => resolved(whole.pointer(&reference[1..]).expect(reference), whole),
            None => map.iter().map(|(k, v)| (k.clone(), resolved(v, whole))).collect(),
        },
        Value::Array(list) => list.iter().map(|v| resolved(v, whole)).collect(),
        other => other.clone(),
    }
}

/// The published error object, as in the published description of DELETE.
fn published_error() -> Value {
    json!({
        "type": "object",
        "properties": {
            "detail": {"type": "string", "description": "Human-readable error message"},
            "status": {"type": "number", "description": "HTTP status code"},
            "title": {"type": "string", "description": "HTTP status title"},
            "metadata": {"type": "object", "additionalProperties": {}, "description": "Additional error metadata"},
        },
        "required": ["detail", "status", "title"],
        "additionalProperties": false,
    })
}

/// Normalizes a schema: `{}` and `true` are equivalent, and the description of the type is not compared.
fn plain(mut schema: Value) -> Value {
    if let Some(map) = schema.as_object_mut() {
        map.remove("description");
    }
    let free = schema.pointer_mut("/properties/metadata/additionalProperties");
    if let Some(free) = free.filter(|f| **f == json!(true)) {
        *free = json!({});
    }
    schema
}

#[test]
fn delete_is_the_published_operation() {
    let whole: Value = serde_json::from_str(&openapi::document().unwrap()).unwrap();
    let delete = resolved(&whole["paths"]["/api/v0/computers/{computerId}"]["delete"], &whole);
    assert_eq!((&delete["operationId"], &delete["tags"]), (&json!("deleteComputer"), &json!(["Computers"])));
    assert_eq!(delete["summary"], "Delete a computer");
    assert_eq!(
        delete["description"],
        "Terminal deletion: sets `deletedAt`, revokes the API key, archives sessions, and tears down provider resources for managed\ncomputers. Cannot be undone."
    );
    let parameters = delete["parameters"].as_array().unwrap();
    let id = parameters.iter().find(|p| p["name"] == "computerId").unwrap();
    assert_eq!((&id["in"], &id["required"], &id["schema"]["type"]), (&json!("path"), &json!(true), &json!("string")));
    // A client that knows only the published operation does not have to send additional parameters.
    assert!(parameters.iter().filter(|p| p["name"] != "computerId").all(|p| p["required"] != json!(true)), "{parameters:#?}");
    // Codes that are not published belong to extensions, or to an overload, which is refused before the request is served.
    let codes = |of: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let all = delete["responses"].as_object().unwrap().iter();
        all.filter(|(_, response)| of(&response["description"])).map(|(code, _)| code.clone()).collect()
    };
    let extension = |text: &Value| text.as_str().unwrap().starts_with("Extension: ");
    let overload = |text: &Value| text.as_str().unwrap().starts_with("Too many requests");
    assert_eq!(codes(&extension), ["200", "400", "409", "412"]);
    assert_eq!(codes(&overload), ["429", "503"]);
    assert_eq!(codes(&|text| !extension(text) && !overload(text)), ["204", "401", "404", "500"]);
    let body = |code: &str| plain(delete["responses"][code]["content"]["application/json"]["schema"].clone());
    for code in ["401", "404", "500"] {
        assert_eq!(body(code), published_error(), "{code}");
    }
    let nothing = body("204");
    assert_eq!((&nothing["type"], &nothing["additionalProperties"]), (&json!("object"), &json!(false)));
    assert!(nothing["properties"].as_object().is_none_or(serde_json::Map::is_empty));
    let scheme = &whole["components"]["securitySchemes"]["BearerAuth"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&json!("http"), &json!("bearer")));
    assert!(whole["openapi"].as_str().unwrap().starts_with("3.1"));
}

/// Every error of every operation is the published object.
#[test]
fn every_error_is_the_published_object() {
    let whole: Value = serde_json::from_str(&openapi::document().unwrap()).unwrap();
    let mut operations = 0;
    for (path, methods) in whole["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            operations += 1;
            for (code, response) in operation["responses"].as_object().unwrap() {
                if code.as_str() >= "400" {
                    let schema = &response["content"]["application/json"]["schema"];
                    assert_eq!(plain(resolved(schema, &whole)), published_error(), "{method} {path} {code}");
                }
            }
            for code in ["401", "500"] {
                assert!(operation["responses"].get(code).is_some(), "{method} {path} does not document {code}");
            }
        }
    }
    assert_eq!(operations, 11 + 13);
}
