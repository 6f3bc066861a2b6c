//! Misspelled, invalid and contradictory values are rejected before anything is installed, and the error names the value.

use crate::{flags, helm};

#[test]
fn unknown_and_contradictory_values_are_rejected_by_name() {
    let helm = helm();
    for (set, named) in [
        (&["controler.replicas=1"][..], "controler"),
        (&["api.tls.secret=x"], "secret"),
        (&["archive.local.sise=1Gi"], "sise"),
        (&["metrics.prometheusRule.labels.a=b", "metrics.prometheusRule.label.a=b"], "label"),
        // One volume, one replica.
        (&["controller.replicas=2"], "controller.replicas above 1 needs archive.type=S3"),
        (&["archive.type=S3"], "archive.type=S3 needs archive.s3.bucket"),
        (&["archive.s3.bucket=archives"], "/archive/s3/bucket"),
        (&["archive.type=S3", "archive.s3.bucket=archives", "archive.local.existingClaim=mine"], "/archive/local/existingClaim"),
        (&["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.endpoint=http://store:9000"], "/archive/s3/allowHttp"),
        (&["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.endpoint=https://user:key@store"], "/archive/s3/endpoint"),
        (&["archive.type=S3", "archive.s3.bucket=a/b"], "/archive/s3/bucket"),
        (&["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.region=eu&endpoint=http://else"], "/archive/s3/region"),
        (&["archive.s3.ca.secret=ca"], "/archive/s3/ca/secret"),
        (
            &["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.ca.secret=a", "archive.s3.ca.configMap=b"],
            "/archive/s3/ca/configMap",
        ),
        (&["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.ca.configMap=b", "archive.s3.ca.key=../a"], "/archive/s3/ca/key"),
        // A duplicate label is invalid YAML, and another value of a selector label makes a Deployment that selects no pods.
        (&[r"controller.podLabels.app\.kubernetes\.io/name=mine"], "/controller/podLabels"),
        (&[r"api.podLabels.app\.kubernetes\.io/component=mine"], "/api/podLabels"),
        (&[r"api.podLabels.computer-operator\.dev/metrics=no"], "/api/podLabels"),
        (&["api.shutdownDelaySeconds=61"], "/api/shutdownDelaySeconds"),
        (&["archive.type=Disk"], "/archive/type"),
        (&["api.tls.mode=Secret"], "/api/tls/secretName"),
        (&["api.tls.mode=CertManager"], "/api/tls/issuerRef/name"),
        (&["api.tls.secretName=cert"], "/api/tls/secretName"),
        (&["api.ingress.enabled=true"], "/api/ingress/hosts"),
        (&["api.enabled=false", "api.ingress.enabled=true", "api.ingress.hosts={a}"], "/api/ingress/enabled"),
        (&["api.enabled=false", "api.tls.mode=Secret", "api.tls.secretName=cert"], "/api/tls/mode"),
        (&["crds.manage=false"], "crds.manage=false needs defaultClass.create=false"),
        (&["image.digest=latest"], "/image/digest"),
        (&["image.pullPolicy=Sometimes"], "/image/pullPolicy"),
        (&["archive.local.size=much"], "/archive/local/size"),
        (&["fullnameOverride=Upper"], "/fullnameOverride"),
        (&["admission.finalizer=Maybe"], "/admission/finalizer"),
        (&["controller.leaseSeconds=1"], "/controller/leaseSeconds"),
        (&["metrics.serviceMonitor.interval=often"], "/metrics/serviceMonitor/interval"),
        (&["metrics.prometheusRule.runbookBaseUrl=wiki/runbooks"], "/metrics/prometheusRule/runbookBaseUrl"),
    ] {
        let error = helm.template("co", "ops", &flags(set)).expect_err(&format!("{set:?} was accepted")).to_string();
        assert!(error.contains(named), "{set:?}: {error}");
    }
}

#[test]
fn the_chart_passes_helm_lint() {
    let output = helm().run(&["lint", "--strict", &xtask::chart::folder().display().to_string()]).unwrap();
    assert!(output.contains("0 chart(s) failed"), "{output}");
}

#[test]
fn users_can_add_pod_labels() {
    let set = [r"controller.podLabels.team=a", r"api.podLabels.example\.com/team=b"];
    let text = helm().template("co", "ops", &flags(&set)).unwrap();
    assert!(text.contains("        team: a\n") && text.contains("        example.com/team: b\n"));
}

/// Helm adds the parent chart's `global` to the values of a subchart.
#[test]
fn the_chart_can_be_a_subchart() {
    helm().template("co", "ops", &["--set", "global.parentSetting=1"]).unwrap();
}
