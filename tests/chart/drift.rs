//! The chart agrees with the code wherever it repeats names, times or bounds of the code.

use std::collections::BTreeSet;

use computer_operator::archive::ingest::{self, tls};
use computer_operator::archive::verify;
use computer_operator::http;
use computer_operator::resources::{
    DELETION_FINALIZER, GROUP, MANAGED_BY_LABEL, MANAGER, ORIGINAL_POLICY_ANNOTATION, POD_FINALIZER, UID_LABEL, crds,
};
use computer_operator::runtime::lease;
use serde_json::{Value, json};
use xtask::chart;

use crate::{one, pods, render};

fn file(name: &str) -> String {
    std::fs::read_to_string(chart::folder().join(name)).unwrap()
}

#[test]
fn the_generated_files_are_committed() {
    for (name, text) in chart::generated().unwrap() {
        assert!(file(name) == text, "charts/computer-operator/{name} is out of date: run `cargo xtask generate`");
    }
}

#[test]
fn chart_and_program_have_one_version() {
    let chart: Value = serde_yaml_ng::from_str(&file("Chart.yaml")).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

/// Paths of all values; an empty object is one value.
fn paths(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    match value.as_object().filter(|map| !map.is_empty()) {
        Some(map) => map.iter().for_each(|(key, inner)| paths(inner, &format!("{path}.{key}"), all)),
        None => drop(all.insert(path.trim_start_matches('.').to_owned())),
    }
}

/// Paths that the schema names; an object without `properties` is one value.
fn schema_paths(whole: &Value, schema: &Value, path: &str, all: &mut BTreeSet<String>) {
    let schema = schema["$ref"].as_str().map_or(schema, |reference| whole.pointer(&reference[1..]).expect(reference));
    match schema["properties"].as_object() {
        Some(map) => map.iter().for_each(|(key, inner)| schema_paths(whole, inner, &format!("{path}.{key}"), all)),
        None => drop(all.insert(path.trim_start_matches('.').to_owned())),
    }
}

#[test]
fn every_value_is_in_the_schema_and_in_the_readme() {
    let values: Value = serde_yaml_ng::from_str(&file("values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&file("values.schema.json")).unwrap();
    let (mut given, mut known) = (BTreeSet::new(), BTreeSet::new());
    paths(&values, "", &mut given);
    schema_paths(&schema, &schema, "", &mut known);
    let rows: BTreeSet<String> = chart::readme::rows(&file("values.yaml")).unwrap().into_iter().map(|row| row.path).collect();
    let below = |all: &BTreeSet<String>, path: &str| all.iter().any(|k| path == k || path.starts_with(&format!("{k}.")));
    for path in &given {
        assert!(below(&known, path) || known.iter().any(|k| k.starts_with(&format!("{path}."))), "{path} is not in values.schema.json");
        assert!(below(&rows, path), "{path} has no `# --` comment in values.yaml");
    }
    for path in &known {
        let documented = below(&rows, path);
        assert!(documented, "{path} is in values.schema.json but not in values.yaml");
    }
}

#[test]
fn the_schema_rejects_unknown_keys_at_every_level() {
    let schema: Value = serde_json::from_str(&file("values.schema.json")).unwrap();
    assert_closed(&schema, "");
}

fn assert_closed(schema: &Value, path: &str) {
    if let Some(map) = schema["properties"].as_object() {
        let strict = schema["additionalProperties"] == json!(false);
        // A parent chart may set any key below `global`.
        assert!(strict || path == ".global", "{path} accepts unknown keys");
        map.iter().for_each(|(key, inner)| assert_closed(inner, &format!("{path}.{key}")));
    }
}

#[test]
fn names_and_times_match_the_code() {
    let all = render("computer-operator", "ns", &[]);
    let text = |name: &str| one(&all, "ValidatingAdmissionPolicy", name).to_string();
    assert!(one(&all, "MutatingAdmissionPolicy", "computer-operator-finalizer").to_string().contains(DELETION_FINALIZER));
    assert!(text("computer-operator-release").contains(DELETION_FINALIZER));
    assert!(text("computer-operator-reserved").contains(POD_FINALIZER) && text("computer-operator-reserved").contains(UID_LABEL));
    assert!(text("computer-operator-children").contains(UID_LABEL));
    for word in [UID_LABEL, MANAGED_BY_LABEL, &format!("'{MANAGER}'"), tls::SECRET] {
        assert!(text("computer-operator-secrets").contains(word), "{word}");
    }
    assert!(
        text("computer-operator-volumes").contains(ORIGINAL_POLICY_ANNOTATION) && text("computer-operator-volumes").contains(UID_LABEL)
    );
    for (name, pod) in pods(&all).iter().filter(|(name, _)| name.starts_with("Deployment")) {
        assert_eq!(pod["terminationGracePeriodSeconds"], lease::DRAIN.as_secs() + 20, "{name}");
    }
    // The longest shutdown of a replica of the HTTP API, and 15 seconds more.
    for delay in [0, 5, 60] {
        let all = render("co", "ops", &["fullnameOverride=co", &format!("api.shutdownDelaySeconds={delay}")]);
        let pod = &one(&all, "Deployment", "co-api")["spec"]["template"]["spec"];
        assert_eq!(pod["terminationGracePeriodSeconds"], delay + http::DRAIN.as_secs() + 15);
        let variable = pod["containers"][0]["env"].as_array().unwrap().iter().find(|e| e["name"] == "SHUTDOWN_DELAY_SECONDS").unwrap();
        assert_eq!(variable["value"], delay.to_string());
    }
    let rules = one(&all, "ClusterRole", "computer-operator-crds")["rules"].to_string();
    for crd in crds::all() {
        assert!(rules.contains(&format!("{}.{GROUP}", crd.spec.names.plural)));
    }
}

/// An alert on a metric that is not exposed would never fire.
#[test]
fn every_alert_uses_exposed_metrics_and_says_what_to_do() {
    // A metric family without a sample is not exposed yet, so the test reads the registrations in the source.
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let registered = xtask::book::metrics::registered(&xtask::book::sources(&source).unwrap()).unwrap();
    let all = render("computer-operator", "ns", &["metrics.prometheusRule.enabled=true"]);
    let rules = one(&all, "PrometheusRule", "computer-operator")["spec"]["groups"][0]["rules"].as_array().unwrap();
    let mut names: Vec<&str> = rules.iter().map(|r| r["alert"].as_str().unwrap()).collect();
    names.sort_unstable();
    let expected = [
        "ComputerApiErrors",
        "ComputerApiUnavailable",
        "ComputerArchiveStoreFilling",
        "ComputerArchiveStoreUnavailable",
        "ComputerArchiveVolumeNotRetained",
        "ComputerDeletionBlocked",
        "ComputerOperatorNoLeader",
        "ComputerOperatorPanics",
        "ComputerOrphans",
    ];
    assert_eq!(names, expected);
    for rule in rules {
        let expression = rule["expr"].as_str().unwrap();
        for metric in expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("computer_operator_")) {
            let exposed = |known: &xtask::book::metrics::Metric| known.name == metric || format!("{}_count", known.name) == metric;
            assert!(registered.iter().any(exposed), "{}: {metric} is not exposed", rule["alert"]);
        }
        assert!(rule["annotations"]["description"].as_str().is_some_and(|d| d.len() > 40), "{}: no remedy is described", rule["alert"]);
        let url = format!("http://computer-operator-api.ns.svc:80/docs/runbooks/{}", rule["alert"].as_str().unwrap());
        assert_eq!(rule["annotations"]["runbook_url"], url);
    }
}

/// The URL of a runbook leads to the HTTP API, or to where the admin says.
#[test]
fn runbooks_are_where_the_values_say() {
    let url = |set: &[&str]| {
        let all = render("co", "ops", &[&["metrics.prometheusRule.enabled=true", "fullnameOverride=co"], set].concat());
        let rules = one(&all, "PrometheusRule", "co")["spec"]["groups"][0]["rules"].as_array().unwrap().clone();
        let rule = rules.into_iter().find(|rule| rule["alert"] == "ComputerOrphans").unwrap();
        rule["annotations"]["runbook_url"].as_str().map(str::to_owned)
    };
    let ingress = ["api.ingress.enabled=true", "api.ingress.hosts={computers.example}"];
    let tls = [&ingress[..], &["api.ingress.tls[0].secretName=cert"]].concat();
    for (set, expected) in [
        (&["api.tls.mode=Secret", "api.tls.secretName=cert"][..], Some("https://co-api.ops.svc:80/docs/runbooks/ComputerOrphans")),
        (&ingress, Some("http://computers.example/docs/runbooks/ComputerOrphans")),
        (&tls, Some("https://computers.example/docs/runbooks/ComputerOrphans")),
        (&["metrics.prometheusRule.runbookBaseUrl=https://wiki.example/r"], Some("https://wiki.example/r/ComputerOrphans")),
        (&["api.enabled=false"], None),
        (&["metrics.prometheusRule.runbookBaseUrl=null"], Some("http://co-api.ops.svc:80/docs/runbooks/ComputerOrphans")),
    ] {
        assert_eq!(url(set).as_deref(), expected, "{set:?}");
    }
}

/// Machines reach the API at its Service, unless the admin says otherwise.
#[test]
fn machines_get_the_url_of_the_api() {
    let url = |set: &[&str]| {
        let all = render("co", "ops", &[&["fullnameOverride=co"], set].concat());
        let env = one(&all, "Deployment", "co")["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        env.into_iter().find(|variable| variable["name"] == "API_URL").unwrap()["value"].as_str().unwrap().to_owned()
    };
    for (set, expected) in [
        (&[][..], "http://co-api.ops.svc:80"),
        (&["api.tls.mode=Secret", "api.tls.secretName=cert"], "https://co-api.ops.svc:80"),
        (&["api.url=https://computers.example"], "https://computers.example"),
        (&["api.url=null"], "http://co-api.ops.svc:80"),
        (&["api.enabled=false"], ""),
    ] {
        assert_eq!(url(set), expected, "{set:?}");
    }
}

/// Panics were counted, but no alert reported them.
#[test]
fn a_panic_raises_an_alert() {
    for set in [&[][..], &["metrics.serviceMonitor.enabled=true"]] {
        let expression = &expressions(set)["ComputerOperatorPanics"];
        assert!(expression.starts_with("sum(increase(computer_operator_reconcile_panics_total{") && expression.ends_with("[1h])) > 0"));
    }
}

/// A bucket has no size, and a ratio of metrics that do not exist never fires.
#[test]
fn a_volume_that_fills_up_raises_an_alert() {
    let volume = &expressions(&["metrics.prometheusRule.storeFreePercent=20"])["ComputerArchiveStoreFilling"];
    let expected = "100 * min(computer_operator_archive_store_free_bytes{} / computer_operator_archive_store_size_bytes{}) < 20";
    assert_eq!(volume, expected);
    assert!(!expressions(&["archive.type=S3", "archive.s3.bucket=archives"]).contains_key("ComputerArchiveStoreFilling"));
}

/// The expressions of the alerts, rendered with these values.
fn expressions(set: &[&str]) -> std::collections::BTreeMap<String, String> {
    let all = render("co", "ops", &[&["metrics.prometheusRule.enabled=true"], set].concat());
    let rules = one(&all, "PrometheusRule", "co-computer-operator")["spec"]["groups"][0]["rules"].as_array().unwrap().clone();
    let text = |rule: &Value, key: &str| rule[key].as_str().unwrap().to_owned();
    rules.iter().map(|rule| (text(rule, "alert"), text(rule, "expr"))).collect()
}

/// An alert on something that is not installed would never be true, or permanently.
#[test]
fn alerts_are_only_for_what_is_installed() {
    for monitor in ["false", "true"] {
        let monitor = format!("metrics.serviceMonitor.enabled={monitor}");
        let with = |set: &[&str]| expressions(&[&[monitor.as_str()], set].concat());
        let (all, without_api) = (with(&[]), with(&["api.enabled=false"]));
        let without_volume =
            with(&["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.region=eu-1", "archive.s3.credentialsSecret=keys"]);
        for alert in ["ComputerApiUnavailable", "ComputerApiErrors"] {
            assert!(all.contains_key(alert) && !without_api.contains_key(alert), "{alert}");
        }
        let volume = "ComputerArchiveVolumeNotRetained";
        assert!(all[volume].ends_with("> 0") && !without_volume.contains_key(volume));
        assert!(!with(&["archive.local.retainVolume=false"]).contains_key(volume), "the operator does not check it");
    }
}

/// 501 is the correct response to a request for something that no agent supports; there is nothing to repair.
#[test]
fn the_alert_on_errors_does_not_count_501() {
    for set in [&[][..], &["metrics.serviceMonitor.enabled=true"]] {
        let (errors, all) = expressions(set)["ComputerApiErrors"].split_once(" / ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert!(errors.contains(r#"code=~"5..""#) && errors.contains(r#"code!="501""#), "{errors}");
        assert!(!all.contains("code"), "{all}");
    }
}

/// Without the chart's `ServiceMonitor` the labels of the targets are unknown, and so is whether the metrics are scraped at all.
#[test]
fn without_the_service_monitor_no_alert_fires_for_missing_metrics() {
    let (bare, monitored) = (expressions(&[]), expressions(&["metrics.serviceMonitor.enabled=true"]));
    for (alert, expression) in &bare {
        assert!(!expression.contains("service=") && !expression.contains("namespace="), "{alert}: {expression}");
        assert!(!expression.contains("vector(0)"), "{alert} fires where nothing was ever scraped: {expression}");
        assert!(!expression.contains("{,") && !expression.contains(",}"), "{alert}: {expression}");
    }
    for (alert, expression) in &monitored {
        assert!(expression.contains(r#"{namespace="ops",service="co-computer-operator-metrics""#), "{alert}: {expression}");
    }
    for (alert, metric) in [("ComputerOperatorNoLeader", "is_leader"), ("ComputerApiUnavailable", "http_ready")] {
        assert!(monitored[alert].contains("vector(0)"), "{alert} does not fire when all replicas are gone");
        assert!(bare[alert].contains(&format!("max_over_time(computer_operator_{metric}{{}}[6h])")), "{}", bare[alert]);
    }
}

/// Bytes of a quantity such as 256Mi.
fn bytes(quantity: &Value) -> usize {
    quantity.as_str().unwrap().strip_suffix("Mi").unwrap().parse::<usize>().unwrap() * 1024 * 1024
}

/// The defaults of the chart and of the program are the same, and archive pods have more memory than they need (docs/memory.md).
#[test]
fn archive_pods_have_the_memory_that_they_need() {
    use computer_operator::runtime::settings::ArchivePod;
    let pod = |set: &[&str]| -> ArchivePod {
        let all = render("co", "ops", &[&["fullnameOverride=co"], set].concat());
        let container = &one(&all, "Deployment", "co")["spec"]["template"]["spec"]["containers"][0];
        let variable = container["env"].as_array().unwrap().iter().find(|e| e["name"] == "ARCHIVE_POD").unwrap();
        serde_json::from_str(variable["value"].as_str().unwrap()).unwrap()
    };
    let usual = pod(&[]);
    assert_eq!(usual, ArchivePod::default());
    let limit = bytes(&json!(usual.resources.limits.unwrap()["memory"]));
    let needed = include_str!("../../docs/memory.md").split("## An archive pod").nth(1).unwrap();
    let sum = needed.lines().find_map(|line| line.strip_prefix("| sum | ")?.strip_suffix(" MiB |")).unwrap();
    assert!(sum.parse::<usize>().unwrap() * 1024 * 1024 < limit, "{sum} MiB of {limit}");
    let all = render("co", "ops", &["fullnameOverride=co"]).iter().map(Value::to_string).collect::<String>();
    assert!(all.contains(r#"{"name":"ARCHIVE_COLLECT_LEFTOVERS","value":"true"}"#), "leftovers are removed by default");
    let decided = pod(&["archive.pod.priorityClassName=high", "archive.pod.nodeSelector.pool=storage", "image.pullPolicy=Always"]);
    assert_eq!((decided.priority_class_name.as_str(), decided.image_pull_policy.as_str()), ("high", "Always"));
    assert_eq!(decided.node_selector["pool"], "storage");
    // The values of an older chart, with `helm upgrade --reuse-values`.
    assert_eq!(pod(&["archive.pod=null", "archive.maxBytes=null", "archive.collectLeftovers=null"]), ArchivePod::default());
}

/// A variable without a value would end the operator at its start.
#[test]
fn the_values_of_an_older_chart_leave_no_empty_variable() {
    let all = render("co", "ops", &["fullnameOverride=co", "archive.maxBytes=null", "archive.collectLeftovers=null", "archive.pod=null"]);
    let container = &one(&all, "Deployment", "co")["spec"]["template"]["spec"]["containers"][0];
    for variable in container["env"].as_array().unwrap().iter().filter(|e| e["name"].as_str().is_some_and(|n| n.starts_with("ARCHIVE_"))) {
        let value = variable["value"].as_str().unwrap_or_default();
        assert!(!value.is_empty() && !value.contains("nil"), "{variable}");
    }
}

/// L9: the bounds of the HTTP API add up to less than its memory limit, as docs/memory.md states.
#[test]
fn the_bounds_of_the_api_stay_below_its_memory_limit() {
    use clap::{Args as _, FromArgMatches as _};
    let all = render("co", "ops", &["fullnameOverride=co"]);
    let container = &one(&all, "Deployment", "co-api")["spec"]["template"]["spec"]["containers"][0];
    let value = |name: &str| {
        let all = container["env"].as_array().unwrap();
        all.iter().find(|e| e["name"] == name).unwrap()["value"].as_str().unwrap().to_owned()
    };
    let flags = [("--max-connections", "MAX_CONNECTIONS"), ("--max-in-flight", "MAX_IN_FLIGHT"), ("--idle-seconds", "IDLE_SECONDS")];
    let given = flags.map(|(flag, name)| format!("{flag}={}", value(name)));
    let command = http::config::Config::augment_args(clap::Command::new("api"));
    let config = http::config::Config::from_arg_matches(&command.get_matches_from(["api".to_owned()].into_iter().chain(given))).unwrap();
    let (sum, limit) = (config.memory(), bytes(&container["resources"]["limits"]["memory"]));
    assert!(sum < limit, "{sum} of {limit}");
    let stated = include_str!("../../docs/memory.md");
    let mib = |bytes: usize| format!("{} MiB", (bytes + 512 * 1024) / 1024 / 1024);
    for bound in [sum, config.limits().memory(true), computer_operator::runtime::health::LIMITS.memory(false)] {
        assert!(stated.contains(&mib(bound)), "docs/memory.md does not say {}", mib(bound));
    }
    // A proxy must close an idle connection before the API does: 600 s is the longest time of the usual ones (Google Cloud load balancers).
    assert!(value("IDLE_SECONDS").parse::<u32>().unwrap() > 600);
    // The operator: what docs/memory.md adds up.
    let container = &one(&all, "Deployment", "co")["spec"]["template"]["spec"]["containers"][0];
    let clients = computer_operator::archive::ingest::LIMITS.memory(true) + computer_operator::runtime::health::LIMITS.memory(false);
    let ((sent, read), [reading, manifests, unfinished]) = (ingest::IN_FLIGHT, verify::MEMORY);
    // Measured: the process. Not in constants of the code: manifests that pods send, Sessions, and the search for objects that nothing references.
    let besides = ((190 + 30 + 78 + 24) << 20) + 2 * sent + read + reading + manifests + unfinished;
    for bound in [sent, read, reading, manifests, unfinished] {
        assert!(stated.contains(&format!("| {} |", mib(bound))), "docs/memory.md does not say {}", mib(bound));
    }
    assert!(clients + besides < bytes(&container["resources"]["limits"]["memory"]), "{clients}");
    assert!(stated.contains(&mib(clients + besides)), "docs/memory.md does not say {}", mib(clients + besides));
    assert!(stated.contains(&mib(clients)), "docs/memory.md does not say {}", mib(clients));
}
