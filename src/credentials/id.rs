//! The opaque id of a computer. It encodes namespace, name and UID, because Kubernetes has no GET by UID. Clients must not parse it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Namespace, name and UID of a computer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ComputerId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl ComputerId {
    /// Encodes the id with the characters `A-Z a-z 0-9 - _`.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}/{}/{}", self.namespace, self.name, self.uid))
    }

    /// Decodes an id. `None` if it is invalid or contains a name that Kubernetes would not accept. A computer has exactly one id.
    pub fn decode(word: &str) -> Option<Self> {
        if word.len() > LONGEST {
            return None;
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(word).ok()?).ok()?;
        let [namespace, name, uid] = text.split('/').collect::<Vec<_>>().try_into().ok()?;
        let ok = is_label(namespace) && is_name(name) && is_uid(uid);
        ok.then(|| Self { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() })
    }
}

/// Maximum length of an id: a namespace of 63, a name of 253 and a UID of 36 characters in base64, rounded up.
const LONGEST: usize = 600;

/// Whether a text is a DNS label, like the name of a namespace.
pub(crate) fn is_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && edge(bytes.first())
        && edge(bytes.last())
}

/// Whether a text is a DNS subdomain, like the name of an object.
pub(crate) fn is_name(text: &str) -> bool {
    let part = |p: &str| p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    text.len() <= 253 && text.split('.').all(|p| !p.is_empty() && !p.starts_with('-') && !p.ends_with('-') && part(p))
}

/// Whether a text is a UUID in the API server's format: lower case, with hyphens.
pub(crate) fn is_uid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "123e4567-e89b-12d3-a456-426614174000";

    proptest! {
        #[test]
        fn an_id_round_trips(
            namespace in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
            name in "[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?){0,3}",
            uid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        ) {
            let id = ComputerId { namespace, name, uid };
            let word = id.encode();
            prop_assert!(word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(ComputerId::decode(&word), Some(id));
        }

        #[test]
        fn garbage_neither_panics_nor_has_a_second_spelling(word in "\\PC{0,700}", bytes: Vec<u8>) {
            for word in [word, URL_SAFE_NO_PAD.encode(bytes)] {
                if let Some(id) = ComputerId::decode(&word) {
                    prop_assert_eq!(id.encode(), word);
                }
            }
        }
    }

    #[test]
    fn an_id_that_could_change_a_request_path_is_rejected() {
        let of = |text: &str| ComputerId::decode(&URL_SAFE_NO_PAD.encode(text));
        assert!(of(&format!("t/c/{UID}")).is_some());
        let upper = UID.to_uppercase();
        for bad in [
            format!("t/c/{UID}/more"),
            format!("t/../{UID}"),
            format!("a.b/c/{UID}"),
            format!("/c/{UID}"),
            format!("t//{UID}"),
            format!("t/C/{UID}"),
            format!("t/c%2fd/{UID}"),
            format!("t/c?x/{UID}"),
            format!("t/-c/{UID}"),
            format!("t/c.-d/{UID}"),
            format!("t/c/{upper}"),
            format!("t/c/{}", "-".repeat(36)),
            format!("{}/c/{UID}", "a".repeat(64)),
            format!("t/{}/{UID}", "a".repeat(254)),
            "t/c".to_owned(),
            String::new(),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
    }

    #[test]
    fn the_longest_names_fit() {
        let id = ComputerId { namespace: "n".repeat(63), name: "c".repeat(253), uid: UID.to_owned() };
        assert_eq!(ComputerId::decode(&id.encode()), Some(id));
    }
}
