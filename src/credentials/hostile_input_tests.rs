//! Arbitrary input as a token. Parsing never panics, an accepted token has exactly one spelling, and its id contains only valid Kubernetes names. The
//! checksum is not a secret: an attacker can compute the right one for any text.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{ApiKeyId, ApiToken, ComputerId, Key, api_key, key};

const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// Appends the correct checksum.
fn with_checksum(body: &str) -> String {
    format!("{body}{}", &hex::encode(Sha256::digest(body))[..6])
}

fn good() -> [String; 2] {
    let computer = ComputerId { namespace: "team".into(), name: "box".into(), uid: UID.into() };
    let id = ApiKeyId { namespace: "team".into(), name: "ci".into(), uid: UID.into(), service_account: "robot".into() };
    [Key::new(computer, [7; 32]).token(), ApiToken::new(id, [7; 32]).token()]
}

/// Parses a text as both kinds. At most one accepts it, and an accepted token is spelled as it was issued.
fn parsed(token: &str) -> Result<bool, TestCaseError> {
    let (key, api) = (Key::parse(token), ApiToken::parse(token));
    prop_assert!(key.is_none() || api.is_none());
    let name = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
    if let Some(key) = &key {
        prop_assert_eq!(key.token(), token);
        let id = &key.computer;
        prop_assert!(name(&id.namespace) && name(&id.name) && name(&id.uid), "{:?}", id);
    }
    if let Some(api) = &api {
        prop_assert_eq!(api.token(), token);
        let id = &api.id;
        prop_assert!(name(&id.namespace) && name(&id.name) && name(&id.uid) && name(&id.service_account), "{:?}", id);
    }
    Ok(key.is_some() || api.is_some())
}

proptest! {
    #[test]
    fn arbitrary_text_with_a_correct_checksum_never_panics(text in any::<String>(), id in "[A-Za-z0-9_.-]{0,80}", secret in "[A-Za-z0-9_-]{43}") {
        for prefix in [key::PREFIX, api_key::PREFIX, ""] {
            parsed(&format!("{prefix}{text}"))?;
            parsed(&with_checksum(&format!("{prefix}{text}")))?;
            parsed(&with_checksum(&format!("{prefix}{id}.{secret}")))?;
        }
    }

    #[test]
    fn an_arbitrary_id_with_a_correct_checksum_never_panics(bytes: Vec<u8>, parts in proptest::collection::vec("[a-z0-9./-]{0,12}", 0..6), secret in "[A-Za-z0-9_-]{43}") {
        for prefix in [key::PREFIX, api_key::PREFIX] {
            for id in [bytes.clone(), parts.join("/").into_bytes(), format!("{}/{UID}/{}", parts.join("/"), parts.concat()).into_bytes()] {
                parsed(&with_checksum(&format!("{prefix}{}.{secret}", URL_SAFE_NO_PAD.encode(id))))?;
            }
        }
    }

    #[test]
    fn a_changed_token_is_rejected(at: proptest::sample::Index, byte in 0_u8..128, which in 0_usize..2) {
        let token = good()[which].clone();
        let mut bytes = token.clone().into_bytes();
        bytes[at.index(token.len())] = byte;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert_eq!(parsed(&changed)?, changed == token);
    }
}
