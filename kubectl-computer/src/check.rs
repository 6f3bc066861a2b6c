//! `check`: what is installed, and which commands the caller has the rights for. It only asks.

use std::collections::BTreeMap;

use anyhow::Result;
use computer_operator_api::{GROUP, crds};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::ResourceExt as _;
use kube::api::ListParams;

use crate::cluster::{Answer, Cluster, USUAL_NAMESPACE, explained};
use crate::rights::{COMMANDS, Command, Right, Scope};
use crate::screen;
use crate::text::table;

/// Label of the chart's objects.
const CHART: &str = "app.kubernetes.io/name=computer-operator";
/// The version that this program was built with.
const VERSION: &str = "v1alpha1";

type Asked = BTreeMap<String, bool>;

fn key(right: &Right) -> String {
    let place = match right.scope {
        Scope::Namespace => "",
        Scope::Operator => " (operator)",
        Scope::Cluster => " (cluster)",
    };
    format!("{} {}{place}", right.verb, right.resource)
}

/// `yes`, `partly` or `no`, and what is missing.
fn verdict(command: &Command, asked: &Asked) -> (&'static str, String) {
    let missing = |rights: &[Right]| -> Vec<String> { rights.iter().map(key).filter(|key| asked.get(key) != Some(&true)).collect() };
    let (needs, uses) = (missing(command.needs), missing(command.uses));
    match (needs.is_empty(), uses.is_empty()) {
        (true, true) => ("yes", String::new()),
        (true, false) => ("partly", uses.join(", ")),
        (false, _) => ("NO", needs.join(", ")),
    }
}

fn rights_text(asked: &Asked) -> String {
    let mut rows = vec![["COMMAND", "ALLOWED", "MISSING"].map(str::to_owned).to_vec()];
    for command in COMMANDS {
        let (word, missing) = verdict(command, asked);
        rows.push(vec![command.name.to_owned(), word.to_owned(), missing]);
    }
    format!(
        "{}\npartly: the command works, and shows or does less. (operator): in the namespace of the operator. (cluster): in the cluster.\nAsk an admin: the ClusterRoles view, edit and admin contain the rights in a namespace; computer-operator-classes, -receipts\nand -override contain the others.\n",
        table(&rows)
    )
}

/// The kinds that the cluster serves.
fn kinds_text(served: &[String]) -> String {
    let mut rows = vec![["KIND", "SERVED"].map(str::to_owned).to_vec()];
    for crd in crds::all() {
        let plural = crd.spec.names.plural;
        let state = if served.contains(&plural) { VERSION } else { "NO: install the chart" };
        rows.push(vec![crd.spec.names.kind, state.to_owned()]);
    }
    table(&rows)
}

fn policies_text(policies: &Answer<Vec<ValidatingAdmissionPolicy>>, bindings: &Answer<Vec<ValidatingAdmissionPolicyBinding>>) -> String {
    let (policies, bindings) = match (policies, bindings) {
        (Answer::Found(policies), Answer::Found(bindings)) => (policies, bindings),
        (Answer::Denied(right), _) | (_, Answer::Denied(right)) => {
            return format!("Admission policies: not known, you have no right to {right}\n");
        }
        _ => return "Admission policies: not served by this cluster\n".to_owned(),
    };
    if policies.is_empty() {
        return "Admission policies: NONE. Nothing prevents tenants from changing the operator's objects\n".to_owned();
    }
    let bound = |policy: &ValidatingAdmissionPolicy| {
        bindings.iter().any(|b| b.spec.as_ref().and_then(|spec| spec.policy_name.as_deref()) == Some(policy.name_any().as_str()))
    };
    let mut rows = vec![["ADMISSION POLICY", "BOUND"].map(str::to_owned).to_vec()];
    rows.extend(policies.iter().map(|policy| vec![policy.name_any(), if bound(policy) { "yes" } else { "NO" }.to_owned()]));
    table(&rows)
}

async fn ask(cluster: &Cluster) -> Result<Asked> {
    let operator = cluster.global.operator_namespace.clone().unwrap_or_else(|| USUAL_NAMESPACE.to_owned());
    let mut asked = Asked::new();
    for right in COMMANDS.iter().flat_map(|command| command.needs.iter().chain(command.uses)) {
        let std::collections::btree_map::Entry::Vacant(entry) = asked.entry(key(right)) else { continue };
        let namespace = match right.scope {
            Scope::Namespace => Some(cluster.namespace.as_str()),
            Scope::Operator => Some(operator.as_str()),
            Scope::Cluster => None,
        };
        entry.insert(cluster.may(right.verb, right.group, right.resource, namespace).await?);
    }
    Ok(asked)
}

/// The command.
///
/// # Errors
/// When the API server does not answer.
pub async fn run(cluster: &Cluster) -> Result<()> {
    let version = cluster.client.apiserver_version().await.map_err(explained)?;
    screen::out(&format!("kubectl-computer {}, Kubernetes {}", env!("CARGO_PKG_VERSION"), version.git_version));
    let served = match cluster.client.list_api_group_resources(&format!("{GROUP}/{VERSION}")).await {
        Ok(list) => list.resources.into_iter().map(|resource| resource.name).collect(),
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(explained(error)),
    };
    screen::out(&format!("\n{}", kinds_text(&served)));
    let policies = cluster.list(None, ListParams::default().labels(CHART)).await?;
    let bindings = cluster.list(None, ListParams::default()).await?;
    screen::out(&format!("\n{}", policies_text(&policies, &bindings)));
    screen::out(&format!("\nYour rights in namespace {}\n\n{}", cluster.namespace, rights_text(&ask(cluster).await?)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_allowed_partly_when_only_what_it_needs_is() {
        let all: Asked = COMMANDS.iter().flat_map(|c| c.needs.iter().chain(c.uses)).map(|right| (key(right), true)).collect();
        let why = &COMMANDS[0];
        assert_eq!(verdict(why, &all).0, "yes");
        let needs: Asked = why.needs.iter().map(|right| (key(right), true)).collect();
        let (word, missing) = verdict(why, &needs);
        assert_eq!(word, "partly");
        assert!(missing.contains("get computerrecords (operator)"), "{missing}");
        assert_eq!(verdict(why, &Asked::new()).0, "NO");
        assert!(rights_text(&all).contains("override"));
    }

    #[test]
    fn a_kind_that_is_not_served_is_named() {
        let text = kinds_text(&["computers".to_owned()]);
        assert!(text.contains("ComputerRecord") && text.contains("NO: install the chart") && text.contains("v1alpha1"), "{text}");
    }
}
