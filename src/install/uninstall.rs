//! `computer-operator uninstall-check`: refuses while there are Computers or unfinished deletions. A courtesy to whoever uninstalls; the
//! promises do not hang on it: an operator that is installed again finishes what it finds.

use std::process::ExitCode;

use kube::api::{Api, ListParams};
use kube::core::DynamicObject;

use crate::resources::{ComputerRecord, RecordPhase};
use crate::runtime::client::{self, CallError, ErrorClass, call, classify};

/// Arguments of `uninstall-check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Namespace of the operator.
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system")]
    namespace: String,
    /// Helm's release and revision, for the message: a refused uninstallation leaves it marked as uninstalling.
    #[arg(long, num_args = 2, value_names = ["RELEASE", "REVISION"])]
    release: Option<Vec<String>>,
}

/// Computers that are named one by one at most; more are counted.
const PAGE: u32 = 500;

/// Runs `uninstall-check`: 0 nothing is left, 1 something is, 2 not known.
pub async fn run(args: Args) -> ExitCode {
    match look(&args.namespace).await {
        Ok(None) => {
            println!("no computer and no unfinished deletion is left");
            ExitCode::SUCCESS
        }
        Ok(Some(left)) => {
            eprintln!("{left}{}", back(args.release.as_deref(), &args.namespace));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!(
                "computer-operator is not uninstalled: what is left could not be found out: {error:#}. `helm uninstall --no-hooks` does not ask"
            );
            ExitCode::from(2)
        }
    }
}

/// Helm marks a release before it asks, and upgrades none that is marked.
fn back(release: Option<&[String]>, namespace: &str) -> String {
    match release {
        Some([name, revision]) => format!(
            ". Nothing was changed, but Helm lists the release as uninstalling and will not upgrade it: helm rollback {name} {revision} -n {namespace} brings it back"
        ),
        _ => String::new(),
    }
}

async fn look(namespace: &str) -> anyhow::Result<Option<String>> {
    let client = client::connect().await?;
    let computers = match super::list(&client, "Computer", "computers", PAGE).await {
        Ok(list) => (list.metadata.remaining_item_count.unwrap_or(0), list.items),
        Err(error) if not_installed(&error) => (0, Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let api: Api<ComputerRecord> = Api::namespaced(client, namespace);
    let records = match call(api.list(&ListParams::default())).await {
        Ok(list) => list.items,
        Err(error) if not_installed(&error) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let unfinished: Vec<_> = records.into_iter().filter(|r| r.spec.state.phase != RecordPhase::Released).collect();
    Ok(refusal(&computers.1, computers.0, &unfinished))
}

/// The kind itself is unknown to the cluster: then there is none of it. The API server says so with a 404 of its own kind.
fn not_installed(error: &CallError) -> bool {
    let code = if let CallError::Kube(kube::Error::Api(status)) = error { status.code } else { 0 };
    code == 404 && matches!(classify(error), ErrorClass::NotFound | ErrorClass::Transient)
}

/// Why not, and what to do; `None`: nothing is left.
fn refusal(computers: &[DynamicObject], more: i64, unfinished: &[ComputerRecord]) -> Option<String> {
    let count = computers.len() + usize::try_from(more).unwrap_or(0);
    let what = match (count, unfinished.len()) {
        (0, 0) => return None,
        (0, records) => format!("{records} deletions are not finished (kubectl get computerrecords -A): wait for them"),
        (count, _) => format!(
            "{count} computers are left: {}. Delete them first (kubectl delete computer NAME -n NAMESPACE): without the operator nothing archives their sessions",
            super::some(computers)
        ),
    };
    Some(format!(
        "computer-operator is not uninstalled: {what}. To uninstall all the same: helm uninstall --no-hooks. Then keys of deleted computers stay dead, \
         volumes are kept, deletions wait, and an operator that is installed again finishes them"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_is_named_and_what_to_do() {
        let computer: DynamicObject = serde_json::from_value(json!({"metadata": {"name": "box", "namespace": "team"}})).unwrap();
        assert_eq!(refusal(&[], 0, &[]), None);
        let text = refusal(&vec![computer; 12], 500, &[]).unwrap();
        assert!(text.contains("512 computers are left: team/box, ") && text.contains("…") && text.contains("--no-hooks"), "{text}");
        assert!(back(Some(&["co".into(), "3".into()]), "ops").contains("helm rollback co 3 -n ops"));
        let record: ComputerRecord =
            serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": {"namespace": "t", "computer": "c"}})).unwrap();
        assert!(refusal(&[], 0, &[record]).unwrap().contains("1 deletions are not finished"));
    }

    #[test]
    fn only_a_kind_that_is_unknown_is_no_computer() {
        let error = |code: u16| CallError::Kube(kube::Error::Api(Box::new(kube::core::Status { code, ..Default::default() })));
        assert!(not_installed(&error(404)));
        assert!(!not_installed(&error(403)) && !not_installed(&error(503)) && !not_installed(&CallError::Timeout));
    }
}
