//! The demo's HTTP part: a team without knowledge of Kubernetes creates a computer, uses its key, deletes it with curl, and reads the
//! receipt. curl sends its requests to the chart's Service through `kubectl port-forward`. Tokens must never be in arguments.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::stop::Stop;
use super::story::{Story, indented, text};
use super::{LIMIT, SYSTEM};
use crate::chart::RELEASE;

/// A port of this machine that is forwarded to the Service; closed when dropped.
struct Forward {
    child: Child,
    base: String,
    stop: Stop,
    /// Kept open because kubectl exits when it cannot write to its output.
    output: BufReader<ChildStdout>,
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Story {
    /// Create, use, DELETE, 401, follow, receipt.
    pub(super) fn over_http(&mut self) -> Result<()> {
        let team = &self.teams[2];
        let caller = self.caller()?;
        let forward = self.forward()?;
        let curl = |method: &str, path: &str, token: &str, name: &str, body: Option<&Value>| forward.curl(method, path, token, name, body);
        let (code, made) = curl("POST", "", &caller, "CALLER", Some(&json!({"name": "box", "remoteUser": "dev"})))?;
        ensure!(code == 201, "created: {code}");
        let id = made["id"].as_str().context("an id")?.to_owned();
        self.eventually("the computer is active", || {
            let (_, now) = forward.quiet("GET", &format!("/{id}"), &caller, None)?;
            ensure!(now["status"] == "active", "it is {}", now["status"]);
            Ok(())
        })?;
        println!("$ SECRET=$(kubectl get computer box -n {team} -o jsonpath='{{.status.credentialSecretName}}')");
        println!("$ KEY=$(kubectl get secret $SECRET -n {team} -o go-template='{{{{.data.token | base64decode}}}}')");
        let key = self.token(team)?;
        ensure!(curl("GET", &format!("/{id}"), &key, "KEY", None)?.0 == 200, "the computer's own key");
        let (code, preview) = curl("DELETE", &format!("/{id}?dryRun=All"), &caller, "CALLER", None)?;
        ensure!(code == 200 && preview["revokesKey"] == true, "unexpected preview: {preview}");
        ensure!(curl("DELETE", &format!("/{id}"), &caller, "CALLER", None)?.0 == 204, "deleted");
        ensure!(curl("GET", &format!("/{id}"), &key, "KEY", None)?.0 == 401, "the key still authenticates");
        forward.follow(&id, &caller)?;
        ensure!(curl("DELETE", &format!("/{id}"), &caller, "CALLER", None)?.0 == 404, "gone");
        let (code, report) = curl("GET", &format!("/{id}/deletion"), &caller, "CALLER", None)?;
        ensure!(code == 200 && report["receipt"]["digest"].is_string(), "unexpected receipt: {report}");
        Ok(())
    }

    /// Creates a ServiceAccount with all rights on computers in its namespace; returns its token.
    fn caller(&self) -> Result<String> {
        let team = &self.teams[2];
        self.namespace(team)?;
        let name = json!({"name": "caller", "namespace": team});
        let objects = [
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name}),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": name,
                "rules": [{"apiGroups": ["computer-operator.dev"], "resources": ["computers"], "verbs": ["get", "list", "create", "patch", "delete"]}],
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": name,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "caller"},
                "subjects": [{"kind": "ServiceAccount", "name": "caller", "namespace": team}],
            }),
        ];
        self.apply(&objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n"))?;
        println!("   a ServiceAccount with a Role for computers of {team}");
        println!("$ CALLER=$(kubectl create token caller -n {team} --audience=computer-operator)");
        Ok(self.kubectl(&["create", "token", "caller", "-n", team, "--audience=computer-operator"], "")?.trim().to_owned())
    }

    fn forward(&self) -> Result<Forward> {
        let service = format!("service/{RELEASE}-api");
        let port = self.kubectl(&["get", &service, "-n", SYSTEM, "-o", "jsonpath={.spec.ports[0].port}"], "")?;
        println!("$ kubectl port-forward -n {SYSTEM} {service} :{port} &");
        let mut child = Command::new(&self.kubectl)
            .args(["port-forward", "-n", SYSTEM, &service, &format!(":{port}")])
            .env("KUBECONFIG", &self.kubeconfig)
            // Ctrl-c in a terminal does not reach it: it ends when the forwarded port is closed.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        let mut forward = Forward { child, base: String::new(), stop: self.stop.clone(), output };
        let mut line = String::new();
        while forward.output.read_line(&mut line)? > 0 {
            // "Forwarding from 127.0.0.1:40001 -> 8000"
            if let Some(address) = line.strip_prefix("Forwarding from 127.0.0.1:") {
                let port = address.split(' ').next().unwrap_or_default();
                forward.base = format!("http://127.0.0.1:{port}/api/v0/computers");
                return Ok(forward);
            }
            line.clear();
        }
        bail!("kubectl port-forward ended")
    }
}

impl Forward {
    /// Shows each step as it is finished, until the deletion is over.
    fn follow(&self, id: &str, token: &str) -> Result<()> {
        let (began, mut shown) = (Instant::now(), 0);
        loop {
            self.stop.check()?;
            ensure!(began.elapsed() < LIMIT, "the deletion did not end within {} s", LIMIT.as_secs());
            let (code, report) = self.quiet("GET", &format!("/{id}/deletion"), token, None)?;
            ensure!(code == 200, "{report}");
            let steps = report["steps"].as_array().cloned().unwrap_or_default();
            let finished = |step: &&Value| ["completed", "skipped"].contains(&step["status"].as_str().unwrap_or_default());
            for step in steps.iter().skip(shown).take_while(finished) {
                println!("   {:>5.1} s  {}: {}", began.elapsed().as_secs_f64(), text(&step["id"]), text(&step["status"]));
                shown += 1;
            }
            if report["state"] == "deleted" {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }

    /// Sends a request and prints it as a curl command, with the answer.
    fn curl(&self, method: &str, path: &str, token: &str, name: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let data = body.map(|b| format!(" --json '{b}'")).unwrap_or_default();
        println!("$ curl -i -X {method} -H \"Authorization: Bearer ${name}\"{data} '{}{path}'", self.base);
        let (code, answer) = self.quiet(method, path, token, body)?;
        let shown = if answer.is_null() { "(no body)".to_owned() } else { serde_json::to_string_pretty(&answer)? };
        println!("   {code}\n{}", indented(&shown));
        Ok((code, answer))
    }

    /// The token is passed to curl through standard input: every user of the machine could read its arguments.
    fn quiet(&self, method: &str, path: &str, token: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "60", "-X", method, "--config", "-", "--write-out", "\n%{http_code}"]);
        if let Some(body) = body {
            command.args(["-H", "Content-Type: application/json", "--data", &body.to_string()]);
        }
        command.arg(format!("{}{path}", self.base));
        let text = self.stop.text(&mut command, &format!("header = \"Authorization: Bearer {token}\"\n"))?;
        let (body, code) = text.rsplit_once('\n').context("an answer")?;
        Ok((code.parse()?, serde_json::from_str(body).unwrap_or_default()))
    }
}
