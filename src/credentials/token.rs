//! The common format of keys and tokens: `<prefix><id>.<secret><checksum>`. The id locates the record. The checksum detects typos without a request
//! and lets secret scanners find tokens, as in GitHub's format. Only a hash is stored.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Random bytes of a secret.
pub(super) const SECRET_BYTES: usize = 32;
const CHECKSUM_CHARS: usize = 6;
/// 32 bytes in base64 without padding.
const SECRET_CHARS: usize = 43;

/// 256 random bits. `Debug` never shows them, there is no `Display`, and comparisons take constant time.
#[derive(Clone)]
pub(super) struct Secret([u8; SECRET_BYTES]);

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("redacted")
    }
}

impl Secret {
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// The text of the token, which is issued once.
    pub fn token(&self, prefix: &str, id: &str) -> String {
        let body = format!("{prefix}{id}.{}", URL_SAFE_NO_PAD.encode(self.0));
        let checksum = checksum(&body);
        body + &checksum
    }

    /// Splits a token with this prefix into id and secret. `None` if the text is not such a token or contains a typo.
    pub fn parse<'a>(prefix: &str, token: &'a str) -> Option<(&'a str, Self)> {
        if !token.is_ascii() {
            return None;
        }
        let split = token.len().checked_sub(CHECKSUM_CHARS)?;
        let (body, check) = token.split_at(split);
        if checksum(body) != check {
            return None;
        }
        let (id, secret) = body.strip_prefix(prefix)?.split_once('.')?;
        if secret.len() != SECRET_CHARS {
            return None;
        }
        Some((id, Self(URL_SAFE_NO_PAD.decode(secret).ok()?.try_into().ok()?)))
    }

    /// The hash that is stored: SHA-256 of the UID and the secret, hexadecimal. A secret of 256 random bits needs no slow hash.
    pub fn hash(&self, uid: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(uid.as_bytes());
        hash.update([0]);
        hash.update(self.0);
        hex::encode(hash.finalize())
    }

    /// Whether a stored hash belongs to this secret and UID, in constant time.
    pub fn matches(&self, uid: &str, stored: &str) -> bool {
        self.hash(uid).as_bytes().ct_eq(stored.as_bytes()).into()
    }
}

fn checksum(body: &str) -> String {
    hex::encode(Sha256::digest(body.as_bytes()))[..CHECKSUM_CHARS].to_owned()
}
