//! Renders the chart with every value switched on and off: the right objects are present, every pod is `restricted`, and the program accepts every
//! setting.

use std::collections::BTreeMap;

use clap::{Args, Command};
use serde_json::{Value, json};

use crate::{flags, helm, id, one, pods, render};

/// Release, namespace and values of every rendering that the general checks use.
const MATRIX: &[(&str, &str, &[&str])] = &[
    ("computer-operator", "computer-operator-system", &[]),
    ("x", "default", &[]),
    ("a-very-long-release-name-of-fifty-three-characters-x", "n", &[]),
    ("dotted.name", "n", &["nameOverride=co"]),
    ("co", "ops", &["fullnameOverride=other"]),
    ("co", "ops", S3),
    ("co", "ops", &["archive.local.existingClaim=mine", "archive.local.retainVolume=false", "archive.local.storageClassName=fast"]),
    ("co", "ops", &["api.enabled=false", "metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true"]),
    ("co", "ops", &["api.tls.mode=Secret", "api.tls.secretName=cert", "api.service.type=LoadBalancer", "api.service.port=443"]),
    ("co", "ops", &["api.tls.mode=CertManager", "api.tls.issuerRef.name=ca", "api.tls.dnsNames={computers.example}"]),
    ("co", "ops", &["api.ingress.enabled=true", "api.ingress.hosts={a.example,b.example}", "api.ingress.className=nginx"]),
    ("co", "ops", &["crds.manage=false", "defaultClass.create=false", "uninstallGuard.enabled=false", "networkPolicy.enabled=false"]),
    (
        "co",
        "ops",
        &["admission.policies=false", "admission.finalizer=Off", "rbac.aggregateToUserRoles=false", "rbac.everybodySeesClasses=true"],
    ),
    ("co", "ops", &["global.imageRegistry=mirror.example", "imagePullSecrets[0].name=pull", "controller.logJson=true", "api.logJson=true"]),
    ("co", "ops", PLACED),
];
const S3: &[&str] = &[
    "archive.type=S3",
    "archive.s3.bucket=archives",
    "archive.s3.prefix=/computers/",
    "archive.s3.region=eu-1",
    "archive.s3.endpoint=http://minio:9000",
    "archive.s3.allowHttp=true",
    "archive.s3.credentialsSecret=keys",
    "controller.replicas=3",
];
const PLACED: &[&str] = &[
    "controller.priorityClassName=system-cluster-critical",
    "controller.nodeSelector.disk=ssd",
    "controller.tolerations[0].operator=Exists",
    "controller.podLabels.team=a",
    "controller.podAnnotations.note=b",
    "controller.extraEnv[0].name=AWS_REGION",
    "controller.extraEnv[0].value=x",
    "controller.serviceAccount.annotations.role=arn",
    "api.priorityClassName=system-cluster-critical",
    "api.nodeSelector.disk=ssd",
    "api.podLabels.team=a",
];

fn names_of(kind: &str, all: &[Value]) -> Vec<String> {
    all.iter().filter(|o| o["kind"] == kind).map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_rendering_has_unique_names_labels_and_restricted_pods() {
    for (release, namespace, set) in MATRIX {
        let all = render(release, namespace, set);
        let mut names: Vec<String> = all.iter().map(id).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        // A Role and a ClusterRole of the same name are different kinds.
        assert_eq!(names.len(), count, "{release}: duplicate object");
        for object in &all {
            let name = object["metadata"]["name"].as_str().unwrap();
            assert!(name.len() <= 63, "{name}");
            let cluster = ["ClusterRole", "ClusterRoleBinding"].contains(&object["kind"].as_str().unwrap())
                || object["kind"].as_str().unwrap().contains("Admission");
            let expected = if cluster { Value::Null } else { json!(namespace) };
            assert_eq!(object["metadata"]["namespace"], expected, "{}", id(object));
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/name"], "computer-operator", "{}", id(object));
        }
        for (name, pod) in pods(&all) {
            assert_restricted(&format!("{release} {name}"), pod);
        }
        assert_settings_accepted(&all);
    }
}

fn assert_restricted(name: &str, pod: &Value) {
    let context = &pod["securityContext"];
    assert_eq!((&context["runAsNonRoot"], &context["seccompProfile"]["type"]), (&json!(true), &json!("RuntimeDefault")), "{name}");
    assert!(pod["serviceAccountName"].as_str().is_some_and(|account| account != "default"), "{name}");
    for container in pod["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        assert_eq!(
            (&context["allowPrivilegeEscalation"], &context["readOnlyRootFilesystem"], &context["capabilities"]["drop"]),
            (&json!(false), &json!(true), &json!(["ALL"])),
            "{name}"
        );
        assert!(container["resources"]["limits"]["memory"].is_string() && container["resources"]["requests"].is_object(), "{name}");
    }
}

