//! What `kubectl exec` loses is noticed by the commands of docs/book/src/archives.md, which these tests run. And names are safe for a terminal.

use std::path::Path;
use std::process::{Command as Process, Stdio};

use super::*;
use crate::archive::test_archives::{UID, archived};

/// A tenant could erase the line that names a lost file from the admin's terminal.
#[test]
fn a_name_cannot_write_over_the_terminal() {
    assert_eq!(plain("a b\u{e9}/\x1b[2K\n\u{202e}"), "a b\u{e9}/\\u{1b}[2K\\n\\u{202e}");
}

/// The documented commands that compare an output.
fn comparisons() -> Vec<&'static str> {
    let text = include_str!("../../../docs/book/src/archives.md");
    let (_, text) = text.split_once("### Is it complete?").unwrap();
    let block = text.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    block.lines().filter(|line| !line.is_empty()).collect()
}

/// What a command writes to standard output and to standard error, in two files that have its name.
async fn written(folder: &Path, name: &str, write: impl AsyncFnOnce(&mut delivery::Output) -> anyhow::Result<ExitCode>) {
    let mut out = delivery::Output::new(std::fs::File::create(folder.join(name)).unwrap());
    write(&mut out).await.unwrap();
    let mut notes = b"Defaulted container \"operator\" out of: operator, sidecar\n".to_vec();
    delivery::finish_text(out, &mut notes).unwrap();
    std::fs::write(folder.join(format!("{name}.notes")), notes).unwrap();
}

/// Runs a documented command as if `kubectl exec` had delivered only these bytes, with exit code 0.
fn succeeds(command: &str, folder: &Path, delivered: usize, notes: bool) -> bool {
    let script = format!(
        r#"in-operator() {{ head -c {delivered} "$FOLDER/$*"; if {notes}; then cat "$FOLDER/$*.notes" >&2; fi; }}
        cd "$(mktemp -d -p "$FOLDER")"
        {command}"#
    );
    let run = Process::new("bash").args(["-c", &script]).env("FOLDER", folder).stdin(Stdio::null()).output().unwrap();
    run.status.success()
}

/// Seen through a real `kubectl exec`: the end of an output is lost to a slow reader, and the exit code is 0.
#[tokio::test]
async fn a_reader_that_gets_a_cut_output_notices_it() {
    let files: Vec<(String, &[u8])> = (0..200).map(|n| (format!("s/{n}.jsonl"), &b"one"[..])).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, content)| (path.as_str(), *content)).collect();
    let store = archived(&files).await.store;
    let text = serde_json::json!({"computer": {"uid": UID}, "steps": [{"step": "stop-pods", "detail": "}"}]});
    store.put_once(&receipt_key(UID), serde_json::to_vec_pretty(&text).unwrap()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    written(at, "archives ls", async |out| ls(&store, out).await).await;
    written(at, "archives show UID", async |out| show(&store, UID, false, out).await).await;
    written(at, "archives show UID --json", async |out| show(&store, UID, true, out).await).await;
    written(at, "archives receipt UID", async |out| receipt(&store, UID, out).await).await;
    let commands = comparisons();
    assert_eq!(commands.len(), 4, "{commands:?}");
    for command in commands {
        let name = command.split_once("in-operator ").unwrap().1.split(" >").next().unwrap();
        let whole = std::fs::read(at.join(name)).unwrap();
        assert!(succeeds(command, at, whole.len(), true), "the whole output: {command}");
        // The last byte of JSON is the end of a line, which is not a part of it.
        let json = whole.starts_with(b"{");
        let last = if json { whole.len() - 2 } else { whole.len() - 1 };
        for delivered in [0, 1, whole.len() / 2, last] {
            assert!(!succeeds(command, at, delivered, true), "{delivered} of {} bytes: {command}", whole.len());
        }
        assert!(json || !succeeds(command, at, whole.len(), false), "without the line on standard error: {command}");
    }
}

/// Nobody may take the output of a command that has failed for a complete one.
#[tokio::test]
async fn a_command_that_fails_has_no_end() {
    let archived = archived(&[("s/one.jsonl", b"one"), ("s/two.jsonl", b"two")]).await;
    let mut out = delivery::Output::new(tempfile::tempfile().unwrap());
    assert!(show(&archived.store, "another", false, &mut out).await.is_err());
    let (reader, writer) = std::io::pipe().unwrap();
    let mut out = delivery::Output::new(std::fs::File::from(std::os::fd::OwnedFd::from(writer)));
    ls(&archived.store, &mut out).await.unwrap();
    drop(reader);
    let mut notes = Vec::new();
    assert!(delivery::finish_text(out, &mut notes).is_err() && notes.is_empty());
}
