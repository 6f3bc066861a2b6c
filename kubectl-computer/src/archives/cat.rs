//! `archives cat`: one archived file. Its session is downloaded to a file without a name and compared there: nothing is printed before it is whole, and nothing
//! remains on the disk.

use std::io::{Read, Seek as _, Write};

use anyhow::{Context as _, Result, bail};

use super::api::HttpApi;
use super::download::Download;
use super::target::Target;
use super::{Document, understood};
use crate::text::{plain, plain_lines};

/// Names of other files that are shown when one is not found.
const SHOWN: usize = 20;

/// Prints a file; to a terminal only as text that cannot control it.
///
/// # Errors
/// When its session cannot be downloaded, or does not contain the file.
pub async fn run(api: &HttpApi, archive: &Target, path: &str, out: &mut impl Write, terminal: bool) -> Result<()> {
    let document = understood(archive, api.document(archive).await?)?;
    let session = session_of(&document, path);
    let session =
        session.with_context(|| format!("no session in {archive} can contain {}: `archives show` lists the sessions", plain(path)))?;
    let target = archive.clone().session(Some(&session));
    let mut file = tempfile::tempfile().context("a temporary file cannot be created: set TMPDIR to a folder with enough space")?;
    Download::begin(api, &target).await?.fetch(&mut file).await?;
    file.rewind()?;
    let mut tar = tar::Archive::new(zstd::Decoder::new(file)?);
    let mut names = Vec::new();
    for entry in tar.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let kind = entry.header().entry_type();
        if name == path && (kind.is_file() || kind.is_gnu_sparse()) {
            return print(&mut entry, out, terminal).with_context(|| format!("{} was not printed completely", plain(path)));
        }
        if name == path && kind.is_hard_link() {
            let other = entry.link_name_bytes().map(|name| plain(&String::from_utf8_lossy(&name))).unwrap_or_default();
            bail!("{} is another name of {other}: use that one", plain(path));
        }
        if names.len() < SHOWN {
            names.push(plain(&name));
        }
    }
    bail!("{} is not in {target}. It contains: {}", plain(path), names.join(", "))
}

/// Copies a file in pieces.
fn print(file: &mut impl Read, out: &mut impl Write, terminal: bool) -> Result<()> {
    let (mut buffer, mut kept) = (vec![0; 64 * 1024], 0);
    loop {
        let read = file.read(&mut buffer[kept..])?;
        let all = kept + read;
        // A character that a piece cuts in two is kept for the next piece.
        let cut = if terminal && read > 0 { unfinished(&buffer[..all]) } else { 0 };
        let now = &buffer[..all - cut];
        if terminal {
            out.write_all(plain_lines(&String::from_utf8_lossy(now)).as_bytes())?;
        } else {
            out.write_all(now)?;
        }
        if read == 0 {
            return Ok(out.flush()?);
        }
        buffer.copy_within(all - cut..all, 0);
        kept = cut;
    }
}

/// Bytes at the end that begin a character and do not end it.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    if last.len() < 4 && std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none()) { last.len() } else { 0 }
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
#[path = "cat_tests.rs"]
mod tests;
