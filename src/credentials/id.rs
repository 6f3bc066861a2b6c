//! The opaque id of a computer: namespace, name and UID in one word (Kubernetes has no GET by UID). Never parsed by clients.

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
    /// The id as one word of `A-Z a-z 0-9 - _`.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}/{}/{}", self.namespace, self.name, self.uid))
    }

    /// The parts of an id. `None`: it is not one; nothing that Kubernetes would not accept as a name gets through.
    pub fn decode(word: &str) -> Option<Self> {
        if word.len() > 600 {
            return None;
        }
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(word).ok()?).ok()?;
        let mut parts = text.split('/');
        let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
        let ok = parts.next().is_none() && is_name(namespace, 63) && is_name(name, 253) && is_uid(uid);
        ok.then(|| Self { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() })
    }
}

fn is_name(text: &str, max: usize) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= max
        && bytes.iter().all(|b| edge(*b) || *b == b'-' || *b == b'.')
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
}

fn is_uid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}