/// Every variable is a setting that the program accepts with its value, and every argument is a known command.
fn assert_settings_accepted(all: &[Value]) {
    for (name, pod) in pods(all) {
        let container = &pod["containers"][0];
        let given: Vec<&str> = container["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        let command = match given[0] {
            "run" => computer_operator::runtime::config::Config::augment_args(Command::new("run")),
            "api" => computer_operator::http::config::Config::augment_args(Command::new("api")),
            "crds" => computer_operator::install::crds::Args::augment_args(Command::new("crds")),
            "uninstall-check" => computer_operator::install::uninstall::Args::augment_args(Command::new("uninstall-check")),
            "install-check" => computer_operator::install::check::Args::augment_args(Command::new("install-check")),
            other => panic!("{name}: unknown command {other}"),
        };
        let flags: BTreeMap<String, String> =
            command.get_arguments().filter_map(|a| Some((a.get_env()?.to_str()?.to_owned(), format!("--{}", a.get_long()?)))).collect();
        let mut line: Vec<String> = given.iter().map(|a| (*a).to_owned()).collect();
        for variable in container["env"].as_array().into_iter().flatten() {
            let key = variable["name"].as_str().unwrap();
            if ["RUST_LOG", "POD_NAME"].contains(&key) || key.starts_with("AWS_") {
                continue;
            }
            let flag = flags.get(key).unwrap_or_else(|| panic!("{name}: {key} is not a setting of the program"));
            // The kubelet states a resource of the container in bytes.
            let resource = variable.pointer("/valueFrom/resourceFieldRef/resource").and_then(Value::as_str);
            if let Some(resource) = resource {
                let (kind, name) = resource.split_once('.').unwrap();
                assert!(container["resources"][kind][name].is_string(), "{resource} is not set");
                line.push(format!("{flag}=1073741824"));
                continue;
            }
            line.push(format!("{flag}={}", service_address(all, variable["value"].as_str().unwrap())));
        }
        command.try_get_matches_from(line).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// The value as the program gets it from the kubelet, which replaces the variable of a Service by an address and `$$` by `$`. The Service must
/// be part of the chart.
fn service_address(all: &[Value], value: &str) -> String {
    let Some((before, rest)) = value.split_once("$(") else { return value.to_owned() };
    let (variable, after) = rest.split_once(')').unwrap();
    let of_service = |name: &String| format!("{}_SERVICE_HOST", name.to_uppercase().replace('-', "_")) == variable;
    assert!(names_of("Service", all).iter().any(of_service), "{variable} belongs to none of {:?}", names_of("Service", all));
    match before.strip_suffix('$') {
        Some(before) => format!("{before}$({variable}){after}"),
        None => format!("{before}192.0.2.7{after}"),
    }
}

#[test]
fn the_embedded_store_has_one_replica_and_a_kept_claim() {
    let all = render("co", "ops", &["fullnameOverride=co"]);
    let deployment = &one(&all, "Deployment", "co")["spec"];
    // The strategy type is the same for both stores; otherwise an upgrade from one to the other would be rejected.
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}});
    assert_eq!((&deployment["replicas"], &deployment["strategy"]), (&json!(1), &strategy));
    assert_eq!(one(&all, "PersistentVolumeClaim", "co-store")["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    assert_eq!(names_of("PodDisruptionBudget", &all), ["co-api"], "a budget for one replica would block every drain");
    let own = render("co", "ops", &["archive.local.existingClaim=mine"]);
    assert!(names_of("PersistentVolumeClaim", &own).is_empty() && format!("{own:?}").contains("\"mine\""));
}

#[test]
fn a_bucket_allows_several_replicas() {
    let all = render("co", "ops", &[S3, &["fullnameOverride=co"]].concat());
    let deployment = &one(&all, "Deployment", "co")["spec"];
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}});
    assert_eq!((&deployment["replicas"], &deployment["strategy"]), (&json!(3), &strategy));
    let pod = &deployment["template"]["spec"];
    let store = pod["containers"][0]["env"].as_array().unwrap().iter().find(|e| e["name"] == "ARCHIVE_STORE").unwrap();
    assert_eq!(
        store["value"],
        "s3://archives/computers?region=eu-1&endpoint=http://minio:9000&allow_http=true&credentials_folder=/etc/computer-operator/store-credentials"
    );
    // Variables of a container never change: rotated credentials would need a restart.
    assert_eq!(pod["volumes"], json!([{"name": "store-credentials", "secret": {"secretName": "keys"}}]));
    assert_eq!(pod["containers"][0]["volumeMounts"][0]["mountPath"], "/etc/computer-operator/store-credentials");
    assert!(pod["containers"][0]["envFrom"].is_null() && names_of("PersistentVolumeClaim", &all).is_empty());
    assert_eq!(names_of("PodDisruptionBudget", &all), ["co", "co-api"]);
    assert_eq!(pod["topologySpreadConstraints"][0]["topologyKey"], "kubernetes.io/hostname");
}

