//! `override`: an admin's decision about one stuck deletion. It shows what is given up before it asks, and names the computer by its UID.

use anyhow::{Result, bail, ensure};
use computer_operator_api::{DeletionOverride, DeletionOverrideSpec, OverrideTarget, SkippableStep};
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};

use crate::cluster::{Answer, Cluster, explained};
use crate::observe::{Observed, is_uid};
use crate::screen;
use crate::text::{labelled, quoted};

/// The name of a step in a `DeletionOverride`.
pub fn step_name(step: SkippableStep) -> &'static str {
    match step {
        SkippableStep::StopPods => "stop-pods",
        SkippableStep::ArchiveSessions => "archive-sessions",
        SkippableStep::UnreadableFiles => "unreadable-files",
        SkippableStep::DeleteVolumes => "delete-volumes",
        SkippableStep::WriteReceipt => "write-receipt",
    }
}

/// What is given up with a step.
pub fn given_up(step: SkippableStep) -> &'static str {
    match step {
        SkippableStep::StopPods => {
            "the proof that nothing writes to the home volume any more. If a container still runs on a lost node, what it writes is not in the archive."
        }
        SkippableStep::ArchiveSessions => {
            "ALL sessions of this computer. They are not archived, and they are destroyed with the volume if its reclaim policy is Delete."
        }
        SkippableStep::UnreadableFiles => {
            "the files that the machine's user cannot read. They are destroyed with the volume; the manifest names them. All other files are archived."
        }
        SkippableStep::DeleteVolumes => {
            "the deletion of the home volume. It stays with the reclaim policy Retain, costs money, and is yours to delete; the receipt names it."
        }
        SkippableStep::WriteReceipt => {
            "the copy of the receipt in the archive store. The record keeps the receipt for 30 days; then there is none."
        }
    }
}

/// The text before the question.
pub fn warning(target: &OverrideTarget, skip: &[SkippableStep], deleting: Option<bool>) -> String {
    let mut text = format!("DeletionOverride for Computer {}/{} ({})\n\nYou give up:\n", target.namespace, target.name, target.uid);
    let width = skip.iter().map(|step| step_name(*step).len()).max().unwrap_or(0);
    for step in skip {
        text.push_str(&labelled(&format!("  {}", step_name(*step)), width + 2, given_up(*step)));
    }
    text.push_str(
        "\nThe key is revoked in any case. An override does not remove finalizers of other controllers. The receipt repeats your reason.\n",
    );
    if deleting == Some(false) {
        text.push_str("The Computer is not being deleted. The override takes effect when it is.\n");
    }
    text
}

/// The object.
pub fn object(target: &OverrideTarget, skip: &[SkippableStep], reason: &str) -> DeletionOverride {
    let spec = DeletionOverrideSpec { computer: target.clone(), skip: skip.to_vec(), reason: reason.to_owned() };
    let mut object = DeletionOverride::new("", spec);
    object.metadata.name = None;
    // The name of a Computer may be as long as an object's name.
    let short: String = target.name.chars().take(40).collect();
    object.metadata.generate_name = Some(format!("{}-", short.trim_end_matches(['-', '.'])));
    object
}

/// The computer that is meant. A user who may not read it can name it completely by a UID only if its record can be read.
fn target(observed: &Observed) -> Result<(OverrideTarget, Option<bool>)> {
    if let Answer::Found(computer) = &observed.computer {
        let target = OverrideTarget {
            namespace: computer.namespace().unwrap_or_default(),
            name: computer.name_any(),
            uid: computer.uid().unwrap_or_default(),
        };
        return Ok((target, Some(computer.metadata.deletion_timestamp.is_some())));
    }
    match &observed.record {
        Answer::Found(record) => {
            let complete = record.spec.state.deletion.as_ref().is_some_and(|deletion| deletion.receipt.is_some());
            ensure!(
                !complete,
                "the deletion of Computer {}/{} is complete: there is nothing to skip",
                record.spec.namespace,
                record.spec.computer
            );
            let target =
                OverrideTarget { namespace: record.spec.namespace.clone(), name: record.spec.computer.clone(), uid: record.name_any() };
            Ok((target, Some(record.spec.state.deletion.is_some())))
        }
        Answer::Absent => {
            bail!("there is no Computer {}, and no record of one: see `kubectl computer why {}`", observed.asked, quoted(&observed.asked))
        }
        Answer::Denied(right) => bail!("there is no Computer {} that you may see, and you have no right to {right}", observed.asked),
    }
}

