//! `archives`: a tenant reads the archives of its deleted computers, over the HTTP API and with its own rights. No exec into the operator is needed, and
//! nothing is shown or named before it is complete and verified.

mod answer;
mod api;
pub mod args;
mod cat;
mod check;
mod download;
mod expected;
mod fault;
mod meter;
mod pace;
mod part;
mod target;
#[cfg(test)]
mod test_server;
mod token;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use serde::Deserialize;

use self::api::{Deletion, HttpApi};
use self::args::{Archives, Command};
use self::download::Download;
use self::fault::Fault;
use self::target::Target;
use crate::args::Global;
use crate::screen;
use crate::text::{bytes, plain, plain_json, table};

/// The part of the document that is used.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    namespace: String,
    name: String,
    uid: String,
    created_at: i64,
    manifest_digest: String,
    stored_bytes: u64,
    stored_digest: Option<String>,
    lost: u64,
    left_out_by: Option<String>,
    sessions: Vec<Session>,
    problems: Vec<Problem>,
}

#[derive(Debug, Deserialize)]
struct Session {
    id: String,
    files: u64,
    bytes: u64,
}

#[derive(Debug, Deserialize)]
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
        Command::Cat { computer, path } => {
            let archive = archive_of(&api, computer).await?;
            cat::run(&api, &archive, path, &mut screen::output(), screen::shown()).await
        }
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

/// The archive of a computer. An id is used as it is: records are kept for 30 days, archives for longer.
async fn archive_of(api: &HttpApi, computer: &str) -> Result<Target> {
    // Names and UIDs have no capital letters.
    if computer.chars().any(|c| c.is_ascii_uppercase()) {
        return Ok(Target::archive(computer));
    }
    let found = api.deletion(|d| d.uid == computer || d.name == computer).await?;
    found.map(|deletion| Target::archive(&deletion.computer_id)).with_context(|| {
        format!(
            "no deleted computer {} is listed in namespace {}: `kubectl computer archives ls` lists them. After 30 days, use the id of the computer",
            plain(computer),
            api.namespace
        )
    })
}

async fn show(api: &HttpApi, computer: &str, json: bool) -> Result<()> {
    let archive = archive_of(api, computer).await?;
    let value = api.document(&archive).await?;
    if json {
        screen::out(&serde_json::to_string_pretty(&plain_json(value))?);
        return Ok(());
    }
    screen::out(&text_of(&understood(&archive, value)?));
    Ok(())
}

fn understood(archive: &Target, document: serde_json::Value) -> Result<Document> {
    serde_json::from_value(document)
        .with_context(|| format!("cannot parse what the HTTP API lists of {archive}: it may be of another version"))
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
    // Before anything is asked for.
    file.map_or(Ok(()), download::is_free)?;
    let target = archive_of(api, computer).await?.session(session);
    let download = Download::begin(api, &target).await?;
    let (length, name) = (download.expected().length, download.expected().name.as_ref().map(PathBuf::from));
    let file = match file {
        Some(file) => file.to_owned(),
        None => name.with_context(|| format!("the HTTP API gives {target} no name that is safe: use --file"))?,
    };
    let verified = download.save(&file).await?;
    screen::note(&format!("{}: {length} bytes, verified: {verified}", file.display()));
    screen::note(&format!("unpack it with: zstd -dc {} | tar -x", crate::text::quoted(&file.display().to_string())));
    Ok(())
}

async fn verify(api: &HttpApi, computer: &str, file: Option<&Path>) -> Result<()> {
    let archive = archive_of(api, computer).await?;
    let download = Download::begin(api, &archive).await?;
    let expected = download.expected().clone();
    let verified = match file {
        // Only the headers are used.
        Some(file) => {
            drop(download);
            check::file(file, &expected).map_err(|fault| match fault {
                Fault::Wrong(how) => anyhow!("{} is not the export of {archive}: {how:#}. Export it to another file", file.display()),
                other => other.error(),
            })?
        }
        None => download.fetch(&mut std::io::sink()).await?,
    };
    screen::out(&format!("verified: {} bytes, {verified}", expected.length));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A tenant's file could otherwise erase the line that names it.
    #[test]
    fn no_name_controls_the_terminal() {
        let document = test_server::document(&["a\u{1b}b"]);
        let text = text_of(&serde_json::from_value(document).unwrap());
        assert!(!text.contains('\u{1b}') && text.contains("not archived completely") && text.contains("sha256:s"), "{text}");
    }
}
