//! What a machine is called inside, and where `kubectl exec` starts.

use serde_json::{Value, json};

use super::json_fields::fill;
use super::{HOME, literal};
use crate::computer::children;

/// The host name is the computer's name, unless the template says otherwise. `kubectl exec` starts in the home where the template names the
/// program by its path. It is not part of what the
/// class asks for, so it is no drift: an existing pod is kept, and the next one is created with it.
pub(super) fn identify(spec: &mut Value, computer: &str) {
    let unset = |field: &str| spec.get(field).is_none_or(|value| value.is_null() || *value == json!(false));
    // With `setHostnameAsFQDN` a longer name could exceed the 64 characters that the kubelet allows.
    if unset("hostnameOverride")
        && unset("setHostnameAsFQDN")
        && let Some(spec) = spec.as_object_mut()
    {
        fill(spec, "hostname", children::host_name(computer));
    }
    let machine = &mut spec["containers"][0];
    // A program of the image, or a relative one, may need the image's own folder.
    let command = machine["command"][0].as_str();
    if !command.is_some_and(|command| command.starts_with('/')) {
        return;
    }
    let named = |of: &Value, list: &str, name: &str, field: &str| -> Option<Value> {
        of[list].as_array()?.iter().find(|entry| entry["name"] == name)?.get(field).cloned()
    };
    let Some(Value::String(home)) = named(machine, "volumeMounts", HOME, "mountPath") else { return };
    // A template that sets HOME itself may have its home elsewhere.
    if named(machine, "env", "HOME", "value") == Some(json!(literal(&home)))
        && let Some(machine) = machine.as_object_mut()
    {
        fill(machine, "workingDir", home);
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;
    use crate::computer::machine_pod::desired;
    use crate::resources::{ComputerClass, ComputerSpec};

    #[test]
    fn a_template_decides_about_host_name_and_working_directory() {
        let spec = |template: serde_json::Value| {
            let class: ComputerClass =
                serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {"podTemplate": {"spec": template}}})).expect("a class");
            let mut pod = desired(&class, &ComputerSpec::default(), "home").expect("a pod");
            identify(&mut pod["spec"], "team.box");
            (pod["spec"]["hostname"].clone(), pod["spec"]["containers"][0]["workingDir"].clone())
        };
        let with = |field: &str, value: serde_json::Value| json!({"containers": [{"name": "a", "image": "i", "command": ["/bin/run"], field: value}]});
        assert_eq!(spec(with("tty", json!(true))), (json!("team-box"), json!("/home/user")));
        assert_eq!(spec(with("workingDir", json!("/app"))).1, "/app");
        assert_eq!(spec(with("env", json!([{"name": "HOME", "value": "/root"}]))).1, json!(null), "its home is elsewhere");
        let mut named = with("tty", json!(true));
        named["hostname"] = json!("dev1");
        assert_eq!(spec(named.clone()).0, "dev1");
        named = with("tty", json!(true));
        named["hostnameOverride"] = json!("dev1.example");
        assert_eq!(spec(named).0, json!(null));
        named = with("tty", json!(true));
        named["setHostnameAsFQDN"] = json!(true);
        assert_eq!(spec(named).0, json!(null), "the whole name may have at most 64 characters");
        for command in [json!(null), json!(["./start.sh"]), json!(["node", "server.js"])] {
            assert_eq!(spec(with("command", command.clone())).1, json!(null), "{command} may need the image's folder");
        }
    }
}
