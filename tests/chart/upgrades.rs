//! Upgrades that change fields which an API server or Helm may keep: the strategy type of the Deployment and the categories of a definition.

use std::path::Path;

use computer_operator::resources::crds;
use serde_json::json;
use xtask::chart::{self, Helm};

use crate::flags;
use crate::server::{Server, eventually};

const S3: &[&str] = &["archive.type=S3", "archive.s3.bucket=archives", "archive.s3.region=eu-1", "archive.s3.credentialsSecret=keys"];
const LOCAL: &[&str] = &["archive.type=Local"];

/// `kubectl delete all --all` must not delete computers, which cannot be recreated. That also holds after an upgrade from a definition in the
/// category `all`, whichever field manager applied it.
pub fn kubectl_delete_all_spares_computers(server: &Server) {
    let now = crds::files().unwrap().into_iter().find(|(name, _)| name == "computers.yaml").unwrap().1;
    let category = "    - computer-operator\n";
    let before = now.replace(category, "    - all\n");
    assert_ne!(before, now);
    let categories = || {
        let path = "jsonpath={.status.acceptedNames.categories}";
        server.kubectl(&["get", "crd", "computers.computer-operator.dev", "-o", path], "")
    };
    server.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &before).unwrap();
    eventually("the old definition is served", || categories().and_then(|c| if c == r#"["all"]"# { Ok(()) } else { Err(c) }));
    server.kubectl(&["apply", "--server-side", "--force-conflicts", "--field-manager=computer-operator-chart", "-f", "-"], &now).unwrap();
    eventually("the new definition is served", || categories().and_then(|c| if c == r#"["computer-operator"]"# { Ok(()) } else { Err(c) }));

    server.kubectl(&["create", "namespace", "tidy"], "").unwrap();
    let computer = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "box", "namespace": "tidy"},
        "spec": {"provider": "BYOM"}});
    server.kubectl(&["create", "-f", "-"], &computer.to_string()).unwrap();
    server.kubectl(&["create", "deployment", "web", "--image=none", "--replicas=0", "-n", "tidy"], "").unwrap();
    // kubectl caches for some minutes which kinds belong to a category.
    let cache = tempfile::tempdir().unwrap();
    let cache = format!("--cache-dir={}", cache.path().display());
    let deleted = server.kubectl(&["delete", "all", "--all", "-n", "tidy", "--wait=false", &cache], "").unwrap();
    assert!(deleted.contains("deployment") && deleted.contains("web") && !deleted.contains("box"), "{deleted}");
    let left = server.kubectl(&["get", "computer-operator", "-n", "tidy", &cache, "-o", "name"], "").unwrap();
    assert_eq!(left.trim(), "computer.computer-operator.dev/box");
    let deletion_timestamp =
        server.kubectl(&["get", "computer", "box", "-n", "tidy", "-o", "jsonpath={.metadata.deletionTimestamp}"], "").unwrap();
    assert_eq!(deletion_timestamp, "");
    server.kubectl(&["delete", "namespace", "tidy", "--wait=false"], "").unwrap();
}

/// From a volume to a bucket and back: from this version, from an older version whose upgrade failed, and out of that failure.
pub fn an_upgrade_can_change_the_store(server: &Server, helm: &Helm) {
    let now = chart::folder();
    let folder = tempfile::tempdir().unwrap();
    let old = older(folder.path(), &now);
    let upgrade = |chart: &Path, set: &[&str], more: &[&str]| {
        let chart = chart.display().to_string();
        helm.run(&[&["upgrade", "co", &chart, "-n", "ops", "--no-hooks"], more, &flags(set)].concat()).map_err(|e| e.to_string())
    };
    let strategy = || {
        let path = "jsonpath={.spec.strategy}";
        server.kubectl(&["get", "deployment", "co-computer-operator", "-n", "ops", "-o", path], "").unwrap()
    };
    let assert_surge = |surge: &str, what: &str| {
        let all = strategy();
        assert!(all.contains(&format!(r#""maxSurge":{surge}"#)) && all.contains("RollingUpdate"), "{what}: {all}");
    };
    let (local, s3) = ("0", r#""25%""#);
    for set in [S3, LOCAL, S3, LOCAL] {
        upgrade(&now, set, &[]).unwrap_or_else(|error| panic!("{set:?}: {error}"));
        assert_surge(if set == S3 { s3 } else { local }, "between stores");
    }
    // With the older chart the API server has defaulted `rollingUpdate`, and Helm does not remove it.
    upgrade(&old, S3, &[]).unwrap();
    assert_surge(s3, "the older version");
    let error = upgrade(&old, LOCAL, &[]).expect_err("the older chart cannot change the store");
    assert!(error.contains("may not be specified when strategy"), "{error}");
    let status = helm.run(&["status", "co", "-n", "ops"]).unwrap();
    assert!(status.contains("STATUS: failed"), "{status}");
    upgrade(&now, LOCAL, &[]).expect("upgrade after the failure");
    assert_surge(local, "after the failure");
    upgrade(&old, S3, &[]).unwrap();
    upgrade(&now, LOCAL, &[]).expect("from the older version, with another store");
    // The API server defaults no fields for `Recreate`.
    helm.run(&["uninstall", "co", "-n", "ops", "--no-hooks"]).unwrap();
    upgrade(&old, LOCAL, &["--install"]).unwrap();
    upgrade(&now, S3, &[]).expect("from the older version, from volume to bucket");
    // After a manual patch kubectl owns the field: Helm reports a conflict and resolves it with --force-conflicts.
    let patch = r#"{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null}}}"#;
    server.kubectl(&["patch", "deployment", "co-computer-operator", "-n", "ops", "--type=merge", "-p", patch], "").unwrap();
    let error = upgrade(&now, S3, &[]).expect_err("a field that kubectl owns");
    assert!(error.contains("conflict"), "{error}");
    upgrade(&now, S3, &["--force-conflicts"]).expect("upgrade with --force-conflicts");
    assert_surge(s3, "after the conflict");
    upgrade(&now, LOCAL, &[]).unwrap();
}

/// A copy of the chart with the strategy of an older version.
fn older(folder: &Path, now: &Path) -> std::path::PathBuf {
    let old = folder.join("computer-operator");
    copy(now, &old);
    let file = old.join("templates/controller/deployment.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once("  strategy:\n").unwrap();
    let (_, after) = rest.split_once("  selector:\n").unwrap();
    let strategy = r#"    type: {{ ternary "Recreate" "RollingUpdate" $local }}"#;
    std::fs::write(&file, format!("{before}  strategy:\n{strategy}\n  selector:\n{after}")).unwrap();
    old
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
