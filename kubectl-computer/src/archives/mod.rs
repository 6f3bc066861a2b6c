//! `archives`: a tenant reads the archives of its deleted computers, over the HTTP API and with its own rights. No exec into the operator is needed, and
//! nothing is shown or named before it is complete and verified.

mod api;
pub mod args;
mod check;
mod download;
mod expected;
mod token;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::api::{Deletion, HttpApi};
use self::args::{Archives, Command};
use self::expected::Expected;
use crate::args::Global;
use crate::screen;
use crate::text::{bytes, plain, plain_json, table};

/// The part of the document that is used.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    namespace: String,
    name: String,
    uid: String,
    created_at: i64,
    manifest_digest: String,
    stored_bytes: u64,
    stored_digest: Option<String>,
    tar_bytes: u64,
    lost: u64,
    left_out_by: Option<String>,
    sessions: Vec<Session>,
    problems: Vec<Problem>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    id: String,
    files: u64,
    bytes: u64,
    stored_bytes: u64,
    tar_digest: String,
    tar_bytes: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Problem {
    path: String,
    kind: String,
    detail: String,
}

/// Runs a command.
///
/// # Errors
/// When it fails, and why.
pub async fn run(global: &Global, archives: &Archives) -> Result<()> {
    let api = HttpApi::connect(global, &archives.api).await?;
    match &archives.command {
        Command::Ls => ls(&api).await,
        Command::Show { computer, json } => show(&api, computer, *json).await,
        Command::Cat { computer, path } => cat(&api, computer, path).await,
        Command::Export { computer, session, file } => export(&api, computer, session.as_deref(), file.as_deref()).await,
        Command::Verify { computer, file } => verify(&api, computer, file.as_deref()).await,
    }
}

async fn ls(api: &HttpApi) -> Result<()> {
    let header = ["UID", "NAME", "STATE", "DELETED", "SESSIONS", "SIZE"].map(str::to_owned).to_vec();
    let row = |d: Deletion| {
        let archive = d.archive.map_or(("-".to_owned(), "-".to_owned()), |a| (a.sessions.to_string(), bytes(a.bytes)));
        vec![plain(&d.uid), plain(&d.name), plain(&d.state), time(d.deleted_at), archive.0, archive.1]
    };
    let rows: Vec<Vec<String>> = [header].into_iter().chain(api.deletions().await?.into_iter().map(row)).collect();
    if rows.len() == 1 {
        screen::note(&format!("no deletions are listed in namespace {}: they are listed for 30 days", api.namespace));
    }
    screen::out(&table(&rows));
    Ok(())
}

fn time(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds)
        .map_or_else(|_| milliseconds.to_string(), |t| t.round(jiff::Unit::Second).unwrap_or(t).to_string())
}

/// The id of a computer. An id is used as it is: records are kept for 30 days, archives for longer.
async fn id_of(api: &HttpApi, computer: &str) -> Result<String> {
    // Names and UIDs have no capital letters.
    if computer.chars().any(|c| c.is_ascii_uppercase()) {
        return Ok(computer.to_owned());
    }
    let found = api.deletion(|d| d.uid == computer || d.name == computer).await?;
    found.map(|deletion| deletion.computer_id).with_context(|| {
        format!(
            "no deleted computer {} is listed in namespace {}: `kubectl computer archives ls` lists them. After 30 days, use the id of the computer",
            plain(computer),
            api.namespace
        )
    })
}

async fn document(api: &HttpApi, computer: &str) -> Result<(String, Value)> {
    let id = id_of(api, computer).await?;
    let document = api.json(&["computers", &id, "archive"], &[]).await?;
    Ok((id, document))
}

async fn show(api: &HttpApi, computer: &str, json: bool) -> Result<()> {
    let (_, value) = document(api, computer).await?;
    if json {
        screen::out(&serde_json::to_string_pretty(&plain_json(value))?);
        return Ok(());
    }
    let document: Document = serde_json::from_value(value)?;
    screen::out(&text_of(&document));
    Ok(())
}

fn text_of(document: &Document) -> String {
    let mut text = format!(
        "Computer {}/{} ({}), archived {}\nmanifest sha256:{}, export of {} bytes{}\n",
        plain(&document.namespace),
        plain(&document.name),
        plain(&document.uid),
        time(document.created_at),
        plain(&document.manifest_digest),
        document.stored_bytes,
        document.stored_digest.as_ref().map(|digest| format!(", sha256:{}", plain(digest))).unwrap_or_default(),
    );
    let header = ["SESSION", "FILES", "SIZE"].map(str::to_owned).to_vec();
    let row = |s: &Session| vec![plain(&s.id), s.files.to_string(), bytes(i64::try_from(s.bytes).unwrap_or(i64::MAX))];
    let rows: Vec<Vec<String>> = [header].into_iter().chain(document.sessions.iter().map(row)).collect();
    text.push_str(&table(&rows));
    for problem in &document.problems {
        let (path, kind, detail) = (plain(&problem.path), plain(&problem.kind), plain(&problem.detail));
        let _ = write!(text, "\nnot archived completely: {path} ({kind}: {detail})");
    }
    if let Some(by) = &document.left_out_by {
        let _ = write!(text, "\n{} files lost content: {}", document.lost, plain(by));
    }
    text
}

