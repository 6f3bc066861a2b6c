//! A real API server takes every object of every rendering (server-side dry run), a second installation is refused, and the policies hold
//! for users of each role. No node: what needs a pod is in `tests/chart_cluster`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use computer_operator::resources::crds;
use serde_json::{Value, json};
use xtask::chart::{self, Helm};
use xtask::cluster::{Cluster, Options, Profile};

use crate::{SERVED, flags, objects};

struct Server {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    _cluster: Cluster,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn up() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let options = Options { dir: Some(folder.path().join("cluster")), bound: true, ..Options::default() };
        let cluster = Cluster::up_with("chart-server", Profile::ControlPlane, options).await.expect("a control plane");
        Self { kubectl: cluster.kubectl().unwrap(), kubeconfig: cluster.kubeconfig().to_owned(), _cluster: cluster, _folder: folder }
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(&self.kubectl);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn eventually<T>(&self, what: &str, ask: impl Fn() -> Result<T, String>) -> T {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match ask() {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Our kinds, and those of others that the chart can make objects of: names only, which is what a dry run needs.
    fn kinds(&self) {
        let own = crds::files().unwrap().into_iter().map(|(_, yaml)| yaml).collect::<Vec<_>>().join("\n---\n");
        self.kubectl(&["apply", "--server-side", "-f", "-"], &own).unwrap();
        for (group, kind, plural) in [
            ("monitoring.coreos.com", "ServiceMonitor", "servicemonitors"),
            ("monitoring.coreos.com", "PrometheusRule", "prometheusrules"),
            ("cert-manager.io", "Certificate", "certificates"),
        ] {
            let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
            let crd = json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("{plural}.{group}")},
                "spec": {"group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
                    "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": open}}]},
            });
            self.kubectl(&["apply", "-f", "-"], &crd.to_string()).unwrap();
            self.eventually(plural, || self.kubectl(&["get", &format!("{plural}.{group}"), "-A"], ""));
        }
        crds::all().iter().for_each(|crd| drop(self.eventually("our kinds", || self.kubectl(&["get", &crd.spec.names.plural, "-A"], ""))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_takes_it() {
    let server = Server::up().await;
    server.kinds();
    let helm = Helm::new(Some(&server.kubeconfig)).unwrap();
    every_object_is_accepted(&server, &helm);
    a_second_installation_is_refused(&server, &helm);
    the_policies_hold(&server, &helm);
}

fn every_object_is_accepted(server: &Server, helm: &Helm) {
    server.kubectl(&["create", "namespace", "ops"], "").unwrap();
    server.kubectl(&["label", "namespace", "ops", "pod-security.kubernetes.io/enforce=restricted"], "").unwrap();
    // A bare pod is refused without its account, which a dry run does not make.
    server.kubectl(&["create", "serviceaccount", "co-test", "-n", "ops"], "").unwrap();
    for set in [
        &[][..],
        &[
            "archive.type=S3",
            "archive.s3.bucket=archives",
            "controller.replicas=2",
            "archive.s3.credentialsSecret=keys",
            "rbac.everybodySeesClasses=true",
        ],
        &[
            "api.tls.mode=CertManager",
            "api.tls.issuerRef.name=ca",
            "api.ingress.enabled=true",
            "api.ingress.hosts={a.example}",
            "api.ingress.className=nginx",
        ],
        &["metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true", "api.tls.mode=Secret", "api.tls.secretName=cert"],
        &[
            "archive.local.retainVolume=false",
            "archive.local.storageClassName=fast",
            "imagePullSecrets[0].name=pull",
            "networkPolicy.apiFrom[0].namespaceSelector.matchLabels.a=b",
        ],
        &[
            "controller.tolerations[0].operator=Exists",
            "controller.nodeSelector.disk=ssd",
            "api.extraEnv[0].name=A",
            "api.extraEnv[0].value=b",
            "defaultClass.spec.archive.policy=BestEffort",
        ],
    ] {
        let yaml = helm.template("co", "ops", &[&SERVED[..], &["--set", "fullnameOverride=co"], &flags(set)].concat()).unwrap();
        // Strict: a field that the API server does not know is an error. Warnings are what an admin would be shown.
        let arguments = ["create", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-"];
        server.kubectl(&arguments, &yaml).unwrap_or_else(|error| panic!("{set:?}: {error}"));
        let classes = objects(&yaml).iter().filter_map(|o| o["data"]["class.yaml"].as_str().map(str::to_owned)).collect::<String>();
        server.kubectl(&arguments, &classes).unwrap_or_else(|error| panic!("{set:?}: the class: {error}"));
    }
    server.kubectl(&["delete", "serviceaccount", "co-test", "-n", "ops"], "").unwrap();
}

fn a_second_installation_is_refused(server: &Server, helm: &Helm) {
    let chart = chart::folder().display().to_string();
    let install = |release: &str, namespace: &str| helm.run(&["install", release, &chart, "-n", namespace, "--no-hooks"]);
    install("co", "ops").unwrap();
    server.kubectl(&["create", "namespace", "other"], "").unwrap();
    for (release, namespace) in [("co", "other"), ("second", "ops")] {
        let error = install(release, namespace).unwrap_err().to_string();
        assert!(
            error.contains("installed in this cluster already, as release \"co\" in namespace \"ops\"")
                && error.contains("helm upgrade co -n ops"),
            "{error}"
        );
    }
    // The same release is no second one.
    helm.run(&["upgrade", "co", &chart, "-n", "ops", "--no-hooks", "--set", "api.replicas=1"]).unwrap();
    for policy in
        objects(&server.kubectl(&["get", "validatingadmissionpolicies", "-o", "yaml"], "").unwrap())[0]["items"].as_array().unwrap()
    {
        server.eventually("the policy is type-checked", || {
            let name = policy["metadata"]["name"].as_str().unwrap();
            let now: Value = serde_json::from_str(&server.kubectl(&["get", "validatingadmissionpolicy", name, "-o", "json"], "")?).unwrap();
            let warnings = &now["status"]["typeChecking"]["expressionWarnings"];
            assert!(warnings.is_null(), "{name}: {warnings}");
            if now["status"]["typeChecking"].is_object() { Ok(()) } else { Err("not yet".into()) }
        });
    }
}

/// What an editor of a namespace sends, and what it is answered.
fn the_policies_hold(server: &Server, helm: &Helm) {
    server.kubectl(&["create", "namespace", "team"], "").unwrap();
    server.kubectl(&["create", "rolebinding", "edit", "--clusterrole=edit", "--user=anna", "-n", "team"], "").unwrap();
    let anna = |arguments: &[&str], input: &str| {
        server.kubectl(&[arguments, &["-n", "team", "--as=anna", "--as-group=system:authenticated"]].concat(), input)
    };
    let computer = |name: &str, spec: Value| {
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": name}, "spec": spec}).to_string()
    };
    let byom = json!({"provider": "BYOM"});
    let finalizers =
        |name: &str| server.kubectl(&["get", "computer", name, "-n", "team", "-o", "jsonpath={.metadata.finalizers}"], "").unwrap();
    // A new policy takes a moment to be in force.
    server.eventually("the finalizer policy is in force", || {
        anna(&["delete", "computer", "--all", "--wait=false"], "").ok();
        anna(&["create", "-f", "-"], &json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"generateName": "first-"}, "spec": byom}).to_string())?;
        let all = server.kubectl(&["get", "computers", "-n", "team", "-o", "jsonpath={.items[-1:].metadata.finalizers}"], "")?;
        if all.contains("computer-operator.dev/deletion") { Ok(()) } else { Err(all) }
    });
    anna(&["create", "-f", "-"], &json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "box", "finalizers": ["theirs.example/x"]}, "spec": byom}).to_string()).unwrap();
    assert!(
        finalizers("box").contains("theirs.example/x") && finalizers("box").contains("computer-operator.dev/deletion"),
        "{}",
        finalizers("box")
    );
    // `kubectl replace` with what was in a file neither loses it nor is refused.
    anna(&["replace", "-f", "-"], &computer("box", json!({"provider": "BYOM", "displayName": "again"}))).unwrap();
    assert_eq!(finalizers("box"), r#"["computer-operator.dev/deletion"]"#);
    anna(&["patch", "computer", "box", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "").unwrap();
    assert_eq!(finalizers("box"), r#"["computer-operator.dev/deletion"]"#);
    deletion(server, &anna, &computer);
    reserved(server, &anna);
    keys(server);
    // A cluster that does not serve the mutating policy: there stripping is refused.
    let chart = chart::folder().display().to_string();
    helm.run(&["upgrade", "co", &chart, "-n", "ops", "--no-hooks", "--set", "admission.finalizer=Off"]).unwrap();
    server.eventually("stripping is refused without the mutating policy", || {
        anna(&["apply", "-f", "-"], &json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "bare", "finalizers": ["computer-operator.dev/deletion"]}, "spec": byom}).to_string()).ok();
        let stripped = anna(&["patch", "computer", "bare", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
        match stripped {
            Err(error) if error.contains("the operator takes it off") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn refused(what: &str, result: Result<String, String>, message: &str) {
    let error = result.expect_err(&format!("{what}: it was accepted"));
    assert!(error.contains(message), "{what}: {error}");
}

fn deletion(server: &Server, anna: &dyn Fn(&[&str], &str) -> Result<String, String>, computer: &dyn Fn(&str, Value) -> String) {
    anna(&["create", "-f", "-"], &computer("kept", json!({"provider": "BYOM", "deletionProtection": true}))).unwrap();
    refused(
        "protected",
        anna(&["delete", "computer", "kept", "--wait=false"], ""),
        "deletion protection is on. Take it off first: kubectl patch computer kept",
    );
    refused("protected, all", anna(&["delete", "computers", "kept", "--wait=false", "--force"], ""), "deletion protection is on");
    anna(&["patch", "computer", "kept", "--type=merge", "-p", r#"{"spec":{"deletionProtection":false}}"#], "").unwrap();
    anna(&["delete", "computer", "kept", "--wait=false"], "").unwrap();
    let none = r#"{"metadata":{"finalizers":null}}"#;
    refused(
        "stripped while it is deleted",
        anna(&["patch", "computer", "kept", "--type=merge", "-p", none], ""),
        "the operator takes it off",
    );
    server.kubectl(&["patch", "computer", "kept", "-n", "team", "--type=merge", "-p", none], "").expect("an admin of the cluster may");
    // A namespace that goes takes a protected computer with it, as far as we are concerned.
    server.kubectl(&["create", "namespace", "going"], "").unwrap();
    server
        .kubectl(&["create", "-n", "going", "-f", "-"], &computer("box", json!({"provider": "BYOM", "deletionProtection": true})))
        .unwrap();
    server.kubectl(&["delete", "namespace", "going", "--wait=false"], "").unwrap();
    server.eventually("the namespace controller deletes it", || {
        let at = server.kubectl(&["get", "computer", "box", "-n", "going", "-o", "jsonpath={.metadata.deletionTimestamp}"], "")?;
        if at.is_empty() { Err("not yet".into()) } else { Ok(()) }
    });
}

fn reserved(server: &Server, anna: &dyn Fn(&[&str], &str) -> Result<String, String>) {
    let labels = json!({"computer-operator.dev/computer-uid": "u"});
    for (kind, rest) in [
        ("Secret", json!({})),
        ("PersistentVolumeClaim", json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})),
    ] {
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "planted", "labels": labels}});
        rest.as_object().unwrap().iter().for_each(|(k, v)| object[k] = v.clone());
        refused(kind, anna(&["create", "-f", "-"], &object.to_string()), "are the operator's: leave them out");
        object["metadata"]["labels"] = json!({"mine": "yes"});
        anna(&["create", "-f", "-"], &object.to_string()).unwrap();
        refused(kind, anna(&["label", kind, "planted", "computer-operator.dev/computer-uid=u"], ""), "are the operator's");
        // What is the operator's may be labelled, but not unlabelled.
        server.kubectl(&["label", kind, "planted", "-n", "team", "computer-operator.dev/computer-uid=u"], "").unwrap();
        anna(&["label", kind, "planted", "more=yes"], "").unwrap();
        refused(kind, anna(&["label", kind, "planted", "computer-operator.dev/computer-uid-"], ""), "are the operator's");
    }
}

/// An ApiKey is for who may make that account's tokens.
fn keys(server: &Server) {
    for (user, account) in [("bert", "own"), ("carl", "")] {
        server
            .kubectl(
                &["create", "role", user, "--verb=create,update,patch,get", "--resource=apikeys.computer-operator.dev", "-n", "team"],
                "",
            )
            .unwrap();
        server.kubectl(&["create", "rolebinding", user, &format!("--role={user}"), &format!("--user={user}"), "-n", "team"], "").unwrap();
        if !account.is_empty() {
            server
                .kubectl(
                    &[
                        "create",
                        "role",
                        "token",
                        "--verb=create",
                        "--resource=serviceaccounts/token",
                        &format!("--resource-name={account}"),
                        "-n",
                        "team",
                    ],
                    "",
                )
                .unwrap();
            server.kubectl(&["create", "rolebinding", "token", "--role=token", &format!("--user={user}"), "-n", "team"], "").unwrap();
        }
    }
    let key = |name: &str, account: &str| {
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name}, "spec": {"serviceAccountName": account}}).to_string()
    };
    let create = |user: &str, name: &str, account: &str| {
        server.kubectl(&["create", "-n", "team", &format!("--as={user}"), "-f", "-"], &key(name, account))
    };
    create("bert", "mine", "own").unwrap();
    refused("another's account", create("bert", "theirs", "root"), "the right to create serviceaccounts/token for root in team");
    refused("no right to any", create("carl", "none", "own"), "the right to create serviceaccounts/token for own in team");
    let rotate = |user: &str| {
        server.kubectl(
            &["patch", "apikey", "mine", "-n", "team", &format!("--as={user}"), "--type=merge", "-p", r#"{"spec":{"rotation":"2"}}"#],
            "",
        )
    };
    refused("rotated by somebody", rotate("carl"), "the right to create serviceaccounts/token");
    rotate("bert").unwrap();
}
