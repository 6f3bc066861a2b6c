//! What an editor of a namespace sends, and what the admission policies answer.

use computer_operator::computer::children::Child;
use serde_json::{Value, json};
use xtask::chart::{self, Helm};

use crate::server::{Server, eventually};

/// A command of a user, with its standard input.
type Send<'a> = &'a dyn Fn(&[&str], &str) -> Result<String, String>;

fn computer(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// What an editor of a namespace sends, and what it is answered.
pub fn hold(server: &Server, helm: &Helm) {
    server.kubectl(&["create", "namespace", "team"], "").unwrap();
    server.kubectl(&["create", "rolebinding", "edit", "--clusterrole=edit", "--user=anna", "-n", "team"], "").unwrap();
    let anna = |arguments: &[&str], input: &str| {
        server.kubectl(&[arguments, &["-n", "team", "--as=anna", "--as-group=system:authenticated"]].concat(), input)
    };
    let byom = json!({"provider": "BYOM"});
    let finalizers =
        |name: &str| server.kubectl(&["get", "computer", name, "-n", "team", "-o", "jsonpath={.metadata.finalizers}"], "").unwrap();
    // A new policy takes a moment to be in force.
    eventually("the finalizer policy is in force", || {
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
    anna(&["replace", "-f", "-"], &computer("box", &json!({"provider": "BYOM", "displayName": "again"}))).unwrap();
    assert_eq!(finalizers("box"), r#"["computer-operator.dev/deletion"]"#);
    anna(&["patch", "computer", "box", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "").unwrap();
    assert_eq!(finalizers("box"), r#"["computer-operator.dev/deletion"]"#);
    deletion(server, &anna);
    reserved(server, &anna);
    drawn_names(server, &anna);
    keys(server);
    sessions(server, &anna);
    // A cluster that does not serve the mutating policy: there stripping is refused.
    let chart = chart::folder().display().to_string();
    helm.run(&["upgrade", "co", &chart, "-n", "ops", "--no-hooks", "--set", "admission.finalizer=Off"]).unwrap();
    eventually("stripping is refused without the mutating policy", || {
        anna(&["apply", "-f", "-"], &json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "bare", "finalizers": ["computer-operator.dev/deletion"]}, "spec": byom}).to_string()).ok();
        let stripped = anna(&["patch", "computer", "bare", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
        match stripped {
            Err(error) if error.contains("the operator takes it off") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

pub fn refused(what: &str, result: Result<String, String>, message: &str) {
    let error = result.expect_err(&format!("{what}: it was accepted"));
    assert!(error.contains(message), "{what}: {error}");
}

fn deletion(server: &Server, anna: Send<'_>) {
    anna(&["create", "-f", "-"], &computer("kept", &json!({"provider": "BYOM", "deletionProtection": true}))).unwrap();
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
        .kubectl(&["create", "-n", "going", "-f", "-"], &computer("box", &json!({"provider": "BYOM", "deletionProtection": true})))
        .unwrap();
    server.kubectl(&["delete", "namespace", "going", "--wait=false"], "").unwrap();
    eventually("the namespace controller deletes it", || {
        let at = server.kubectl(&["get", "computer", "box", "-n", "going", "-o", "jsonpath={.metadata.deletionTimestamp}"], "")?;
        if at.is_empty() { Err("not yet".into()) } else { Ok(()) }
    });
}

fn reserved(server: &Server, anna: Send<'_>) {
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

/// Nobody else takes a name that the operator may have drawn, whole or by what the API server puts after it; others are free.
fn drawn_names(server: &Server, anna: Send<'_>) {
    let object = |kind: &str, metadata: Value| {
        let spec = match kind {
            "Pod" => json!({"containers": [{"name": "c", "image": "none"}]}),
            "PersistentVolumeClaim" => json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}),
            _ => Value::Null,
        };
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata});
        if spec != Value::Null {
            object["spec"] = spec;
        }
        object.to_string()
    };
    let hex = "0123456789abcdef".repeat(2);
    let children = [("Pod", Child::Machine), ("PersistentVolumeClaim", Child::Home), ("Secret", Child::Key)];
    let names = children.map(|(kind, child)| (kind, child.name(&hex)));
    for (kind, drawn) in names.into_iter().chain([("Secret", format!("api-key-{hex}"))]) {
        let dry = |metadata| anna(&["create", "--dry-run=server", "-f", "-"], &object(kind, metadata));
        let prefix = &drawn[..drawn.len() - 5];
        refused(kind, dry(json!({"name": drawn})), "names that the operator draws");
        refused(kind, dry(json!({"generateName": prefix})), "names that the operator draws");
        for (field, free) in [("name", prefix), ("name", &format!("{drawn}0")), ("name", &format!("x{drawn}")), ("generateName", &drawn)] {
            dry(json!({field: free})).unwrap();
        }
        server
            .kubectl(&["create", "-n", "team", "--dry-run=server", "-f", "-"], &object(kind, json!({"name": drawn})))
            .expect("who may release");
    }
}

/// What a list of sessions costs is bounded; what is stored already is not locked.
fn sessions(server: &Server, anna: Send<'_>) {
    let session = |name: &str, settings: &Value| {
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Session", "metadata": {"name": name, "namespace": "team"},
            "spec": {"computerName": "box", "computerUID": "u", "settings": settings}})
        .to_string()
    };
    // As much as the HTTP API takes, in the form that grows most when it is written out.
    let most: Vec<u8> = vec![0; (32 * 1024 - 8) / 2];
    let (zeros, many) = (vec![0; 40_000], vec![json!({"k": [null, true, 1.5, "x"]}); 5_000]);
    anna(&["create", "-f", "-"], &session("usual", &json!({"a": most}))).expect("what the HTTP API takes");
    anna(&["create", "-f", "-"], &session("odd", &json!({"n": null, "t": true, "f": 1.5, "d": [[[{}]]]}))).expect("of every type");
    // Within the 32 KiB of the HTTP API, and too much for the policy, which says why.
    let exponents = json!({"a": vec![1e300; 4_600]});
    refused("large exponents", anna(&["create", "-f", "-"], &session("large", &exponents)), "numbers in full (1e300 has 301 digits)");
    for settings in [json!({"a": "x".repeat(70_000)}), json!({"a": zeros}), json!({"a": many})] {
        refused("large settings", anna(&["create", "-f", "-"], &session("large", &settings)), "spec.settings: 64 KiB at most");
        let patch = json!({"spec": {"settings": settings}}).to_string();
        refused(
            "grown",
            anna(&["patch", "session", "odd", "--type=merge", "--patch-file=/dev/stdin"], &patch),
            "spec.settings: 64 KiB at most",
        );
    }
    server.kubectl(&["delete", "validatingadmissionpolicybinding", "co-computer-operator-sessions"], "").unwrap();
    eventually("nothing stands in the way", || {
        server.kubectl(&["create", "-f", "-"], &session("stored", &json!({"a": "x".repeat(70_000)}))).map(drop)
    });
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "co-computer-operator-sessions"},
        "spec": {"policyName": "co-computer-operator-sessions", "validationActions": ["Deny"]}});
    server.kubectl(&["create", "-f", "-"], &binding.to_string()).unwrap();
    eventually("it stands again", || {
        match anna(&["create", "--dry-run=server", "-f", "-"], &session("again", &json!({"a": "x".repeat(70_000)}))) {
            Err(error) if error.contains("64 KiB at most") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    anna(&["patch", "session", "stored", "--type=merge", "-p", r#"{"spec":{"title":"t"}}"#], "").expect("what is stored can be changed");
    anna(&["delete", "session", "stored"], "").expect("and deleted");
}

/// An `ApiKey` is for who may make that account's tokens.
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
