//! Values that are mistyped or contradict each other are refused before anything is installed, and what is refused is named.

use crate::{flags, helm};

#[test]
fn what_contradicts_itself_or_is_unknown_is_refused() {
    let helm = helm();
    for (set, named) in [
        (&["controler.replicas=1"][..], "controler"),
        (&["api.tls.secret=x"], "secret"),
        (&["archive.local.sise=1Gi"], "sise"),
        (&["metrics.prometheusRule.labels.a=b", "metrics.prometheusRule.label.a=b"], "label"),
        // One volume, one replica.
        (&["controller.replicas=2"], "/controller/replicas"),
        (&["archive.type=S3"], "/archive/s3/bucket"),
        (&["archive.s3.bucket=archives"], "/archive/s3/bucket"),
        (&["archive.type=S3", "archive.s3.bucket=archives", "archive.local.existingClaim=mine"], "/archive/local/existingClaim"),
        (&["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.endpoint=http://store:9000"], "/archive/s3/allowHttp"),
        (&["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.endpoint=https://user:key@store"], "/archive/s3/endpoint"),
        (&["archive.type=S3", "archive.s3.bucket=a/b"], "/archive/s3/bucket"),
        (&["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.region=eu&endpoint=http://else"], "/archive/s3/region"),
        // A label twice is no YAML, and another value of ours is a Deployment that selects nothing.
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
        (&["crds.manage=false"], "/defaultClass/create"),
        (&["image.digest=latest"], "/image/digest"),
        (&["image.pullPolicy=Sometimes"], "/image/pullPolicy"),
        (&["archive.local.size=much"], "/archive/local/size"),
        (&["fullnameOverride=Upper"], "/fullnameOverride"),
        (&["admission.finalizer=Maybe"], "/admission/finalizer"),
        (&["controller.leaseSeconds=1"], "/controller/leaseSeconds"),
        (&["metrics.serviceMonitor.interval=often"], "/metrics/serviceMonitor/interval"),
    ] {
        let error = helm.template("co", "ops", &flags(set)).expect_err(&format!("{set:?} was accepted")).to_string();
        assert!(error.contains(named), "{set:?}: {error}");
    }
}

#[test]
fn helm_has_nothing_to_say_about_the_chart() {
    let said = helm().run(&["lint", "--strict", &xtask::chart::folder().display().to_string()]).unwrap();
    assert!(said.contains("0 chart(s) failed"), "{said}");
}

/// Labels of people's own are theirs to set.
#[test]
fn pods_take_more_labels() {
    let set = [r"controller.podLabels.team=a", r"api.podLabels.example\.com/team=b"];
    let text = helm().template("co", "ops", &flags(&set)).unwrap();
    assert!(text.contains("        team: a\n") && text.contains("        example.com/team: b\n"));
}

/// Helm puts `global` into the values of a chart that another one depends on.
#[test]
fn the_chart_can_be_part_of_another() {
    helm().template("co", "ops", &["--set", "global.somebodyElses=1"]).unwrap();
}
