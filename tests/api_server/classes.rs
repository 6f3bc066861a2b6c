//! The check of classes against a real API server: its strict field validation, Pod Security, quotas and limits.

use std::time::{Duration, Instant};

use computer_operator::class;
use computer_operator::runtime::settings::Settings;
use computer_operator::runtime::time_and_random::Sources;
use computer_operator::runtime::{caches, queue};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Server;

/// L1: if Pod Security `restricted` is enforced in the operator's namespace, as the README recommends, a machine that runs as root could not be archived
/// and thus never be deleted.
pub async fn a_class_is_checked_where_its_archive_pods_run(server: &Server) {
    let label = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ops", "labels": label}});
    server.kubectl(&["create", "-f", "-"], &namespace.to_string()).unwrap();
    server.kubectl(&["create", "serviceaccount", "archive", "-n", "ops"], "").unwrap();
    // The controller manager creates it, but may be late.
    let _ = server.kubectl(&["create", "serviceaccount", "default", "-n", "ops"], "");
    let limits = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l", "namespace": "ops"}, "spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}});
    server.kubectl(&["create", "-f", "-"], &limits.to_string()).unwrap();
    server.kubectl(&["create", "quota", "q", "-n", "ops", "--hard=requests.memory=600Mi,limits.cpu=1"], "").unwrap();
    let mounts = json!([{"name": "run", "mountPath": "/run"}]);
    let template = json!({"spec": {"containers": [{"name": "a", "image": "i", "volumeMounts": mounts}], "volumes": [{"name": "run", "emptyDir": {}}]}});
    server.create("ComputerClass", "key-in-a-volume", &json!({"podTemplate": template, "key": {"mountPath": "/run/computer"}})).unwrap();
    for (name, template, policy) in classes() {
        server.create("ComputerClass", name, &json!({"podTemplate": template, "archive": {"policy": policy}})).unwrap();
    }
    let (file, options) = (kube::config::Kubeconfig::read_from(&server.kubeconfig).unwrap(), kube::config::KubeConfigOptions::default());
    let client = kube::Client::try_from(kube::Config::from_custom_kubeconfig(file, &options).await.unwrap()).unwrap();
    let settings =
        Settings { namespace: "ops".into(), image: "operator".into(), archive_service_account: "archive".into(), ..Settings::default() };
    let (stop, sources) = (tokio_util::sync::CancellationToken::new(), Sources::default());
    let (controller, (queue, _work), mut watches) = (class::Controller::default(), queue::queue(), JoinSet::new());
    let mut spawn = caches::Spawn { queue: &queue, tasks: &mut watches, sources: &sources, stop: &stop };
    let listeners = caches::Listeners { classes: vec![controller.listener()], ..caches::Listeners::default() };
    let caches = caches::start(&client, "ops", &mut spawn, listeners);
    let controller = tokio::spawn(controller.run(client, settings, sources, caches.classes, stop.clone()));
    for (name, expected) in VERDICTS {
        shown(server, name, expected).await;
    }
    stop.cancel();
    controller.await.unwrap();
}

