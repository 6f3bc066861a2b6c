//! `computer-operator uninstall-check`: refuses while there are Computers, `ApiKeys` or unfinished deletions. A courtesy to whoever uninstalls; the
//! promises do not hang on it: an operator that is installed again finishes what it finds.

use std::process::ExitCode;

use kube::Client;
use kube::api::Api;
use kube::core::DynamicObject;

use crate::resources::{ComputerRecord, RecordPhase};
use crate::runtime::client::{self, CallError, ErrorClass, classify};

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

/// Objects that are named one by one at most; more are counted. Records are looked through in pages of it.
const PAGE: u32 = 500;

/// Runs `uninstall-check`: 0 nothing is left, 1 something is, 2 not known.
pub async fn run(args: Args) -> ExitCode {
    match look(&args.namespace).await {
        Ok(None) => {
            println!("no computer, no ApiKey and no unfinished deletion is left");
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
    let computers = left(&client, "Computer", "computers").await?;
    let keys = left(&client, "ApiKey", "apikeys").await?;
    let api: Api<ComputerRecord> = Api::namespaced(client, namespace);
    // Receipts stay for weeks: there may be far more of them than fit into a hook's memory.
    let unfinished = match client::list(&api, PAGE, |r| (r.spec.state.phase != RecordPhase::Released).then_some(r)).await {
        Ok(unfinished) => unfinished,
        Err(error) if not_installed(&error) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    Ok(refusal(&computers, &keys, &unfinished))
}

/// Objects of a kind: the first ones, and how many there are.
#[derive(Default)]
struct Left {
    first: Vec<DynamicObject>,
    count: usize,
}

async fn left(client: &Client, kind: &str, plural: &str) -> Result<Left, CallError> {
    match super::list(client, kind, plural, PAGE).await {
        Ok(list) => {
            let more = list.metadata.remaining_item_count.unwrap_or(0);
            Ok(Left { count: list.items.len() + usize::try_from(more).unwrap_or(0), first: list.items })
        }
        Err(error) if not_installed(&error) => Ok(Left::default()),
        Err(error) => Err(error),
    }
}

/// The kind itself is unknown to the cluster: then there is none of it. The API server says so with a 404 of its own kind.
fn not_installed(error: &CallError) -> bool {
    let code = if let CallError::Kube(kube::Error::Api(status)) = error { status.code } else { 0 };
    code == 404 && matches!(classify(error), ErrorClass::NotFound | ErrorClass::Transient)
}

/// Why not, and what to do; `None`: nothing is left.
fn refusal(computers: &Left, keys: &Left, unfinished: &[ComputerRecord]) -> Option<String> {
    let what = match (computers.count, unfinished.len(), keys.count) {
        (0, 0, 0) => return None,
        (0, 0, keys_left) => format!(
            "{keys_left} ApiKeys are left: {}. Delete them first (kubectl delete apikey NAME -n NAMESPACE): without the operator nothing takes \
             their finalizer off, and their namespaces could not be deleted",
            super::some(&keys.first)
        ),
        (0, records, _) => format!("{records} deletions are not finished (kubectl get computerrecords -A): wait for them"),
        (count, ..) => format!(
            "{count} computers are left: {}. Delete them first (kubectl delete computer NAME -n NAMESPACE; of one that is being deleted already, kubectl describe says what it \
             waits for): without the operator nothing archives their sessions",
            super::some(&computers.first)
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
        let none = Left::default;
        assert_eq!(refusal(&none(), &none(), &[]), None);
        let text = refusal(&Left { first: vec![computer.clone(); 12], count: 512 }, &none(), &[]).unwrap();
        assert!(text.contains("512 computers are left: team/box, ") && text.contains("…") && text.contains("--no-hooks"), "{text}");
        assert!(back(Some(&["co".into(), "3".into()]), "ops").contains("helm rollback co 3 -n ops"));
        let record: ComputerRecord =
            serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": {"namespace": "t", "computer": "c"}})).unwrap();
        assert!(refusal(&none(), &none(), &[record]).unwrap().contains("1 deletions are not finished"));
        // An ApiKey has a finalizer, too: without an operator it would hold its namespace for ever.
        let text = refusal(&none(), &Left { first: vec![computer], count: 1 }, &[]).unwrap();
        assert!(text.contains("1 ApiKeys are left: team/box. Delete them first"), "{text}");
    }

    #[test]
    fn only_a_kind_that_is_unknown_is_no_computer() {
        let error = |code: u16| CallError::Kube(kube::Error::Api(Box::new(kube::core::Status { code, ..Default::default() })));
        assert!(not_installed(&error(404)));
        assert!(!not_installed(&error(403)) && !not_installed(&error(503)) && !not_installed(&CallError::Timeout));
    }
}
