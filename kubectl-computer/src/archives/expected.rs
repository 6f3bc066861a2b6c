//! What is known about a download from the headers of the answer to its first request. The document of an archive, which lists every session, is not needed for
//! it.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use reqwest::header::HeaderMap;

/// What must be right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Its `ETag`: only these bytes are joined.
    pub etag: String,
    /// Its length.
    pub length: u64,
    /// The name that the API gives the file.
    pub name: Option<String>,
    /// SHA-256 of the file. Not known for sessions and for archives of earlier versions.
    pub stored: Option<String>,
    /// SHA-256 of the tar in it.
    pub tar: Option<String>,
    /// Bytes of the tar in it.
    pub tar_bytes: Option<u64>,
}

impl Expected {
    /// As the headers of an answer with everything say.
    ///
    /// # Errors
    /// When they do not have what is needed.
    pub fn of(headers: &HeaderMap) -> Result<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (etag, length) = (text("etag").context("it has no ETag")?, text("content-length").context("it has no Content-Length")?);
        ensure!(!etag.starts_with("W/"), "its ETag is weak, so that parts cannot be joined");
        Ok(Self {
            etag: etag.to_owned(),
            length: length.parse().context("its Content-Length is not a number")?,
            name: text("content-disposition").and_then(file_name).map(str::to_owned),
            stored: text("repr-digest").map(hex_of).transpose()?,
            tar: text("computer-tar-sha256").map(str::to_owned),
            tar_bytes: text("computer-tar-bytes").map(str::parse).transpose().context("its Computer-Tar-Bytes is not a number")?,
        })
    }
}

/// The digest of `sha-256=:BASE64:` (RFC 9530), in hexadecimal.
fn hex_of(value: &str) -> Result<String> {
    let digest = value.strip_prefix("sha-256=:").and_then(|rest| rest.strip_suffix(':'));
    let bytes = digest.and_then(|digest| base64::engine::general_purpose::STANDARD.decode(digest).ok());
    Ok(hex::encode(bytes.context("its Repr-Digest is not a SHA-256")?))
}

/// The name in `attachment; filename="NAME"`, if it can only be that of a file in the current folder.
fn file_name(value: &str) -> Option<&str> {
    let name = value.strip_prefix("attachment; filename=\"")?.strip_suffix('"')?;
    let safe = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')) && !name.starts_with(['.', '-']);
    (safe && !name.is_empty()).then_some(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (reqwest::header::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_headers_say_what_to_expect() {
        let all = [
            ("etag", "\"a\""),
            ("content-length", "17"),
            ("content-disposition", "attachment; filename=\"box-1.tar.zst\""),
            ("repr-digest", "sha-256=:AAH/:"),
            ("computer-tar-bytes", "99"),
        ];
        let (name, stored) = (Some("box-1.tar.zst".to_owned()), Some("0001ff".to_owned()));
        let expected = Expected { etag: "\"a\"".to_owned(), length: 17, name, stored, tar: None, tar_bytes: Some(99) };
        assert_eq!(Expected::of(&headers(&all)).unwrap(), expected);
        assert!(Expected::of(&headers(&all[1..])).is_err(), "without a tag nothing can be resumed");
        assert!(Expected::of(&headers(&[("etag", "W/\"a\""), ("content-length", "17")])).is_err());
        assert!(Expected::of(&headers(&[("etag", "\"a\""), ("content-length", "17"), ("repr-digest", "sha-512=:AAH/:")])).is_err());
    }

    #[test]
    fn no_answer_chooses_a_place_for_the_file() {
        for bad in ["../x", "/etc/x", ".profile", "-rf", "a b", "", "a\"; filename=\"b"] {
            assert_eq!(file_name(&format!("attachment; filename=\"{bad}\"")), None, "{bad}");
        }
    }
}