async fn export(api: &HttpApi, computer: &str, session: Option<&str>, file: Option<&Path>) -> Result<()> {
    let expected = Expected::ask(api, &id_of(api, computer).await?, session).await?;
    let usual = || expected.name.as_ref().map(PathBuf::from).context("the API gives the file no name that is safe: use --file");
    let file = file.map_or_else(usual, |file| Ok(file.to_owned()))?;
    let verified = download::to_file(api, &expected, &file).await?;
    screen::note(&format!("{}: {} bytes, verified: {verified}", file.display(), expected.length));
    screen::note(&format!("unpack it with: zstd -dc {} | tar -x", crate::text::quoted(&file.display().to_string())));
    Ok(())
}

async fn verify(api: &HttpApi, computer: &str, file: Option<&Path>) -> Result<()> {
    let expected = Expected::ask(api, &id_of(api, computer).await?, None).await?;
    let verified = match file {
        Some(file) => check::file(file, &expected)?,
        None => download::to_nothing(api, &expected).await?,
    };
    screen::out(&format!("verified: {} bytes, {verified}", expected.length));
    Ok(())
}

/// Names of other files that are shown when one is not found.
const SHOWN: usize = 20;

async fn cat(api: &HttpApi, computer: &str, path: &str) -> Result<()> {
    let (id, value) = document(api, computer).await?;
    let document: Document = serde_json::from_value(value)?;
    let session =
        session_of(&document, path).with_context(|| format!("no session can contain {}: `show` lists the sessions", plain(path)))?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("session");
    download::to_file(api, &Expected::ask(api, &id, Some(&session)).await?, &file).await?;
    let mut tar = tar::Archive::new(zstd::Decoder::new(std::fs::File::open(&file)?)?);
    let mut names = Vec::new();
    for entry in tar.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let kind = entry.header().entry_type();
        if name == path && (kind.is_file() || kind.is_gnu_sparse()) {
            return print(&mut entry);
        }
        if name == path && kind.is_hard_link() {
            let other = entry.link_name_bytes().map(|name| plain(&String::from_utf8_lossy(&name))).unwrap_or_default();
            bail!("{} is another name of {other}: use that one", plain(path));
        }
        if names.len() < SHOWN {
            names.push(plain(&name));
        }
    }
    bail!("{} is not in the archive. Its session contains: {}", plain(path), names.join(", "))
}

/// Writes a file to standard output; to a terminal only as text that cannot control it.
fn print(file: &mut impl std::io::Read) -> Result<()> {
    let terminal = screen::shown();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        if terminal {
            screen::raw(crate::text::plain_lines(&String::from_utf8_lossy(&buffer[..read])).as_bytes())?;
        } else {
            screen::raw(&buffer[..read])?;
        }
    }
}

/// The session that may contain a file: the file itself, its path up to the first dot of its name, or the innermost folder above it.
fn session_of(document: &Document, path: &str) -> Option<String> {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let stem = path[name..].char_indices().skip(1).find(|(_, c)| *c == '.').map(|(dot, _)| &path[..name + dot]);
    let above = path.rmatch_indices('/').map(|(end, _)| &path[..end]);
    let mut ids = std::iter::once(path).chain(stem).chain(above);
    ids.find(|id| document.sessions.iter().any(|s| s.id == *id)).map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn document(ids: &[&str]) -> Document {
        let session =
            |id: &&str| serde_json::json!({"id": id, "files": 1, "bytes": 2, "storedBytes": 3, "tarDigest": "d".repeat(64), "tarBytes": 4});
        let sessions: Vec<Value> = ids.iter().map(session).collect();
        let document = serde_json::json!({"namespace": "t", "name": "c", "uid": "u", "createdAt": 0, "manifestDigest": "m", "storedBytes": 9,
            "storedDigest": "s", "tarBytes": 10, "lost": 1, "leftOutBy": "the class", "sessions": sessions,
            "problems": [{"path": "a\u{1b}[2Kb", "kind": "unreadable", "detail": "x"}]});
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn a_file_is_looked_for_in_the_session_that_contains_it() {
        let document = document(&["s/one", "s/two", "s/folder"]);
        for (path, id) in [("s/one.jsonl", Some("s/one")), ("s/two", Some("s/two")), ("s/folder/a/b.txt", Some("s/folder")), ("t/x", None)]
        {
            assert_eq!(session_of(&document, path).as_deref(), id, "{path}");
        }
    }

    /// A tenant's file could otherwise erase the line that names it.
    #[test]
    fn no_name_controls_the_terminal() {
        let text = text_of(&document(&["a\u{1b}b"]));
        assert!(!text.contains('\u{1b}') && text.contains("not archived completely") && text.contains("sha256:s"), "{text}");
    }
}
