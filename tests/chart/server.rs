//! A real API server accepts every object of every rendering (server-side dry run), a second installation is rejected, and the admission
//! policies hold for users of each role. There is no node: tests that need a pod are in `tests/chart_cluster`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use computer_operator::resources::crds;
use serde_json::{Value, json};
use xtask::chart::{self, Helm};
use xtask::cluster::{Cluster, Options, Profile};

use crate::{SERVED, binding, fences, flags, id, objects, policies, upgrades};

pub struct Server {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    _cluster: Cluster,
    _folder: tempfile::TempDir,
}

/// Retries until `ask` succeeds, for at most a minute.
pub fn eventually<T>(what: &str, ask: impl Fn() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Server {
    async fn up() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let options = Options { dir: Some(folder.path().join("cluster")), bound: true, ..Options::default() };
        let cluster = Cluster::up_with("chart-server", Profile::ControlPlane, options).await.expect("a control plane");
        Self { kubectl: cluster.kubectl().unwrap(), kubeconfig: cluster.kubeconfig().to_owned(), _cluster: cluster, _folder: folder }
    }

    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(&self.kubectl);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Installs the operator's kinds and the foreign kinds that the chart can create. The latter have an open schema, which is enough for a dry run.
    fn install_kinds(&self) {
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
            eventually(plural, || self.kubectl(&["get", &format!("{plural}.{group}"), "-A"], ""));
        }
        for crd in crds::all() {
            eventually("the operator's kinds are served", || self.kubectl(&["get", &crd.spec.names.plural, "-A"], ""));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_accepts_the_chart_and_enforces_its_policies() {
    let server = Server::up().await;
    server.install_kinds();
    upgrades::kubectl_delete_all_spares_computers(&server);
    let helm = Helm::new(Some(&server.kubeconfig)).unwrap();
    every_object_is_accepted(&server, &helm);
    a_second_installation_is_rejected(&server, &helm);
    an_upgrade_applies_a_new_default_to_the_charts_class(&server, &helm);
    upgrades::an_upgrade_can_change_the_store(&server, &helm);
    policies::users_are_restricted(&server, &helm);
    fences::the_operator_is_restricted(&server);
    binding::a_volume_reserved_by_name_binds_without_a_failure(&server);
}

fn every_object_is_accepted(server: &Server, helm: &Helm) {
    server.kubectl(&["create", "namespace", "ops"], "").unwrap();
    server.kubectl(&["label", "namespace", "ops", "pod-security.kubernetes.io/enforce=restricted"], "").unwrap();
    // A pod is rejected if its ServiceAccount does not exist, and a dry run does not create one.
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
        // Strict: unknown fields are errors, and so are warnings, which an admin would see.
        let arguments = ["create", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-"];
        let all = objects(&yaml);
        let new: Vec<String> = all.iter().filter(|o| id(o) != "ServiceAccount/co-test").map(Value::to_string).collect();
        server.kubectl(&arguments, &new.join("\n---\n")).unwrap_or_else(|error| panic!("{set:?}: {error}"));
        let classes = all.iter().filter_map(|o| o["data"]["class.yaml"].as_str().map(str::to_owned)).collect::<String>();
        server.kubectl(&arguments, &classes).unwrap_or_else(|error| panic!("{set:?}: the class: {error}"));
    }
    server.kubectl(&["delete", "serviceaccount", "co-test", "-n", "ops"], "").unwrap();
}

fn a_second_installation_is_rejected(server: &Server, helm: &Helm) {
    let chart = chart::folder().display().to_string();
    let install = |release: &str, namespace: &str| helm.run(&["install", release, &chart, "-n", namespace, "--no-hooks"]);
    let notes = install("co", "ops").unwrap();
    for word in [
        "describe job co-computer-operator-crds -n ops",
        "describe job co-computer-operator-uninstall-guard -n ops",
        "helm rollback co 1 -n ops",
    ] {
        assert!(notes.contains(word), "the notes do not say {word:?}: {notes}");
    }
    server.kubectl(&["create", "namespace", "other"], "").unwrap();
    for (release, namespace) in [("co", "other"), ("second", "ops")] {
        let error = install(release, namespace).unwrap_err().to_string();
        assert!(
            error.contains("already installed in this cluster as release \"co\" in namespace \"ops\"")
                && error.contains("helm upgrade co -n ops"),
            "{error}"
        );
    }
    // The same release can be upgraded.
    helm.run(&["upgrade", "co", &chart, "-n", "ops", "--no-hooks", "--set", "api.replicas=1"]).unwrap();
    for policy in
        objects(&server.kubectl(&["get", "validatingadmissionpolicies", "-o", "yaml"], "").unwrap())[0]["items"].as_array().unwrap()
    {
        eventually("the policy has been type-checked", || {
            let name = policy["metadata"]["name"].as_str().unwrap();
            let now: Value = serde_json::from_str(&server.kubectl(&["get", "validatingadmissionpolicy", name, "-o", "json"], "")?).unwrap();
            let warnings = &now["status"]["typeChecking"]["expressionWarnings"];
            assert!(warnings.is_null(), "{name}: {warnings}");
            if now["status"]["typeChecking"].is_object() { Ok(()) } else { Err("not yet".into()) }
        });
    }
}

/// S1: a class was stored while the definition's default was `Record`. The upgrade sets `Block` in the chart's own class, and the README shows how to
/// find and change other classes.
fn an_upgrade_applies_a_new_default_to_the_charts_class(server: &Server, helm: &Helm) {
    let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=computer-operator-chart", "-f", "-"];
    let setting =
        |name: &str| server.kubectl(&["get", "computerclass", name, "-o", "jsonpath={.spec.archive.unreadableFiles}"], "").unwrap();
    let class = |name: &str| {
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ComputerClass", "metadata": {"name": name},
            "spec": {"podTemplate": {"spec": {"containers": [{"name": "machine", "image": "i"}]}}}})
    };
    let now = crds::files().unwrap().into_iter().find(|(name, _)| name == "computerclasses.yaml").unwrap().1;
    let before = now.replace("unreadableFiles: Block", "unreadableFiles: Record").replace("default: Block", "default: Record");
    assert_ne!(before, now);
    server.kubectl(&apply, &before).unwrap();
    eventually("the old default is in force", || {
        for name in ["standard", "theirs"] {
            server.kubectl(&["delete", "computerclass", name, "--ignore-not-found"], "")?;
            server.kubectl(&apply, &class(name).to_string())?;
        }
        if setting("theirs") == "Record" { Ok(()) } else { Err("not yet".into()) }
    });
    server.kubectl(&apply, &now).unwrap();
    let all = objects(&helm.template("co", "ops", &SERVED).unwrap());
    let chart = all.iter().find_map(|o| o["data"]["class.yaml"].as_str()).unwrap();
    server.kubectl(&apply, chart).unwrap();
    assert_eq!((setting("standard"), setting("theirs")), ("Block".to_owned(), "Record".to_owned()));

    let readme = std::fs::read_to_string(chart::folder().join("README.md")).unwrap();
    let which = r#"jsonpath={range .items[?(@.spec.archive.unreadableFiles=="Record")]}{.metadata.name}{"\n"}{end}"#;
    let change = r#"{"spec":{"archive":{"unreadableFiles":"Block"}}}"#;
    let quoted = which.replacen('=', "='", 1) + "'";
    assert!(readme.contains(&format!("kubectl get computerclasses -o {quoted}")), "{readme}");
    assert!(readme.contains(&format!("kubectl patch computerclass NAME --type=merge -p '{change}'")), "{readme}");
    assert_eq!(server.kubectl(&["get", "computerclasses", "-o", which], "").unwrap(), "theirs\n");
    server.kubectl(&["patch", "computerclass", "theirs", "--type=merge", "-p", change], "").unwrap();
    assert_eq!(server.kubectl(&["get", "computerclasses", "-o", which], "").unwrap(), "");
    server.kubectl(&["delete", "computerclass", "standard", "theirs"], "").unwrap();
}