/// A key in the home would be archived, and one at `/` or `/proc` would break the machine.
pub fn the_path_of_a_key_is_validated(server: &Server) {
    let class = |key: Value| json!({"podTemplate": {"spec": {"containers": [{"name": "a", "image": "i"}]}}, "storage": {"mountPath": "/home/user"}, "key": key});
    for (name, key) in [
        ("key-mounted", json!({"mountPath": "/run/computer"})),
        ("key-beside", json!({"mountPath": "/home/user2", "allow": []})),
        ("key-limited", json!({"allow": ["get", "delete"]})),
    ] {
        server.create("ComputerClass", name, &class(key)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (key, message) in [
        (json!({"mountPath": "/"}), "should be at least 2 chars long"),
        (json!({"mountPath": "run/computer"}), "should match"),
        (json!({"mountPath": "/run/computer/"}), "should match"),
        (json!({"mountPath": "/run//computer"}), "should match"),
        (json!({"mountPath": "/run/../etc"}), "must not contain the parts '.' or '..'"),
        (json!({"mountPath": "/proc/1"}), "must not be in /proc, /sys or /dev"),
        (json!({"mountPath": "/dev"}), "must not be in /proc, /sys or /dev"),
        (json!({"mountPath": "/home/user"}), "a key in the home would be archived"),
        (json!({"mountPath": "/home/user/.key"}), "a key in the home would be archived"),
        (json!({"mountPath": "/home"}), "nor a folder that contains it"),
        (json!({"allow": ["everything"]}), "Unsupported value: \"everything\""),
        (json!({"allow": ["get", "get"]}), "Duplicate value"),
    ] {
        super::rejected(&key.to_string(), server.create("ComputerClass", "refused", &class(key.clone())), message);
    }
}

/// Names, templates and archive policies.
fn classes() -> Vec<(&'static str, Value, &'static str)> {
    let container = json!([{"name": "a", "image": "i"}]);
    let root = json!({"spec": {"securityContext": {"runAsUser": 0}, "containers": container}});
    let limited = |resources: &Value, image: &str| json!([{"name": "a", "image": image, "resources": resources}]);
    let big =
        |image: &str| json!({"spec": {"serviceAccountName": "team", "containers": limited(&json!({"limits": {"memory": "8Gi"}}), image)}});
    vec![
        ("usual", json!({"spec": {"containers": container}}), "Required"),
        ("root", root.clone(), "Required"),
        ("root-unarchived", root, "None"),
        // The API server would drop the field, and the machine would run without a sandbox.
        ("misspelt", json!({"spec": {"runtimeClassname": "gvisor", "containers": container}}), "Required"),
        ("misspelt-deep", json!({"spec": {"containers": limited(&json!({"limit": {"memory": "1Gi"}}), "i")}}), "None"),
        ("misspelt-label", json!({"metadata": {"lables": {}}, "spec": {"containers": container}}), "Required"),
        // A field that this version of k8s-openapi does not know, and a quantity that is a number.
        ("newer", json!({"spec": {"hostnameOverride": "dev1", "containers": limited(&json!({"limits": {"cpu": 1}}), "i")}}), "Required"),
        // More than the quota and the LimitRange of the operator's namespace allow; the ServiceAccount is in the tenants' namespaces.
        ("big", big("i"), "Required"),
        ("big-without-image", big(""), "Required"),
    ]
}

/// Status, reason, and a part of the message.
const VERDICTS: [(&str, [&str; 3]); 15] = [
    // From `examples/`.
    ("agents", ["True", "Accepted", ""]),
    ("gpu", ["True", "Accepted", ""]),
    ("sandboxed", ["True", "Accepted", ""]),
    ("reporting", ["True", "Accepted", ""]),
    ("usual", ["True", "Accepted", ""]),
    ("key-mounted", ["True", "Accepted", ""]),
    ("key-in-a-volume", ["False", "InvalidPodTemplate", "spec.key.mountPath /run/computer and /run, where volume run"]),
    ("root", ["False", "ArchiveNotPossible", "runAsUser 0"]),
    ("root-unarchived", ["True", "NotRestricted", ""]),
    ("misspelt", ["False", "InvalidPodTemplate", "unknown field \"spec.runtimeClassname\""]),
    ("misspelt-deep", ["False", "InvalidPodTemplate", "unknown field \"spec.containers[0].resources.limit\""]),
    ("misspelt-label", ["False", "InvalidPodTemplate", "podTemplate.metadata.lables"]),
    ("newer", ["True", "Accepted", ""]),
    ("big", ["True", "Accepted", ""]),
    ("big-without-image", ["False", "InvalidPodTemplate", "spec.containers[0].image"]),
];

async fn shown(server: &Server, name: &str, expected: [&str; 3]) {
    let field = |field: &str| format!("{{.status.conditions[?(@.type=='Accepted')].{field}}}");
    let query = format!("jsonpath={}\n{}\n{}", field("status"), field("reason"), field("message"));
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let verdict = server.kubectl(&["get", "computerclass", name, "-o", &query], "").unwrap();
        let lines: Vec<&str> = verdict.splitn(3, '\n').collect();
        if let [status, reason, message] = lines[..]
            && [status, reason] == expected[..2]
            && message.contains(expected[2])
        {
            return;
        }
        assert!(Instant::now() < deadline, "class {name}: {verdict:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
