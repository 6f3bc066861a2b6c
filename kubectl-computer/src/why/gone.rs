//! `why` for a Computer that is gone, or that the caller may not see: its record says how far the deletion is, and afterwards it is the receipt.

use computer_operator_api::reasons::Reason;
use computer_operator_api::steps::{DeletionStep, Sequence};
use computer_operator_api::{ComputerRecord, Deletion, RecordPhase};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use super::{Verdict, Why, ago, blocker, commands, step_in_words};
use crate::cluster::{Answer, when};
use crate::observe::{Observed, is_uid};
use crate::text::{bytes, count, quoted, span};

/// The Computer does not exist.
pub fn explain(observed: &Observed) -> Why {
    match &observed.record {
        Answer::Found(record) => of_record(observed, record),
        Answer::Absent => {
            let headline = "There is no such Computer, and no record of one.".to_owned();
            let mut why = Why::new(Verdict::Unknown, asked(observed), headline);
            why.fact("Means", "It never existed, or it was deleted more than 30 days ago: the record is deleted then, and the receipt stays in the archive store.");
            why.fact("To do", "check the name and the namespace (-n).");
            why.commands = vec![
                commands::copy("all computers that you may see", "kubectl computer list -A"),
                commands::copy(
                    "for a cluster admin: the receipt in the archive store, by UID",
                    commands::in_operator(observed, "archives receipt UID"),
                ),
            ];
            why
        }
        Answer::Denied(right) => {
            let headline = "There is no such Computer. Only its ComputerRecord shows whether it was deleted and how far the deletion is, and you may not read it.";
            let mut why = Why::new(Verdict::Unknown, asked(observed), headline.to_owned());
            ask(&mut why, observed, right);
            why
        }
    }
}

/// The caller may not see the Computer, but perhaps its record.
pub fn unreadable(observed: &Observed, right: &str) -> Why {
    match &observed.record {
        Answer::Found(record) if record.spec.state.deletion.is_some() => of_record(observed, record),
        Answer::Denied(record) if is_uid(&observed.asked) => {
            let headline = "With your rights no Computer can be found by its UID.";
            let mut why = Why::new(Verdict::Unknown, asked(observed), headline.to_owned());
            why.fact("To do", "use its name and its namespace (-n).");
            ask(&mut why, observed, record);
            why
        }
        _ => denied(observed, right),
    }
}

fn denied(observed: &Observed, right: &str) -> Why {
    let mut why = Why::new(Verdict::Unknown, asked(observed), "You may not read this Computer.".to_owned());
    why.fact("Missing", format!("the right to {right}"));
    why.fact("Ask", "an admin of the namespace: the ClusterRole view, edit or admin in the namespace contains it.");
    why
}

fn asked(observed: &Observed) -> String {
    if is_uid(&observed.asked) {
        format!("Computer with UID {}", observed.asked)
    } else {
        format!("Computer {}/{}", observed.namespace, observed.asked)
    }
}

/// Whom to ask for a record.
fn ask(why: &mut Why, observed: &Observed, right: &str) {
    why.fact("Missing", format!("the right to {right}"));
    why.fact("Ask", "a cluster admin, to run the first command for you, or to let you read the records of all teams with the second.");
    let asked = quoted(&observed.asked);
    let namespace = if is_uid(&observed.asked) { String::new() } else { format!(" -n {}", quoted(&observed.namespace)) };
    why.commands = vec![
        commands::copy("for a cluster admin", format!("kubectl computer why {asked}{namespace}")),
        commands::copy(
            "for a cluster admin: the role is installed by the chart",
            format!(
                "kubectl create rolebinding receipts -n {} --clusterrole=computer-operator-receipts --user=USER",
                quoted(&observed.operator_namespace)
            ),
        ),
    ];
}

fn of_record(observed: &Observed, record: &ComputerRecord) -> Why {
    let what = if observed.computer == Answer::Absent { "the Computer is gone, this is its record" } else { "this is its record" };
    let subject = format!("Computer {}/{} ({}): {what}", record.spec.namespace, record.spec.computer, record.name_any());
    let Some(deletion) = &record.spec.state.deletion else { return without_deletion(observed, subject) };
    if let Some(receipt) = &deletion.receipt {
        let time = Time(receipt.at.0);
        let rest = if record.spec.state.phase == RecordPhase::Released { "" } else { " The operator is about to complete the record." };
        let headline =
            format!("Deleted {} ago, on {}: the deletion is complete.{rest}", span(ago(observed.now, &time)), seconds(receipt.at.0));
        let mut why = Why::new(Verdict::Deleted, subject, headline);
        outcome(&mut why, deletion);
        why.commands = vec![commands::copy("the receipt", format!("kubectl computer receipt {}", record.name_any()))];
        return why;
    }
    in_progress(observed, record, deletion, subject)
}