#[test]
fn a_store_may_have_a_certificate_authority_of_its_own() {
    let bucket = &["fullnameOverride=co", "archive.type=S3", "archive.s3.bucket=archives"][..];
    for (set, source) in [
        (
            &["archive.s3.ca.secret=ca", "archive.s3.ca.key=root.pem"][..],
            json!({"secretName": "ca", "items": [{"key": "root.pem", "path": "ca.crt"}]}),
        ),
        (&["archive.s3.ca.configMap=ca"], json!({"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]})),
    ] {
        let all = render("co", "ops", &[bucket, set].concat());
        let pod = &one(&all, "Deployment", "co")["spec"]["template"]["spec"];
        let volume = &pod["volumes"][0];
        assert!(volume["secret"] == source || volume["configMap"] == source, "{volume}");
        assert_eq!(pod["containers"][0]["volumeMounts"][0]["mountPath"], "/etc/computer-operator/store-ca");
        let store = pod["containers"][0]["env"].as_array().unwrap().iter().find(|e| e["name"] == "ARCHIVE_STORE").unwrap();
        assert_eq!(store["value"], "s3://archives?ca_file=/etc/computer-operator/store-ca/ca.crt");
    }
}

/// A drain of a single node waits for the machines' pods, which wait for the operator.
#[test]
fn the_only_replica_of_the_operator_runs_on_a_cordoned_node_and_no_other_pod_does() {
    let tolerates = |set: &[&str], name: &str| {
        let all = render("co", "ops", &[&["fullnameOverride=co"], set].concat());
        let list = one(&all, "Deployment", name)["spec"]["template"]["spec"]["tolerations"].clone();
        let cordon = json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"});
        list.as_array().is_some_and(|list| list.contains(&cordon))
    };
    let bucket = &["archive.type=S3", "archive.s3.bucket=archives"][..];
    assert!(tolerates(&[], "co") && tolerates(bucket, "co") && tolerates(&["controller.tolerations[0].key=gpu"], "co"));
    assert!(tolerates(&["controller.tolerateCordon=null"], "co"), "values of an older chart");
    assert!(!tolerates(&["controller.tolerateCordon=false"], "co"));
    assert!(!tolerates(&[bucket, &["controller.replicas=2"]].concat(), "co"), "another replica takes over");
    assert!(!tolerates(&[], "co-api"));
}

/// `helm upgrade --reuse-values` renders this chart with the values of the version that was installed.
#[test]
fn values_of_an_older_chart_are_enough() {
    for set in [&[][..], S3] {
        let older = ["archive.s3.ca=null", "metrics.prometheusRule.storeFreePercent=null", "metrics.prometheusRule.enabled=true"];
        let all = render("co", "ops", &[&["fullnameOverride=co"], set, &older].concat());
        let rules = one(&all, "PrometheusRule", "co").to_string();
        assert!(!rules.contains("nil") && (set == S3 || rules.contains("< 15")), "{rules}");
    }
}

/// An unreachable store blocks every deletion.
#[test]
fn the_network_policy_lets_the_controller_reach_its_store() {
    let egress = |set: &[&str]| {
        let all = render("co", "ops", &[&["fullnameOverride=co", "archive.type=S3", "archive.s3.bucket=archives"], set].concat());
        one(&all, "NetworkPolicy", "co-store")["spec"]["egress"].clone()
    };
    for (endpoint, port) in [
        ("", 443),
        ("https://minio.storage.svc:9000", 9000),
        ("https://minio.storage.svc:9000/path", 9000),
        ("https://s3.example", 443),
        ("http://s3.example", 80),
        ("https://[2001:db8::7]", 443),
        ("https://[2001:db8::7]:9000", 9000),
    ] {
        let set = format!("archive.s3.endpoint={endpoint}");
        let rules = egress(&[&set, "archive.s3.allowHttp=true", "archive.s3.credentialsSecret=keys"]);
        assert_eq!(rules, json!([{"ports": [{"port": port, "protocol": "TCP"}]}]), "{endpoint}");
    }
    assert_eq!(egress(&[])[1]["ports"], json!([{"port": 80, "protocol": "TCP"}]), "without keys: the pod's cloud identity");
    assert!(!names_of("NetworkPolicy", &render("co", "ops", &["fullnameOverride=co"])).contains(&"co-store".to_owned()));
}

#[test]
fn every_switch_adds_or_removes_its_object() {
    let all = |set: &[&str]| render("co", "ops", &[set, &["fullnameOverride=co"]].concat());
    let usual = all(&[]);
    for kind in ["Ingress", "Certificate", "ServiceMonitor", "PrometheusRule"] {
        assert!(names_of(kind, &usual).is_empty(), "{kind} is rendered by default");
    }
    for (set, kind, name, there) in [
        (&["api.ingress.enabled=true", "api.ingress.hosts={h}"][..], "Ingress", "co-api", true),
        (&["api.tls.mode=CertManager", "api.tls.issuerRef.name=i"], "Certificate", "co-api", true),
        (&["metrics.serviceMonitor.enabled=true"], "ServiceMonitor", "co", true),
        (&["metrics.prometheusRule.enabled=true"], "PrometheusRule", "co", true),
        (&["rbac.everybodySeesClasses=true"], "ClusterRoleBinding", "computer-operator-classes", true),
        (&["rbac.everybodyUsesClasses=false"], "ClusterRoleBinding", "computer-operator-use-classes", false),
        (&["api.enabled=false"], "Deployment", "co-api", false),
        (&["api.enabled=false"], "Service", "co-api", false),
        (&["api.enabled=false"], "ServiceAccount", "co-api", false),
        (&["api.enabled=false"], "ClusterRole", "co-api", false),
        (&["networkPolicy.enabled=false"], "NetworkPolicy", "co-default-deny", false),
        (&["uninstallGuard.enabled=false"], "Job", "co-uninstall-guard", false),
        (&["crds.manage=false", "defaultClass.create=false"], "Job", "co-crds", false),
        (&["defaultClass.create=false"], "ConfigMap", "co-crds", false),
        (&["admission.policies=false"], "ValidatingAdmissionPolicy", "co-release", false),
        (&["admission.finalizer=Off"], "MutatingAdmissionPolicy", "co-finalizer", false),
        (&["api.podDisruptionBudget.enabled=false"], "PodDisruptionBudget", "co-api", false),
    ] {
        let found = |objects: &[Value]| names_of(kind, objects).iter().any(|n| n == name);
        assert_eq!((found(&usual), found(&all(set))), (!there, there), "{set:?}: {kind}/{name}");
    }
    let aggregated = |objects: &[Value]| one(objects, "ClusterRole", "computer-operator-edit")["metadata"]["labels"].to_string();
    assert!(
        aggregated(&usual).contains("aggregate-to-edit")
            && !aggregated(&all(&["rbac.aggregateToUserRoles=false"])).contains("aggregate-to")
    );
}

#[test]
fn the_finalizer_policy_follows_the_cluster() {
    let rendered = |more: &[&str]| helm().template("co", "ops", more).unwrap().contains("kind: MutatingAdmissionPolicy\n");
    assert!(!rendered(&[]), "a cluster that does not serve the policy would reject the whole release");
    assert!(rendered(&crate::SERVED));
    assert!(rendered(&["--set", "admission.finalizer=On"]));
}

#[test]
fn images_can_be_pinned_by_digest_and_come_from_another_registry() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let set = format!("image.digest={digest}");
    let all = render("co", "ops", &[&set, "global.imageRegistry=mirror.example:5000", "imagePullSecrets[0].name=pull"]);
    for (name, pod) in pods(&all) {
        assert_eq!(pod["containers"][0]["image"], format!("mirror.example:5000/operator@{digest}"), "{name}");
    }
    // The operator creates archive pods: it needs the same image, and their account the same pull Secret.
    assert!(
        one(&all, "Deployment", "co-computer-operator")
            .to_string()
            .contains(&format!("\"OPERATOR_IMAGE\",\"value\":\"mirror.example:5000/operator@{digest}\""))
    );
    for account in all.iter().filter(|o| o["kind"] == "ServiceAccount") {
        assert_eq!(account["imagePullSecrets"], json!([{"name": "pull"}]), "{}", id(account));
    }
    let class = one(&all, "ConfigMap", "co-computer-operator-crds")["data"]["class.yaml"].as_str().unwrap();
    assert!(class.contains("image: mirror.example:5000/library/debian:12-slim"), "{class}");
}

#[test]
fn the_default_class_is_valid_and_can_be_changed() {
    let class = |set: &[&str]| -> Value {
        let all = render("co", "ops", set);
        serde_yaml_ng::from_str(one(&all, "ConfigMap", "co-computer-operator-crds")["data"]["class.yaml"].as_str().unwrap()).unwrap()
    };
    let usual = class(&[]);
    let parsed: computer_operator::resources::ComputerClass = serde_json::from_value(usual.clone()).unwrap();
    let pod =
        computer_operator::computer::machine_pod::desired(&parsed, &computer_operator::resources::ComputerSpec::default(), "home").unwrap();
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(usual["metadata"]["annotations"]["computer-operator.dev/is-default-class"], "true");
    // Set explicitly, also with the values of an older chart.
    for set in [&[][..], &["defaultClass.spec.archive=null"], &["defaultClass.spec.archive.policy=BestEffort"]] {
        assert_eq!(class(set)["spec"]["archive"]["unreadableFiles"], "Block", "{set:?}");
    }
    assert_eq!(class(&["defaultClass.spec.archive.unreadableFiles=Record"])["spec"]["archive"]["unreadableFiles"], "Record");
    assert_eq!(usual["spec"]["key"], json!({"mountPath": "/run/computer"}));
    assert_eq!(class(&["defaultClass.spec.key=null"])["spec"]["key"], json!(null), "as before");
    let own = class(&[
        "defaultClass.spec.podTemplate.spec.containers[0].name=a",
        "defaultClass.spec.archive.policy=BestEffort",
        "defaultClass.isDefault=false",
    ]);
    assert_eq!(
        (&own["spec"]["podTemplate"]["spec"]["containers"][0]["name"], &own["spec"]["archive"]["policy"]),
        (&json!("a"), &json!("BestEffort"))
    );
    assert_eq!(own["metadata"]["annotations"]["computer-operator.dev/is-default-class"], "false");
}

/// Only the operator, the API and running hooks have permissions; archive pods have none.
#[test]
fn each_account_has_its_own_permissions() {
    let all = render("co", "ops", &["fullnameOverride=co"]);
    for binding in all.iter().filter(|o| o["kind"].as_str().unwrap().ends_with("Binding") && o["subjects"].is_array()) {
        let subjects = binding["subjects"].as_array().unwrap();
        assert_eq!(subjects.len(), 1, "{}", id(binding));
        if subjects[0]["kind"] == "Group" {
            // The only right of everybody. It reads nothing and changes nothing.
            assert_eq!(binding["roleRef"]["name"], json!("computer-operator-use-classes"), "{}", id(binding));
            continue;
        }
        assert_eq!((&subjects[0]["name"], &subjects[0]["namespace"]), (&binding["roleRef"]["name"], &json!("ops")), "{}", id(binding));
        assert_ne!(subjects[0]["name"], "co-archive");
    }
    for account in all.iter().filter(|o| o["kind"] == "ServiceAccount") {
        assert_eq!(account["automountServiceAccountToken"], json!(false), "{}", id(account));
    }
}

#[test]
fn a_release_name_that_is_invalid_for_a_service_is_rejected_with_a_remedy() {
    let error = helm().template("1st", "ops", &flags(&[])).unwrap_err().to_string();
    assert!(error.contains("set fullnameOverride"), "{error}");
    helm().template("1st", "ops", &["--set", "fullnameOverride=first"]).unwrap();
}
