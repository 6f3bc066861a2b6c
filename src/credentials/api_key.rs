//! The token of an `ApiKey`: `coa_<id>.<secret><checksum>`, see [`super::token`]. The id contains the name of the ServiceAccount, so that verification
//! can read all objects in parallel. The record confirms that the name is correct.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::id::{is_label, is_name, is_uid};
use super::token::{SECRET_BYTES, Secret};

/// The prefix of every token.
pub const PREFIX: &str = "coa_";
/// Maximum length of an encoded id: a namespace of 63, two names of 253 and a UID of 36 characters in base64, rounded up.
const LONGEST: usize = 900;

/// An `ApiKey` and the ServiceAccount that it acts as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ApiKeyId {
    /// Namespace of both.
    pub namespace: String,
    /// Name of the `ApiKey`.
    pub name: String,
    /// UID of the `ApiKey`.
    pub uid: String,
    /// Name of the ServiceAccount.
    pub service_account: String,
}

impl ApiKeyId {
    /// Encodes the id with the characters `A-Z a-z 0-9 - _`.
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}/{}/{}/{}", self.namespace, self.name, self.uid, self.service_account))
    }

    /// Decodes an id. `None` if it is invalid or contains a name that Kubernetes would not accept.
    fn decode(word: &str) -> Option<Self> {
        if word.len() > LONGEST {
            return None;
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(word).ok()?).ok()?;
        let [namespace, name, uid, account] = text.split('/').collect::<Vec<_>>().try_into().ok()?;
        let ok = is_label(namespace) && is_name(name) && is_uid(uid) && is_name(account);
        let own = str::to_owned;
        ok.then(|| Self { namespace: own(namespace), name: own(name), uid: own(uid), service_account: own(account) })
    }

    /// The caller's user name in RBAC.
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.service_account)
    }
}

/// A token in memory. `Debug` never shows its secret, there is no `Display`, and comparisons take constant time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiToken {
    /// The `ApiKey` that it belongs to.
    pub id: ApiKeyId,
    secret: Secret,
}

impl ApiToken {
    /// Creates a token of this `ApiKey` from 256 random bits.
    pub fn new(id: ApiKeyId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { id, secret: Secret::new(secret) }
    }

    /// The text of the token, which is issued once.
    pub fn token(&self) -> String {
        self.secret.token(PREFIX, &self.id.encode())
    }

    /// Parses a token. `None` if the text is not a token of an `ApiKey` or contains a typo.
    pub fn parse(token: &str) -> Option<Self> {
        let (id, secret) = Secret::parse(PREFIX, token)?;
        Some(Self { id: ApiKeyId::decode(id)?, secret })
    }

    /// The hash that is stored.
    pub fn hash(&self) -> String {
        self.secret.hash(&self.id.uid)
    }

    /// Whether a stored hash belongs to this token, in constant time.
    pub fn matches(&self, stored: &str) -> bool {
        self.secret.matches(&self.id.uid, stored)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

    fn token(secret: [u8; 32]) -> ApiToken {
        let id = ApiKeyId { namespace: "team".into(), name: "ci".into(), uid: UID.into(), service_account: "robot".into() };
        ApiToken::new(id, secret)
    }

    proptest! {
        #[test]
        fn a_token_round_trips_and_only_its_own_hash_matches(
            secret: [u8; 32],
            other: [u8; 32],
            namespace in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
            name in "[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?){0,3}",
            service_account in "[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?){0,3}",
            uid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        ) {
            let id = ApiKeyId { namespace, name, uid, service_account };
            let (one, other) = (ApiToken::new(id.clone(), secret), ApiToken::new(id, other));
            prop_assert_eq!(ApiToken::parse(&one.token()), Some(one.clone()));
            prop_assert!(one.matches(&one.hash()));
            prop_assert_eq!(one.matches(&other.hash()), one == other);
        }

        #[test]
        fn garbage_is_never_a_token(text in "\\PC*", cut in 0_usize..200) {
            prop_assert!(ApiToken::parse(&text).is_none());
            let token = token([7; 32]).token();
            prop_assert!(ApiToken::parse(&token[..cut.min(token.len() - 1)]).is_none());
        }
    }

    #[test]
    fn a_typo_is_detected_and_the_secret_is_never_printed() {
        let good = token([9; 32]).token();
        assert!(good.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) && good.matches('.').count() == 1);
        for (i, _) in good.char_indices() {
            let mut typo = good.clone().into_bytes();
            typo[i] = if typo[i] == b'x' { b'y' } else { b'x' };
            assert!(ApiToken::parse(&String::from_utf8(typo).unwrap()).is_none(), "at {i}");
        }
        let shown = format!("{:?}", token([1; 32]));
        assert!(shown.contains("redacted") && !shown.contains("1, 1"), "{shown}");
    }

    #[test]
    fn a_computers_key_is_never_parsed_as_an_api_token_or_vice_versa() {
        use super::super::{ComputerId, Key};
        let key = Key::new(ComputerId { namespace: "team".into(), name: "ci".into(), uid: UID.into() }, [1; 32]).token();
        assert!(ApiToken::parse(&key).is_none() && Key::parse(&token([1; 32]).token()).is_none());
    }

    #[test]
    fn an_id_that_could_change_a_request_path_is_rejected() {
        let of = |text: &str| ApiKeyId::decode(&URL_SAFE_NO_PAD.encode(text));
        assert!(of(&format!("t/k/{UID}/a")).is_some());
        let long = "a".repeat(254);
        for bad in [
            format!("t/k/{UID}"),
            format!("t/k/{UID}/a/b"),
            format!("t/k/{UID}/.."),
            format!("t/../{UID}/a"),
            format!("t/k/{UID}/"),
            format!("t/k/{UID}/a%2fb"),
            format!("T/k/{UID}/a"),
            format!("t/k/{}/a", UID.to_uppercase()),
            format!("t/k/{UID}/{long}"),
            String::new(),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
        let longest = ApiKeyId { namespace: "n".repeat(63), name: "k".repeat(253), uid: UID.to_owned(), service_account: "a".repeat(253) };
        assert_eq!(ApiKeyId::decode(&longest.encode()), Some(longest));
    }
}
