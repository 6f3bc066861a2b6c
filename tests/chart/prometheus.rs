//! A real Prometheus' `promtool` checks and evaluates what the chart gives to Prometheus and Grafana: every alert fires when it should and
//! only then (`alerts.yaml`), and every expression of a dashboard has a result when the metrics that it names exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use xtask::book::metrics::{self, Metric};
use xtask::tools::{self, Tool};

use crate::{objects, one, render};

/// With the chart's `ServiceMonitor`, and without it.
const MONITORED: [&str; 2] = ["metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor.enabled=false"];

fn promtool(arguments: &[&str]) {
    let tools = tools::ensure(&[Tool::Promtool]).unwrap();
    let output = Command::new(tools.path(Tool::Promtool)).args(arguments).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {arguments:?}\n{out}{error}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The rules as Prometheus reads them.
fn rules(folder: &Path, monitored: &str) -> PathBuf {
    let all = render("co", "ops", &["metrics.prometheusRule.enabled=true", "fullnameOverride=co", monitored]);
    let path = folder.join("rules.yaml");
    fs::write(&path, one(&all, "PrometheusRule", "co")["spec"].to_string()).unwrap();
    path
}

#[test]
fn prometheus_accepts_the_rules() {
    for monitored in MONITORED {
        let folder = tempfile::tempdir().unwrap();
        promtool(&["check", "rules", "--lint=all", "--lint-fatal", text(&rules(folder.path(), monitored))]);
    }
}

#[test]
fn every_alert_fires_when_it_should_and_only_then() {
    let cases = include_str!("alerts.yaml");
    for monitored in MONITORED {
        let folder = tempfile::tempdir().unwrap();
        rules(folder.path(), monitored);
        let test = folder.path().join("test.yaml");
        fs::write(&test, cases).unwrap();
        promtool(&["test", "rules", text(&test)]);
    }
    let all = render("co", "ops", &["metrics.prometheusRule.enabled=true", "fullnameOverride=co"]);
    let fired: BTreeSet<String> = objects(cases)[0]["tests"].as_array().unwrap().iter().flat_map(alerts_that_fire).collect();
    for rule in one(&all, "PrometheusRule", "co")["spec"]["groups"][0]["rules"].as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        assert!(fired.contains(name), "no case in tests/chart/alerts.yaml makes {name} fire");
    }
}

/// The alerts that a case of `alerts.yaml` expects.
fn alerts_that_fire(test: &Value) -> Vec<String> {
    let samples = test["promql_expr_test"][0]["exp_samples"].as_array().unwrap();
    samples.iter().map(|sample| sample["labels"].as_str().unwrap().split('"').nth(1).unwrap().to_owned()).collect()
}

/// The dashboards by name.
fn dashboards() -> Vec<(String, Value)> {
    let all = render("co", "ops", &["metrics.dashboards.enabled=true", "fullnameOverride=co"]);
    let maps = all.iter().filter(|object| object["metadata"]["labels"]["grafana_dashboard"] == "1");
    let files = maps.flat_map(|map| map["data"].as_object().unwrap());
    files.map(|(name, json)| (name.clone(), serde_json::from_str(json.as_str().unwrap()).unwrap())).collect()
}

/// The expressions of a dashboard, with its variables replaced.
fn expressions(dashboard: &Value) -> Vec<String> {
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let expression = |target: &Value| target["expr"].as_str().unwrap().replace("$__rate_interval", "5m").replace("$namespace", ".*");
    targets.map(expression).collect()
}

/// One series for each combination of labels that an expression may select.
fn series(metric: &Metric) -> Vec<Value> {
    let mut sets = vec!["namespace=\"ops\",pod=\"p\"".to_owned()];
    for label in &metric.labels {
        let values: &[&str] = match label.as_str() {
            "phase" => &["Active", "Suspended", "Provisioning", "Error"],
            "code" => &["200", "500"],
            _ => &["x"],
        };
        sets = sets.iter().flat_map(|set| values.iter().map(move |value| format!("{set},{label}=\"{value}\""))).collect();
    }
    let one = |name: &str, labels: &str, values: &str| json!({"series": format!("{name}{{{labels}}}"), "values": values});
    let name = &metric.name;
    let of = |set: &String| match metric.kind {
        "histogram" => vec![
            one(&format!("{name}_bucket"), &format!("{set},le=\"1\""), "0+1x120"),
            one(&format!("{name}_bucket"), &format!("{set},le=\"+Inf\""), "0+2x120"),
            one(&format!("{name}_sum"), set, "0+3x120"),
            one(&format!("{name}_count"), set, "0+2x120"),
        ],
        "counter" => vec![one(name, set, "0+1x120")],
        _ => vec![one(name, set, "1x120")],
    };
    sets.iter().flat_map(of).collect()
}

#[test]
fn every_expression_of_a_dashboard_has_a_result() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let metrics = metrics::registered(&xtask::book::sources(&source).unwrap()).unwrap();
    let input: Vec<Value> = metrics.iter().flat_map(series).collect();
    let dashboards = dashboards();
    assert_eq!(dashboards.len(), 3);
    for (name, dashboard) in dashboards {
        let has_result = |expression: String| json!({"expr": format!("count({expression}) > bool 0"), "eval_time": "60m", "exp_samples": [{"labels": "{}", "value": 1}]});
        let cases: Vec<Value> = expressions(&dashboard).into_iter().map(has_result).collect();
        let tests = json!([{"name": name, "interval": "1m", "input_series": input, "promql_expr_test": cases}]);
        let folder = tempfile::tempdir().unwrap();
        let test = folder.path().join("test.yaml");
        fs::write(&test, json!({"rule_files": [], "evaluation_interval": "1m", "tests": tests}).to_string()).unwrap();
        promtool(&["test", "rules", text(&test)]);
    }
}

/// What Grafana needs: it reports a mistake only when a user opens the panel.
#[test]
fn every_panel_of_a_dashboard_is_complete() {
    for (name, dashboard) in dashboards() {
        let of = |what: &str| format!("{name}: {what}");
        assert!(dashboard["uid"].as_str().unwrap().starts_with("computer-operator-"), "{}", of("uid"));
        assert!(dashboard.get("__inputs").is_none() && dashboard.get("id").is_none(), "{}", of("only the import dialog resolves __inputs"));
        let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = of(panel["title"].as_str().unwrap());
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is used twice");
            assert!(["stat", "timeseries", "table"].contains(&panel["type"].as_str().unwrap()), "{title}: type");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: unit");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title}: targets");
            for source in [&panel["datasource"], &panel["targets"][0]["datasource"]] {
                assert_eq!(source["uid"], "${datasource}", "{title}");
            }
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{title}: beyond the edge");
            let all = (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)));
            all.for_each(|cell| assert!(cells.insert(cell), "{title}: it overlaps another panel"));
        }
    }
}