/// A name may be that of a new computer, while the deletion of the one before continues from its record. An override for the new one would
/// wait for its deletion, and give up its sessions then.
fn by_uid_or_deleting(observed: &Observed, target: &OverrideTarget, deleting: Option<bool>) -> Result<()> {
    let again = format!("kubectl computer override {} --skip ...", target.uid);
    ensure!(
        is_uid(&observed.asked) || deleting == Some(true),
        "Computer {}/{} is not being deleted. If an earlier computer of this name is stuck, find its UID with `kubectl get computerrecords -n {}`, \
         and name the UID. To decide about this one beforehand: `{again}`",
        target.namespace,
        target.name,
        quoted(&observed.operator_namespace)
    );
    Ok(())
}

/// The command.
///
/// # Errors
/// When the computer is not found, it was asked for by name and is not being deleted, nothing was confirmed, or the API server refuses the object.
pub async fn run(cluster: &Cluster, asked: &str, skip: &[SkippableStep], reason: &str, yes: bool, dry_run: bool) -> Result<()> {
    let length = reason.chars().count();
    ensure!((10..=1024).contains(&length), "--reason has {length} characters: it must have 10 to 1024, because the receipt repeats it");
    let mut skip = skip.to_vec();
    let mut seen = std::collections::HashSet::new();
    skip.retain(|step| seen.insert(*step));
    let observed = cluster.observe(asked).await?;
    let (target, deleting) = target(&observed)?;
    by_uid_or_deleting(&observed, &target, deleting)?;
    let object = object(&target, &skip, reason);
    if dry_run {
        screen::out(&serde_yaml_ng::to_string(&object)?);
        return Ok(());
    }
    screen::note(&warning(&target, &skip, deleting));
    if !yes && !screen::confirm(&format!("Type the name of the computer to confirm ({}):", target.name), Some(&target.name))? {
        bail!("not confirmed: nothing was created");
    }
    let api: Api<DeletionOverride> = Api::all(cluster.client.clone());
    let created = api.create(&PostParams::default(), &object).await.map_err(explained)?;
    let again = if is_uid(asked) { quoted(asked) } else { format!("{} -n {}", quoted(asked), quoted(&cluster.namespace)) };
    screen::out(&format!("deletionoverride/{} created. See what happens: kubectl computer why {again}", created.name_any()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn box_() -> OverrideTarget {
        OverrideTarget { namespace: "team-a".into(), name: "box".into(), uid: "0b4f1c1e-6f0e-4a39-9a3b-111111111111".into() }
    }

    #[test]
    fn the_warning_names_what_is_given_up_for_every_step() {
        let all = [
            SkippableStep::StopPods,
            SkippableStep::ArchiveSessions,
            SkippableStep::UnreadableFiles,
            SkippableStep::DeleteVolumes,
            SkippableStep::WriteReceipt,
        ];
        let text = warning(&box_(), &all, Some(false));
        for step in all {
            assert!(text.contains(step_name(step)), "{text}");
            assert_eq!(serde_json::json!(step), step_name(step), "the name is that of the API");
        }
        assert!(
            text.contains("team-a/box (0b4f1c1e") && text.contains("ALL sessions") && text.contains("takes effect when it is"),
            "{text}"
        );
        assert!(!warning(&box_(), &all[..1], Some(true)).contains("sessions of this computer"));
    }

    #[test]
    fn the_object_names_the_uid_and_has_a_name_of_its_own() {
        let object = object(&box_(), &[SkippableStep::ArchiveSessions], "lost with node n3");
        assert_eq!(object.spec.computer.uid, box_().uid);
        assert_eq!((object.metadata.name, object.metadata.generate_name.as_deref()), (None, Some("box-")));
    }
}
