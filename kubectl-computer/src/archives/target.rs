//! What is downloaded: the archive of a computer, or one session of it. It knows the path of the download, and how errors name it.

use std::fmt::{self, Display, Formatter};

use base64::Engine as _;

use crate::text::plain;

/// What is downloaded.
#[derive(Clone, Debug)]
pub struct Target {
    id: String,
    session: Option<String>,
}

impl Target {
    /// The archive of the computer with this id of the HTTP API.
    pub fn archive(id: &str) -> Self {
        Self { id: id.to_owned(), session: None }
    }

    /// One session of it.
    #[must_use]
    pub fn session(self, session: Option<&str>) -> Self {
        Self { session: session.map(str::to_owned), ..self }
    }

    /// The path of the document that lists what the archive contains, below `/api/v0`.
    pub fn document(&self) -> Vec<&str> {
        vec!["computers", &self.id, "archive"]
    }

    /// The path of the download.
    pub fn path(&self) -> Vec<&str> {
        let mut path = self.document();
        match &self.session {
            Some(session) => path.extend(["sessions", session]),
            None => path.push("export"),
        }
        path
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.session {
            Some(session) => write!(f, "session {} in the archive of {}", plain(session), computer(&self.id)),
            None => write!(f, "the archive of {}", computer(&self.id)),
        }
    }
}

/// A computer by its id, which contains its namespace, its name and its UID.
fn computer(id: &str) -> String {
    let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(id).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match text.as_ref().map(|text| text.split('/').collect::<Vec<_>>()).as_deref() {
        Some([namespace, name, uid]) => format!("Computer {}/{} ({})", plain(namespace), plain(name), plain(uid)),
        _ => format!("the computer with the id {}", plain(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_computer_with_its_uid_and_the_session() {
        let id = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode("team/box/123e4567");
        let archive = Target::archive(&id);
        assert_eq!(archive.to_string(), "the archive of Computer team/box (123e4567)");
        assert_eq!(archive.path(), ["computers", &id, "archive", "export"]);
        let session = archive.session(Some("s/one\u{1b}"));
        assert_eq!(session.to_string(), "session s/one\\u{1b} in the archive of Computer team/box (123e4567)");
        assert_eq!(session.path(), ["computers", &id, "archive", "sessions", "s/one\u{1b}"]);
        assert_eq!(Target::archive("?\u{7}").to_string(), "the archive of the computer with the id ?\\u{7}");
    }
}
