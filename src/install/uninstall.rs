//! `computer-operator uninstall-check`: fails while Computers, `ApiKeys` or unfinished deletions exist. It is a convenience; no promise depends on it,
//! because a new installation finishes every deletion.

use std::process::ExitCode;

use kube::Client;
use kube::api::Api;
use kube::core::DynamicObject;

use crate::resources::{ComputerRecord, RecordPhase};
use crate::runtime::client::{self, CallError, ErrorClass, classify};

/// Arguments of `uninstall-check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Namespace of the operator
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system")]
    namespace: String,
    /// Release and revision of Helm, for the message: a rejected uninstall leaves the release marked as uninstalling
    #[arg(long, num_args = 2, value_names = ["RELEASE", "REVISION"])]
    release: Option<Vec<String>>,
}

/// Page size of the lists. Of Computers and `ApiKeys` only the first page is read; the API server reports how many more there are.
const PAGE: u32 = 500;

/// Runs `uninstall-check`. Exit code 0: nothing remains; 1: something remains; 2: the check failed.
pub async fn run(args: Args) -> ExitCode {
    match look(&args.namespace).await {
        Ok(None) => {
            println!("no Computers, ApiKeys or unfinished deletions remain");
            ExitCode::SUCCESS
        }
        Ok(Some(left)) => {
            eprintln!("{left}{}", rollback_hint(args.release.as_deref(), &args.namespace));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!(
                "computer-operator was not uninstalled: cannot list the remaining Computers, ApiKeys and deletions: {error:#}. To skip this check: helm uninstall --no-hooks{}",
                rollback_hint(args.release.as_deref(), &args.namespace)
            );
            ExitCode::from(2)
        }
    }
}

/// Helm marks a release as uninstalling before it runs the hook, and does not upgrade a marked release.
fn rollback_hint(release: Option<&[String]>, namespace: &str) -> String {
    match release {
        Some([name, revision]) => format!(
            ". Nothing was changed, but Helm has marked the release as uninstalling and will not upgrade it. To restore it: helm rollback {name} {revision} -n {namespace}"
        ),
        _ => String::new(),
    }
}

async fn look(namespace: &str) -> anyhow::Result<Option<String>> {
    let client = client::connect().await?;
    let computers = left(&client, "Computer", "computers").await?;
    let keys = left(&client, "ApiKey", "apikeys").await?;
    let api: Api<ComputerRecord> = Api::namespaced(client, namespace);
    // Released records are kept for weeks, so there may be more of them than fit into the hook's memory.
    let unfinished = match client::list(&api, PAGE, |r| (r.spec.state.phase != RecordPhase::Released).then_some(r)).await {
        Ok(unfinished) => unfinished,
        Err(error) if not_installed(&error) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    Ok(refusal(&computers, &keys, &unfinished))
}

/// The remaining objects of a kind: the first page and the total count.
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

/// Whether the cluster does not serve the kind, so that no object of it can exist. The API server then responds with 404.
fn not_installed(error: &CallError) -> bool {
    let code = if let CallError::Kube(kube::Error::Api(status)) = error { status.code } else { 0 };
    code == 404 && matches!(classify(error), ErrorClass::NotFound | ErrorClass::Transient)
}

/// Why the uninstall is rejected and what to do; `None` if nothing remains.
fn refusal(computers: &Left, keys: &Left, unfinished: &[ComputerRecord]) -> Option<String> {
    let what = match (computers.count, unfinished.len(), keys.count) {
        (0, 0, 0) => return None,
        (0, 0, keys_left) => format!(
            "{keys_left} ApiKeys remain: {}. Delete them first (kubectl delete apikey NAME -n NAMESPACE): without the operator nothing removes \
             their finalizer, so their namespaces could not be deleted",
            super::some(&keys.first)
        ),
        (0, records, _) => format!("{records} deletions are not finished. Wait for them (kubectl get computerrecords -A)"),
        (count, ..) => format!(
            "{count} Computers remain: {}. Delete them first (kubectl delete computer NAME -n NAMESPACE), because without the operator nothing \
             archives their sessions. If a Computer is already being deleted, kubectl describe computer NAME -n NAMESPACE shows what it is waiting for",
            super::some(&computers.first)
        ),
    };
    Some(format!(
        "computer-operator was not uninstalled: {what}. To uninstall anyway: helm uninstall --no-hooks. Keys of deleted computers then stay revoked, \
         volumes are kept, and a new installation finishes the deletions"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn remaining_objects_are_named_with_what_to_do() {
        let computer: DynamicObject = serde_json::from_value(json!({"metadata": {"name": "box", "namespace": "team"}})).unwrap();
        let none = Left::default;
        assert_eq!(refusal(&none(), &none(), &[]), None);
        let text = refusal(&Left { first: vec![computer.clone(); 12], count: 512 }, &none(), &[]).unwrap();
        assert!(text.contains("512 Computers remain: team/box, ") && text.contains("…") && text.contains("--no-hooks"), "{text}");
        assert!(rollback_hint(Some(&["co".into(), "3".into()]), "ops").contains("helm rollback co 3 -n ops"));
        let record: ComputerRecord =
            serde_json::from_value(json!({"metadata": {"name": "u"}, "spec": {"namespace": "t", "computer": "c"}})).unwrap();
        assert!(refusal(&none(), &none(), &[record]).unwrap().contains("1 deletions are not finished"));
        // An ApiKey also has a finalizer: without an operator it would block the deletion of its namespace forever.
        let text = refusal(&none(), &Left { first: vec![computer], count: 1 }, &[]).unwrap();
        assert!(text.contains("1 ApiKeys remain: team/box. Delete them first"), "{text}");
    }

    #[test]
    fn only_an_unknown_kind_proves_that_no_object_exists() {
        let error = |code: u16| CallError::Kube(kube::Error::Api(Box::new(kube::core::Status { code, ..Default::default() })));
        assert!(not_installed(&error(404)));
        assert!(!not_installed(&error(403)) && !not_installed(&error(503)) && !not_installed(&CallError::Timeout));
    }
}
