//! The admission policies restrict users with the role `edit` and reject their requests with a helpful message.

use computer_operator::computer::children::Child;
use serde_json::{Value, json};
use xtask::chart::{self, Helm};

use crate::server::{Server, eventually};

/// Runs kubectl as a user, with this standard input.
type Send<'a> = &'a dyn Fn(&[&str], &str) -> Result<String, String>;

fn computer(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": name}, "spec": spec}).to_string()
}

pub fn users_are_restricted(server: &Server, helm: &Helm) {
    server.kubectl(&["create", "namespace", "team"], "").unwrap();
    server.kubectl(&["create", "rolebinding", "edit", "--clusterrole=edit", "--user=anna", "-n", "team"], "").unwrap();
    let anna = |arguments: &[&str], input: &str| {
        server.kubectl(&[arguments, &["-n", "team", "--as=anna", "--as-group=system:authenticated"]].concat(), input)
    };
    let byom = json!({"provider": "BYOM"});
    let finalizers =
        |name: &str| server.kubectl(&["get", "computer", name, "-n", "team", "-o", "jsonpath={.metadata.finalizers}"], "").unwrap();
    // A new policy takes effect after a moment.
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
    // `kubectl replace` with a manifest without the finalizer is accepted and keeps the finalizer.
    anna(&["replace", "-f", "-"], &computer("box", &json!({"provider": "BYOM", "displayName": "again"}))).unwrap();
    assert_eq!(finalizers("box"), r#"["computer-operator.dev/deletion"]"#);
    anna(&["patch", "computer", "box", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "").unwrap();
    assert_eq!(finalizers("box"), r#"["computer-operator.dev/deletion"]"#);
    deletion_is_protected(server, &anna);
    labels_are_reserved(server, &anna);
    generated_names_are_reserved(server, &anna);
    api_keys_require_the_right_to_create_tokens(server);
    an_erasure_names_its_requester(server);
    session_settings_are_bounded(server, &anna);
    a_class_is_a_right(server, helm, &anna);
    // Without the mutating policy, removing the finalizer is rejected.
    let chart = chart::folder().display().to_string();
    helm.run(&["upgrade", "co", &chart, "-n", "ops", "--no-hooks", "--set", "admission.finalizer=Off"]).unwrap();
    eventually("removal of the finalizer is rejected without the mutating policy", || {
        anna(&["apply", "-f", "-"], &json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": "bare", "finalizers": ["computer-operator.dev/deletion"]}, "spec": byom}).to_string()).ok();
        let stripped = anna(&["patch", "computer", "bare", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
        match stripped {
            Err(error) if error.contains("the operator removes the finalizer") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

pub fn refused(what: &str, result: Result<String, String>, message: &str) {
    let error = result.expect_err(&format!("{what}: accepted"));
    assert!(error.contains(message), "{what}: {error}");
}

fn deletion_is_protected(server: &Server, anna: Send<'_>) {
    anna(&["create", "-f", "-"], &computer("kept", &json!({"provider": "BYOM", "deletionProtection": true}))).unwrap();
    refused(
        "protected",
        anna(&["delete", "computer", "kept", "--wait=false"], ""),
        "spec.deletionProtection is true. To delete the Computer, first run: kubectl patch computer kept",
    );
    refused("protected, all", anna(&["delete", "computers", "kept", "--wait=false", "--force"], ""), "spec.deletionProtection is true");
    anna(&["patch", "computer", "kept", "--type=merge", "-p", r#"{"spec":{"deletionProtection":false}}"#], "").unwrap();
    anna(&["delete", "computer", "kept", "--wait=false"], "").unwrap();
    let none = r#"{"metadata":{"finalizers":null}}"#;
    refused(
        "the finalizer removed during the deletion",
        anna(&["patch", "computer", "kept", "--type=merge", "-p", none], ""),
        "the operator removes the finalizer",
    );
    server.kubectl(&["patch", "computer", "kept", "-n", "team", "--type=merge", "-p", none], "").expect("a cluster admin may remove it");
    // Deletion protection does not stop the deletion of the namespace.
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

/// `use` on a class, in the namespace of the Computer. By default everybody has it.
fn a_class_is_a_right(server: &Server, helm: &Helm, anna: Send<'_>) {
    let create = |name: &str, spec: &Value| anna(&["create", "-f", "-"], &computer(name, spec));
    create("free", &json!({"className": "gpu"})).expect("the default");
    let chart = chart::folder().display().to_string();
    let restrict = ["upgrade", "co", &chart, "-n", "ops", "--no-hooks", "--set", "rbac.everybodyUsesClasses=false"];
    helm.run(&restrict).unwrap();
    let gpu = json!({"className": "gpu"});
    let message = "user anna may not use ComputerClass gpu in namespace team. Name another class in spec.className, or ask a cluster admin for the \
                   verb use on computerclasses/gpu";
    eventually("the class is reserved", || match create("reserved", &gpu) {
        Err(error) if error.contains(message) => Ok(()),
        other => {
            anna(&["delete", "computer", "reserved", "--wait=false", "--ignore-not-found"], "").ok();
            Err(format!("{other:?}"))
        }
    });
    create("usual", &json!({})).expect("the default class is for everybody");
    anna(&["label", "computer", "free", "kept=yes"], "").expect("an existing computer keeps its class");
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "use-gpu"},
        "rules": [{"apiGroups": ["computer-operator.dev"], "resources": ["computerclasses"], "resourceNames": ["gpu"], "verbs": ["use"]}]});
    server.kubectl(&["create", "-f", "-"], &role.to_string()).unwrap();
    server.kubectl(&["create", "rolebinding", "use-gpu", "--clusterrole=use-gpu", "--user=anna", "-n", "team"], "").unwrap();
    eventually("the right is in force", || create("allowed", &gpu).map(|_| ()));
    refused("another class", create("other", &json!({"className": "huge"})), "may not use ComputerClass huge");
    helm.run(&["upgrade", "co", &chart, "-n", "ops", "--no-hooks"]).unwrap();
}

fn labels_are_reserved(server: &Server, anna: Send<'_>) {
    let labels = json!({"computer-operator.dev/computer-uid": "u"});
    for (kind, rest) in [
        ("Secret", json!({})),
        ("PersistentVolumeClaim", json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})),
    ] {
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "planted", "labels": labels}});
        rest.as_object().unwrap().iter().for_each(|(k, v)| object[k] = v.clone());
        refused(
            kind,
            anna(&["create", "-f", "-"], &object.to_string()),
            "are reserved for the operator: do not set them on your own objects",
        );
        object["metadata"]["labels"] = json!({"mine": "yes"});
        anna(&["create", "-f", "-"], &object.to_string()).unwrap();
        refused(kind, anna(&["label", kind, "planted", "computer-operator.dev/computer-uid=u"], ""), "are reserved for the operator");
        // Tenants may add labels to the operator's objects, but not remove the reserved ones.
        server.kubectl(&["label", kind, "planted", "-n", "team", "computer-operator.dev/computer-uid=u"], "").unwrap();
        anna(&["label", kind, "planted", "more=yes"], "").unwrap();
        refused(kind, anna(&["label", kind, "planted", "computer-operator.dev/computer-uid-"], ""), "are reserved for the operator");
    }
}

/// A tenant cannot create an object with a name that the operator may have generated, neither as a `name` nor through `generateName`. Similar names
/// are allowed.
fn generated_names_are_reserved(server: &Server, anna: Send<'_>) {
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
    for (kind, generated) in names.into_iter().chain([("Secret", format!("api-key-{hex}"))]) {
        let dry = |metadata| anna(&["create", "--dry-run=server", "-f", "-"], &object(kind, metadata));
        let prefix = &generated[..generated.len() - 5];
        refused(kind, dry(json!({"name": generated})), "are reserved for the operator, which generates");
        refused(kind, dry(json!({"generateName": prefix})), "are reserved for the operator, which generates");
        for (field, free) in
            [("name", prefix), ("name", &format!("{generated}0")), ("name", &format!("x{generated}")), ("generateName", &generated)]
        {
            dry(json!({field: free})).unwrap();
        }
        server
            .kubectl(&["create", "-n", "team", "--dry-run=server", "-f", "-"], &object(kind, json!({"name": generated})))
            .expect("a user with the verb release");
    }
}

/// Settings are bounded so that lists of sessions are; stored sessions with larger settings can still be changed and deleted.
fn session_settings_are_bounded(server: &Server, anna: Send<'_>) {
    let session = |name: &str, settings: &Value| {
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Session", "metadata": {"name": name, "namespace": "team"},
            "spec": {"computerName": "box", "computerUID": "u", "settings": settings}})
        .to_string()
    };
    // The largest settings that the HTTP API accepts, in the form that grows most when formatted.
    let most: Vec<u8> = vec![0; (32 * 1024 - 8) / 2];
    let (zeros, many) = (vec![0; 40_000], vec![json!({"k": [null, true, 1.5, "x"]}); 5_000]);
    anna(&["create", "-f", "-"], &session("usual", &json!({"a": most}))).expect("the largest settings of the HTTP API");
    anna(&["create", "-f", "-"], &session("odd", &json!({"n": null, "t": true, "f": 1.5, "d": [[[{}]]]}))).expect("settings of every type");
    // Within the 32 KiB of the HTTP API, but too large for the policy, which says why.
    let exponents = json!({"a": vec![1e300; 4_600]});
    refused("large exponents", anna(&["create", "-f", "-"], &session("large", &exponents)), "with numbers in full (1e300 has 301 digits)");
    for settings in [json!({"a": "x".repeat(70_000)}), json!({"a": zeros}), json!({"a": many})] {
        refused("large settings", anna(&["create", "-f", "-"], &session("large", &settings)), "spec.settings must not exceed 64 KiB");
        let patch = json!({"spec": {"settings": settings}}).to_string();
        refused(
            "grown",
            anna(&["patch", "session", "odd", "--type=merge", "--patch-file=/dev/stdin"], &patch),
            "spec.settings must not exceed 64 KiB",
        );
    }
    server.kubectl(&["delete", "validatingadmissionpolicybinding", "co-computer-operator-sessions"], "").unwrap();
    eventually("the policy is no longer in force", || {
        server.kubectl(&["create", "-f", "-"], &session("stored", &json!({"a": "x".repeat(70_000)}))).map(drop)
    });
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "co-computer-operator-sessions"},
        "spec": {"policyName": "co-computer-operator-sessions", "validationActions": ["Deny"]}});
    server.kubectl(&["create", "-f", "-"], &binding.to_string()).unwrap();
    eventually("the policy is in force again", || {
        match anna(&["create", "--dry-run=server", "-f", "-"], &session("again", &json!({"a": "x".repeat(70_000)}))) {
            Err(error) if error.contains("must not exceed 64 KiB") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    anna(&["patch", "session", "stored", "--type=merge", "-p", r#"{"spec":{"title":"t"}}"#], "").expect("a stored session can be changed");
    anna(&["delete", "session", "stored"], "").expect("a stored session can be deleted");
}

/// Who may erase says who asked: the tombstone repeats it. Holds and erasures are not aggregated to the roles of tenants.
fn an_erasure_names_its_requester(server: &Server) {
    let erasure = |by: &str| {
        let computer = json!({"namespace": "team", "name": "box", "uid": "11111111-2222-3333-4444-555555555555"});
        let spec = json!({"computer": computer, "requestedBy": by, "reason": "the owner has asked for it"});
        json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ArchiveErasure", "metadata": {"name": "e"}, "spec": spec})
            .to_string()
    };
    let create = |user: &str, by: &str| server.kubectl(&["create", "--dry-run=server", &format!("--as={user}"), "-f", "-"], &erasure(by));
    refused("a tenant", create("anna", "anna"), "cannot create resource \"archiveerasures\"");
    server.kubectl(&["create", "clusterrolebinding", "dora-erases", "--clusterrole=computer-operator-erase", "--user=dora"], "").unwrap();
    eventually("dora may erase", || create("dora", "dora").map(drop));
    refused("another's name", create("dora", "anna"), "spec.requestedBy must be your own user name, dora");
    let hold = json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "ArchiveHold", "metadata": {"name": "h"},
        "spec": {"namespaceUID": "11111111-2222-3333-4444-555555555555", "matter": "m", "reason": "because of case 7"}});
    let create = server.kubectl(&["create", "--dry-run=server", "--as=dora", "-f", "-"], &hold.to_string());
    refused("the right to erase", create, "cannot create resource \"archiveholds\"");
}

/// Only users who can create tokens of a `ServiceAccount` can create or rotate its `ApiKey`.
fn api_keys_require_the_right_to_create_tokens(server: &Server) {
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
    refused(
        "another's account",
        create("bert", "theirs", "root"),
        "the permission to create serviceaccounts/token for root in namespace team",
    );
    refused("no right to any", create("carl", "none", "own"), "the permission to create serviceaccounts/token for own in namespace team");
    let rotate = |user: &str| {
        server.kubectl(
            &["patch", "apikey", "mine", "-n", "team", &format!("--as={user}"), "--type=merge", "-p", r#"{"spec":{"rotation":"2"}}"#],
            "",
        )
    };
    refused("rotated by another user", rotate("carl"), "the permission to create serviceaccounts/token");
    rotate("bert").unwrap();
}