fn seconds(time: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// What the deletion has done.
fn outcome(why: &mut Why, deletion: &Deletion) {
    why.fact("Cause", deletion.cause.as_str());
    for step in DeletionStep::ALL {
        if let Some(done) = deletion.outcome(*step) {
            why.fact(step.id(), format!("{}: {}", done.result.status().as_str(), done.detail));
        }
    }
    if let Some(archive) = &deletion.archive {
        let lost = if archive.problems > 0 {
            format!(", WITHOUT {} that the manifest names", count(archive.problems, "file"))
        } else {
            String::new()
        };
        why.fact(
            "Archive",
            format!("{}, {}{lost}, manifest sha256:{}", count(archive.sessions, "session"), bytes(archive.bytes), archive.manifest_digest),
        );
    }
    if let Some(receipt) = &deletion.receipt {
        let place = receipt
            .store_key
            .as_ref()
            .map_or_else(|| " (not in the archive store)".to_owned(), |key| format!(", in the archive store as {key}"));
        why.fact("Receipt", format!("sha256:{}{place}", receipt.digest));
    }
}

/// What was reported since the present step began, one event for each reason, the newest first. The operator repeats a reason only after 50
/// minutes, so the newest one is not always the one that lasts.
fn warnings(observed: &Observed, began: jiff::Timestamp) -> Vec<&Event> {
    let mut found: Vec<&Event> = Vec::new();
    for event in observed.record_events.iter().rev().filter(|e| e.type_.as_deref() == Some("Warning") && when(e) >= Some(began)) {
        if !found.iter().any(|known| known.reason == event.reason) {
            found.push(event);
        }
    }
    found
}

/// Events say that it is blocked.
fn warned(observed: &Observed, event: &Event, others: &[&Event], subject: String, rest: &str) -> Why {
    let spelling = event.reason.clone().unwrap_or_default();
    let seen =
        |event: &Event| when(event).map_or_else(String::new, |time| format!(", reported {} ago", span(ago(observed.now, &Time(time)))));
    let mut why = Why::new(Verdict::Blocked, subject, format!("BLOCKED: {spelling}{}. {rest}", seen(event)));
    blocker(&mut why, &spelling, event.message.as_deref().unwrap_or_default());
    for other in others {
        let spelling = other.reason.clone().unwrap_or_default();
        why.fact("Or still", format!("{spelling}{}: {}", seen(other), other.message.clone().unwrap_or_default()));
    }
    why
}

/// The deletion continues without a Computer.
fn in_progress(observed: &Observed, record: &ComputerRecord, deletion: &Deletion, subject: String) -> Why {
    let current = DeletionStep::ALL.iter().copied().find(|step| deletion.outcome(*step).is_none()).unwrap_or(DeletionStep::WriteReceipt);
    let began = deletion.started.get(current).map_or(deletion.deleted_at.0, |time| time.0);
    let whole = span(ago(observed.now, &deletion.deleted_at));
    let how = if deletion.handed_off {
        "The namespace was released, and the deletion continues from the record"
    } else {
        "The deletion continues from the record"
    };
    let warnings = warnings(observed, began);
    let overdue = current.deadline(&record.spec.snapshot.deadlines).filter(|deadline| ago(observed.now, &Time(began)) > *deadline);
    let now = format!("{}, has been running for {}", step_in_words(current.id()), span(ago(observed.now, &Time(began))));
    let whole = format!("Its deletion began {whole} ago");
    let mut why = match (warnings.split_first(), overdue) {
        (Some((newest, others)), _) => warned(observed, newest, others, subject, &format!("{whole}; {now}.")),
        (None, Some(deadline)) => {
            let headline = format!("OVERDUE: the step has exceeded its deadline of {}. {whole}: {now}.", span(deadline));
            let mut why = Why::new(Verdict::Blocked, subject, headline);
            why.fact("Means", "No event says why: events are deleted after an hour, and are repeated after 50 minutes.");
            why.fact("To do", "see the operator's log.");
            why
        }
        (None, None) => {
            let mut why = Why::new(Verdict::Working, subject, format!("Nothing is wrong. {whole}: {now}."));
            why.fact("To do", "wait.");
            why
        }
    };
    why.fact("State", format!("{how}."));
    outcome(&mut why, deletion);
    let mut reasons: Vec<Option<String>> = warnings.iter().map(|event| event.reason.clone()).collect();
    if reasons.is_empty() {
        reasons.push(overdue.map(|_| Reason::ApiServerUnavailable.to_string()));
    }
    let subject = commands::Subject::of_record(record);
    for reason in reasons {
        let more = commands::of(observed, &subject, reason.as_deref(), current.id());
        why.commands.extend(more.into_iter().filter(|new| !why.commands.contains(new)).collect::<Vec<_>>());
    }
    why
}

/// The Computer is gone, and its record does not know.
fn without_deletion(observed: &Observed, subject: String) -> Why {
    let mut why =
        Why::new(Verdict::Blocked, subject, "BLOCKED: the Computer is gone, and the operator has not begun its deletion.".to_owned());
    why.fact(
        "Means",
        "Its finalizer was removed. The operator deletes what remains as soon as it runs. Until then pod and volume are kept.",
    );
    why.fact("To do", "wait some seconds. If it stays so, check the operator.");
    why.commands = commands::operator(observed);
    why
}
