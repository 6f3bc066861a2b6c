//! A machine uses its own key from inside: on a real node, with the real kubelet that delivers it, and the real HTTP API.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::Scenario;
use crate::harness::{Bench, LONG, eventually};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![a_machine_uses_its_key, a_class_that_gets_a_mount_path_changes_no_running_machine]
}

/// A request from inside with nothing but the files, printed as `CODE BODY`. The machine has no curl. The input stays open until the answer is there: the API
/// takes the end of the input for the end of the client.
fn ask(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        r#"url=$(cat /run/computer/url); at=${{url#http://}}; mkfifo /tmp/open 2>/dev/null || true
        answer=$( (printf '%s /api/v0{path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Type: application/json\r\n' {method}
          printf 'Authorization: Bearer %s\r\nContent-Length: {length}\r\n\r\n%s' "$(cat /run/computer/token)" '{body}'; read -t 5 hold <>/tmp/open || true) \
          | nc "${{at%:*}}" "${{at#*:}}" )
        printf '%s' "$answer" | sed -n '1s/^[^ ]* \([0-9]*\).*/\1/p'; printf '%s' "$answer" | sed '1,/^.$/d'"#
    )
}

struct Machine<'a> {
    bench: &'a Bench,
    namespace: &'a str,
    uid: &'a str,
}

impl Machine<'_> {
    async fn shell(&self, script: &str) -> Result<String> {
        self.bench.shell(self.namespace, self.uid, script).await
    }

    /// Sends a request and expects this status code.
    async fn sends(&self, method: &str, path: &str, body: &str, code: u16) -> Result<Value> {
        let said = self.shell(&ask(method, path, body)).await?;
        let (status, text) = said.split_once('\n').unwrap_or((said.as_str(), ""));
        ensure!(status == code.to_string(), "{method} {path}: {said}");
        Ok(serde_json::from_str(text.trim()).unwrap_or_default())
    }
}

async fn a_machine_uses_its_key(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("own-key").await?;
    bench.class("with-key", json!({"key": {"mountPath": "/run/computer"}})).await?;
    let _api = bench.api().await?;
    let uid = bench.active(&namespace, "box", "with-key").await?;
    let machine = Machine { bench: &bench, namespace: &namespace, uid: &uid };
    let pod = bench.machine(&namespace, &uid).await?;
    let files = machine
        .shell("cd /run/computer; ls; stat -L -c '%a %g' token id url; echo $COMPUTER_API_URL; [ \"$COMPUTER_ID\" = \"$(cat id)\" ]")
        .await?;
    let expected = format!("id\ntoken\nurl\n440 1000\n440 1000\n440 1000\n{}\n", Bench::api_url());
    ensure!(files == expected, "{files}");
    let id = machine.shell("cat /run/computer/id").await?;
    let first = machine.shell("cat /run/computer/token").await?;
    ensure!(first == bench.token(&namespace, "box").await?, "the token of the Secret");
    eventually("the API answers", LONG, || async { machine.sends("GET", &format!("/computers/{id}"), "", 200).await.map(Some) }).await?;
    works(&machine, &namespace, &id).await?;
    follows_a_rotation(&machine, &namespace, &first).await?;
    ensure!(bench.machine(&namespace, &uid).await? == pod, "the machine was restarted");
    machine.sends("GET", &format!("/computers/{id}"), "", 200).await?;
    let shown = bench.kubectl(&["describe", "computer", "box", "-n", &namespace], "").await?;
    ensure!(shown.contains("Key Allows:\n") && shown.contains("sessions"), "{shown}");
    bench.delete(&namespace, "box", "background").await?;
    bench.clean(&uid).await.map(drop)
}

/// What an agent does, and what it must not be able to do.
async fn works(machine: &Machine<'_>, namespace: &str, id: &str) -> Result<()> {
    let made = machine.sends("POST", "/sessions", r#"{"title": "t", "path": ".claude/projects/p/two.jsonl"}"#, 201).await?;
    let session = format!("/sessions/{}", made["sessionId"].as_str().unwrap_or_default());
    machine.sends("PATCH", &session, r#"{"status": "running", "lastActivityAt": 9999999999999}"#, 200).await?;
    let status = machine.bench.kubectl(&["get", "sessions", "-n", namespace, "-o", "jsonpath={.items[*].status}"], "").await?;
    ensure!(status.contains("Running") && status.contains("lastActivityTime"), "{status}");
    machine.sends("PATCH", &session, r#"{"status": "idle"}"#, 200).await?;
    let own = format!("/computers/{id}");
    for (method, path) in [("DELETE", own.clone()), ("PATCH", own.clone()), ("POST", format!("{own}/restart")), ("DELETE", session)] {
        machine.sends(method, &path, "{}", 404).await?;
    }
    machine.sends("GET", &own, "", 200).await.map(drop)
}

async fn follows_a_rotation(machine: &Machine<'_>, namespace: &str, first: &str) -> Result<()> {
    let patch = r#"{"spec": {"key": {"rotation": "2"}}}"#;
    machine.bench.kubectl(&["patch", "computer", "box", "-n", namespace, "--type=merge", "-p", patch], "").await?;
    ensure!(!machine.bench.authenticates(first).await?, "S2: the old key is valid after its rotation");
    let next = eventually("the machine has the next key", LONG, || async {
        let token = machine.shell("cat /run/computer/token").await?;
        Ok((token != first).then_some(token))
    })
    .await?;
    ensure!(machine.bench.authenticates(&next).await?, "the new key");
    Ok(())
}

/// Neither a restart, nor a condition `Drifted`, nor fewer rights. What the class allows explicitly applies at once.
async fn a_class_that_gets_a_mount_path_changes_no_running_machine(bench: Arc<Bench>) -> Result<()> {
    let namespace = bench.namespace("late-key").await?;
    bench.class("late-key", json!({})).await?;
    let uid = bench.active(&namespace, "box", "late-key").await?;
    let pod = bench.machine(&namespace, &uid).await?;
    let shown = async |path: &str| {
        bench.kubectl(&["get", "computer", "box", "-n", &namespace, "-o", &format!("jsonpath={{.status{path}}}")], "").await
    };
    bench.class("late-key", json!({"key": {"mountPath": "/run/computer", "allow": ["get"]}})).await?;
    eventually("the class was seen", LONG, || async { Ok((shown(".keyAllows").await? == r#"["get"]"#).then_some(())) }).await?;
    ensure!(!shown(".conditions[*].type").await?.contains("Drifted"), "{}", shown(".conditions").await?);
    ensure!(bench.machine(&namespace, &uid).await? == pod, "the machine was restarted");
    bench.class("late-key", json!({"key": {"mountPath": "/run/computer"}})).await?;
    eventually("no word is left", LONG, || async { Ok(shown(".keyAllows").await?.is_empty().then_some(())) }).await?;
    for suspended in ["true", "false"] {
        let patch = format!(r#"{{"spec": {{"suspended": {suspended}}}}}"#);
        bench.kubectl(&["patch", "computer", "box", "-n", &namespace, "--type=merge", "-p", &patch], "").await?;
        let phase =
            if suspended == "true" { computer_operator::resources::Phase::Suspended } else { computer_operator::resources::Phase::Active };
        bench.phase(&namespace, "box", phase).await?;
    }
    ensure!(bench.shell(&namespace, &uid, "cat /run/computer/token").await? == bench.token(&namespace, "box").await?, "the same key");
    ensure!(shown(".keyAllows").await? == r#"["get","sessions"]"#, "{}", shown(".keyAllows").await?);
    bench.delete(&namespace, "box", "background").await?;
    bench.clean(&uid).await.map(drop)
}
