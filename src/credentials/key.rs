//! The format of a computer's key: `cok_<id>.<secret><checksum>`. The id says where its record is; the checksum tells a mistyped
//! key from a dead one without a request, and lets secret scanners find keys (GitHub's idea). Only a hash is ever stored.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::id::ComputerId;

/// What every key begins with.
pub const PREFIX: &str = "cok_";
const SECRET_BYTES: usize = 32;
const CHECKSUM_CHARS: usize = 6;
/// 32 bytes in base64 without padding.
const SECRET_CHARS: usize = 43;

/// A key. Its secret never appears in `Debug`, and there is no `Display`; two are compared in constant time.
#[derive(Clone)]
pub struct Key {
    /// The computer that it belongs to.
    pub computer: ComputerId,
    secret: [u8; SECRET_BYTES],
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.computer == other.computer && bool::from(self.secret.ct_eq(&other.secret))
    }
}

impl Eq for Key {}

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
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        let shown = format!("{one:?}");
        assert!(!shown.contains("1, 1") && !shown.contains(&URL_SAFE_NO_PAD.encode([1; 32])), "{shown}");
    }

    #[test]
    fn a_token_has_one_spelling_and_a_slip_of_the_finger_is_no_key() {
        let token = key([9; 32]).token();
        assert!(token.starts_with("cok_") && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
        for (i, _) in token.char_indices() {
            let mut slip = token.clone().into_bytes();
            slip[i] = if slip[i] == b'x' { b'y' } else { b'x' };
            assert!(Key::parse(&String::from_utf8(slip).unwrap()).is_none(), "at {i}");
        }
        for other in
            [format!(" {token}"), format!("{token} "), format!("{token}="), token.to_uppercase(), token.replacen("cok_", "cok-", 1)]
        {
            assert!(Key::parse(&other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_stored_hash_of_another_length_or_case_is_no_match() {
        let key = key([2; 32]);
        let hash = key.hash();
        for other in ["", &hash[..63], &hash.to_uppercase(), &format!("{hash}0")] {
            assert!(!key.matches(other));
        }
    }
}
