//! A computer's key: `cok_<id>.<secret><checksum>`, see [`super::token`], which computes the hash. Only that is
//! stored.

use super::id::ComputerId;
use super::token::{SECRET_BYTES, Secret};

/// The prefix of every key.
pub const PREFIX: &str = "cok_";

/// A key in memory. `Debug` never shows its secret, there is no `Display`, and comparisons take constant time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The computer that it belongs to.
    pub computer: ComputerId,
    secret: Secret,
}

impl Key {
    /// Creates a key of this computer from 256 random bits.
    pub fn new(computer: ComputerId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { computer, secret: Secret::new(secret) }
    }

    /// The text of the key, which is issued once.
    pub fn token(&self) -> String {
        self.secret.token(PREFIX, &self.computer.encode())
    }

    /// Parses a key. `None` if the text is not a key of a computer or contains a typo.
    pub fn parse(token: &str) -> Option<Self> {
        let (id, secret) = Secret::parse(PREFIX, token)?;
        Some(Self { computer: ComputerId::decode(id)?, secret })
    }

    /// The hash that is stored.
    pub fn hash(&self) -> String {
        self.secret.hash(&self.computer.uid)
    }

    /// Whether a stored hash belongs to this key, in constant time.
    pub fn matches(&self, stored: &str) -> bool {
        self.secret.matches(&self.computer.uid, stored)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;

    use super::*;

    fn key(secret: [u8; 32]) -> Key {
        let computer = ComputerId { namespace: "team".into(), name: "box-1".into(), uid: "123e4567-e89b-12d3-a456-426614174000".into() };
        Key::new(computer, secret)
    }

    proptest! {
        #[test]
        fn a_key_round_trips_and_only_its_own_hash_matches(secret: [u8; 32], other: [u8; 32]) {
            let (key, other) = (key(secret), key(other));
            prop_assert_eq!(Key::parse(&key.token()), Some(key.clone()));
            prop_assert!(key.matches(&key.hash()));
            prop_assert_eq!(key.matches(&other.hash()), key == other);
        }

        #[test]
        fn garbage_is_never_a_key(text in "\\PC*", cut in 0_usize..150) {
            prop_assert!(Key::parse(&text).is_none());
            let token = key([7; 32]).token();
            prop_assert!(Key::parse(&token[..cut.min(token.len() - 1)]).is_none());
        }
    }

    #[test]
    fn a_secret_is_bound_to_its_uid_and_never_printed() {
        let one = key([1; 32]);
        let mut successor = one.clone();
        successor.computer.uid = "00000000-e89b-12d3-a456-426614174000".into();
        assert_ne!(one.hash(), successor.hash());
        let shown = format!("{one:?}");
        assert!(!shown.contains("1, 1") && !shown.contains(&URL_SAFE_NO_PAD.encode([1; 32])), "{shown}");
    }

    #[test]
    fn a_key_has_one_spelling_and_a_typo_is_detected() {
        let token = key([9; 32]).token();
        assert!(token.starts_with("cok_") && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
        for (i, _) in token.char_indices() {
            let mut typo = token.clone().into_bytes();
            typo[i] = if typo[i] == b'x' { b'y' } else { b'x' };
            assert!(Key::parse(&String::from_utf8(typo).unwrap()).is_none(), "at {i}");
        }
        for other in
            [format!(" {token}"), format!("{token} "), format!("{token}="), token.to_uppercase(), token.replacen("cok_", "cok-", 1)]
        {
            assert!(Key::parse(&other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_stored_hash_of_another_length_or_case_does_not_match() {
        let key = key([2; 32]);
        let hash = key.hash();
        for other in ["", &hash[..63], &hash.to_uppercase(), &format!("{hash}0")] {
            assert!(!key.matches(other));
        }
    }
}
