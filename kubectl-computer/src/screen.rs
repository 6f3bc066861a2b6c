//! The only place that writes to standard output and standard error. It makes every text plain, also one that was made plain before: a
//! message of an error comes from the API server too. It must never write anything else.

use std::io::{ErrorKind, IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::text::plain_lines;

/// Whether a part of the output is lost.
static LOST: AtomicBool = AtomicBool::new(false);

/// Writes to standard output. A reader that has gone away is no error; what is lost otherwise, as on a full disk, is (see [`lost`]).
pub fn out(text: &str) {
    let text = plain_lines(text.trim_end_matches('\n'));
    if writeln!(std::io::stdout().lock(), "{text}").is_err_and(|error| error.kind() != ErrorKind::BrokenPipe) {
        LOST.store(true, Ordering::Relaxed);
    }
}

/// Whether a part of the output could not be written: the command has then failed, whatever else it did.
pub fn lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// Writes to standard error.
pub fn note(text: &str) {
    let text = plain_lines(text.trim_end_matches('\n'));
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes bytes that this program has generated itself, or bytes of a file that no terminal gets (see [`shown`]).
///
/// # Errors
/// When standard output cannot be written.
pub fn raw(bytes: &[u8]) -> std::io::Result<()> {
    std::io::stdout().lock().write_all(bytes)
}

/// Standard output, for a file that may be large. A terminal must get it only as plain text (see [`shown`]).
pub fn output() -> impl std::io::Write {
    std::io::stdout()
}

/// Whether a person reads standard output.
pub fn shown() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether a person can be asked: standard input and standard error are a terminal.
pub fn interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Whether standard error is a terminal, so that steps can be updated in place.
pub fn live() -> bool {
    std::io::stderr().is_terminal()
}

/// Asks a question. Only the given word, or `y` and `yes` if there is none, is a consent.
///
/// # Errors
/// When nobody can be asked: the flag `--yes` is then needed.
pub fn confirm(question: &str, word: Option<&str>) -> anyhow::Result<bool> {
    anyhow::ensure!(interactive(), "this needs a confirmation, and there is no terminal to ask on: repeat the command with --yes");
    let _ = write!(std::io::stderr().lock(), "{} ", plain_lines(question));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(consents(answer.trim(), word))
}

fn consents(answer: &str, word: Option<&str>) -> bool {
    word.map_or_else(|| matches!(answer, "y" | "Y" | "yes"), |word| answer == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_answer_is_a_consent() {
        assert!(consents("y", None) && consents("yes", None) && consents("box", Some("box")));
        assert!(!consents("", None) && !consents("yes", Some("box")) && !consents("no", None));
    }
}
