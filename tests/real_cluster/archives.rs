//! What is archived: unusual files, unreadable files, large files, a whole home, and an archive that already exists.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use computer_operator::archive::Archive;
use computer_operator::archive::reading::read;
use computer_operator::archive::restore::Unpack;
use computer_operator::resources::RecordPhase;
use computer_operator::resources::steps::{DeletionStep, StepResult};
use serde_json::json;
use sha2::Digest as _;

use crate::Scenario;
use crate::harness::Bench;

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![
        odd_files,
        a_whole_home,
        two_hundred_megabytes,
        an_archive_that_already_exists,
        without_an_archive,
        unreadable_files_block_until_given_up
    ]
}

async fn odd_files(bench: Arc<Bench>) -> Result<()> {
    bench.class("recording", json!({"archive": {"policy": "Required", "unreadableFiles": "Record"}})).await?;
    let namespace = bench.namespace("odd").await?;
    let uid = bench.active(&namespace, "box", "recording").await?;
    let script = r#"cd $HOME; mkdir -p .factory/sessions; cd .factory/sessions
        i=0; while [ $i -lt 2000 ]; do echo "session $i" > s$i.jsonl; i=$((i+1)); done
        echo odd > "with space.jsonl"; echo odd > "$(printf 'new\nline').jsonl"; echo odd > "$(printf '\377\376').jsonl"; echo odd > -rf.jsonl; echo odd > '$(id).jsonl'
        ln -s /etc/passwd link.jsonl; ln -s / root; mkfifo pipe; echo secret > locked.jsonl; chmod 000 locked.jsonl"#;
    bench.shell(&namespace, &uid, script).await?;
    bench.delete(&namespace, "box", "background").await?;
    let (record, archive) = bench.archived(&uid, 2005).await?;
    ensure!(archive.problem_count() == 4, "{archive:?}");
    ensure!(record.spec.state.deletion.and_then(|d| d.archive).context("no archive")?.problems == 1, "one file was lost");
    Ok(())
}

/// `sessionPaths: ["."]`, from the class to the restored file.
async fn a_whole_home(bench: Arc<Bench>) -> Result<()> {
    bench.class("whole-home", json!({"sessionPaths": ["."]})).await?;
    let namespace = bench.namespace("whole").await?;
    let uid = bench.active(&namespace, "box", "whole-home").await?;
    let script =
        "cd $HOME; mkdir -p .claude/projects work/deep; echo note > notes.txt; echo s > .claude/projects/a.jsonl; echo w > work/deep/w.c";
    bench.shell(&namespace, &uid, script).await?;
    bench.delete(&namespace, "box", "background").await?;
    let (_, archive) = bench.archived(&uid, 3).await?;
    ensure!(matches!(&archive, Archive::New(manifest) if manifest.session_paths == ["."]), "{archive:?}");
    let back = tempfile::tempdir()?;
    read(&bench.store()?, &archive, None, Unpack::new(back.path())).await?;
    ensure!(std::fs::read(back.path().join("notes.txt"))? == b"note\n" && std::fs::read(back.path().join("work/deep/w.c"))? == b"w\n");
    Ok(())
}

async fn two_hundred_megabytes(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("large").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.shell(&namespace, &uid, "mkdir -p $HOME/.codex/sessions; cd $HOME/.codex/sessions; dd if=/dev/urandom of=a.jsonl bs=1M count=200 2>/dev/null; sha256sum a.jsonl > b.jsonl").await?;
    let sum = bench.shell(&namespace, &uid, "cat $HOME/.codex/sessions/b.jsonl").await?;
    bench.delete(&namespace, "box", "background").await?;
    let (_, archive) = bench.archived(&uid, 2).await?;
    let store = bench.store()?;
    let entry = archive.session_of_path(&store, ".codex/sessions/a.jsonl").await?.context("the large session")?;
    let back = tempfile::tempdir()?;
    read(&store, &archive, Some(entry), Unpack::new(back.path())).await?;
    let digest = hex::encode(sha2::Sha256::digest(std::fs::read(back.path().join(".codex/sessions/a.jsonl"))?));
    ensure!(sum.starts_with(&digest), "the restored file has the digest {digest}, not {sum}");
    Ok(())
}

/// S7: an existing archive is never overwritten.
async fn an_archive_that_already_exists(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("twice").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    let planted = json!({"version": 1, "computer": {"namespace": namespace, "name": "box", "uid": uid}, "createdAt": 7, "sessionPaths": [], "sessions": [], "problems": [], "problemCount": 0});
    bench.store()?.put_once(&computer_operator::archive::manifest_key(&uid), serde_json::to_vec(&planted)?).await?;
    bench.delete(&namespace, "box", "background").await?;
    let (_, archive) = bench.archived(&uid, 0).await?;
    ensure!(archive.created_at() == 7, "S7: the archive was overwritten");
    Ok(())
}

async fn without_an_archive(bench: Arc<Bench>) -> Result<()> {
    bench.class("no-archive", json!({"archive": {"policy": "None"}})).await?;
    let namespace = bench.namespace("none").await?;
    let uid = bench.active(&namespace, "box", "no-archive").await?;
    bench.delete(&namespace, "box", "background").await?;
    let record = bench.clean(&uid).await?;
    ensure!(record.spec.state.deletion.context("no deletion")?.archive.is_none());
    Ok(())
}

/// S1: an unreadable file is not destroyed before an admin has decided so, and the other files are archived.
async fn unreadable_files_block_until_given_up(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("locked").await?;
    let uid = bench.active(&namespace, "box", "standard").await?;
    bench.work(&namespace, &uid).await?;
    bench.shell(&namespace, &uid, "chmod 000 $HOME/.factory/sessions/one.jsonl").await?;
    bench.delete(&namespace, "box", "background").await?;
    let message = bench.blocked(&namespace, "box", "UnreadableFiles").await?;
    ensure!(message.contains("skips unreadable-files"), "it does not say what to do: {message}");
    ensure!(message.contains(".factory/sessions/one.jsonl"), "it does not name the file to give up: {message}");
    // L6: every check of the archive was once reported as progress, 2,500 times per minute.
    let version = || async { anyhow::Ok(bench.computers(&namespace).get("box").await?.metadata.resource_version) };
    let before = version().await?;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    ensure!(version().await? == before, "L6: a blocked computer is written to");
    ensure!(bench.record(&uid).await?.context("a record")?.spec.state.phase == RecordPhase::Deleting);
    let over = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "DeletionOverride", "metadata": {"name": format!("give-up-{namespace}")},
        "spec": {"computer": {"namespace": namespace, "name": "box", "uid": uid}, "skip": ["unreadable-files"], "reason": "the owner gave the file up"}});
    bench.kubectl(&["create", "-f", "-"], &over.to_string()).await?;
    let (record, archive) = bench.archived(&uid, 3).await?;
    let problem = archive.problems(&bench.store()?).next().await?.context("a problem")?;
    ensure!(problem.path == ".factory/sessions/one.jsonl", "{problem:?}");
    let deletion = record.spec.state.deletion.context("no deletion")?;
    let step = deletion.steps.get(DeletionStep::ArchiveSessions).context("no step")?;
    let said = step.detail.starts_with("WITHOUT 1 file ") && step.detail.contains("the owner gave the file up");
    ensure!(step.result == StepResult::Verified && said, "{step:?}");
    Ok(())
}
