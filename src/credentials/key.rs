//! The format of a computer's key: `cok_<id>.<secret><checksum>`. The id says where its record is; the checksum tells a mistyped
//! key from a dead one without a request, and lets secret scanners find keys (GitHub's idea). Only a hash is ever stored.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::id::ComputerId;

const PREFIX: &str = "cok_";
const SECRET_BYTES: usize = 32;
const CHECKSUM_CHARS: usize = 6;
/// 32 bytes in base64 without padding.
const SECRET_CHARS: usize = 43;

/// A key. Its secret never appears in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// The computer that it belongs to.
    pub computer: ComputerId,
    secret: [u8; SECRET_BYTES],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("computer", &self.computer).field("secret", &"redacted").finish()
    }
}

impl Key {
    /// A key of this computer from 256 random bits.
    pub fn new(computer: ComputerId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { computer, secret }
    }

    /// The token as it is handed out, once.
    pub fn token(&self) -> String {
        let body = format!("{PREFIX}{}.{}", self.computer.encode(), URL_SAFE_NO_PAD.encode(self.secret));
        let checksum = checksum(&body);
        body + &checksum
    }

    /// Parses a token. `None`: it is not a key of ours, or it was mistyped.
    pub fn parse(token: &str) -> Option<Self> {
        if !token.is_ascii() {
            return None;
        }
        let split = token.len().checked_sub(CHECKSUM_CHARS)?;
        let (body, check) = token.split_at(split);
        if checksum(body) != check {
            return None;
        }
        let (id, secret) = body.strip_prefix(PREFIX)?.split_once('.')?;
        if secret.len() != SECRET_CHARS {
            return None;
        }
        let secret = URL_SAFE_NO_PAD.decode(secret).ok()?.try_into().ok()?;
        Some(Self { computer: ComputerId::decode(id)?, secret })
    }

    /// What is stored of it: SHA-256 over the UID and the secret, hexadecimal. A secret of 256 random bits needs no slow hash.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.computer.uid.as_bytes());
        hash.update([0]);
        hash.update(self.secret);
        hex::encode(hash.finalize())
    }

    /// Whether a stored hash is this key's, in constant time.
    pub fn matches(&self, stored: &str) -> bool {
        self.hash().as_bytes().ct_eq(stored.as_bytes()).into()
    }
}

fn checksum(body: &str) -> String {
    hex::encode(Sha256::digest(body.as_bytes()))[..CHECKSUM_CHARS].to_owned()
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(secret: [u8; 32]) -> Key {
        let computer = ComputerId { namespace: "team".into(), name: "box-1".into(), uid: "123e4567-e89b-12d3-a456-426614174000".into() };
        Key::new(computer, secret)
    }

    proptest! {
        #[test]
        fn every_key_survives_its_token_and_only_its_hash_matches(secret: [u8; 32], other: [u8; 32]) {
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
        assert!(!format!("{one:?}").contains("1, 1"));
    }
}
