//! The commands to copy for each reason: read-only ones first, then what gives something up. Pure.

use computer_operator_api::reasons::Reason as R;
use computer_operator_api::steps::{DeletionStep, Sequence};
use computer_operator_api::{Children, Computer, ComputerRecord, SkippableStep, UID_LABEL};
use kube::ResourceExt as _;

use super::reason;
use crate::observe::Observed;
use crate::overrides::{given_up, step_name};
use crate::text::quoted;

/// A command and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What it shows or does.
    pub purpose: String,
    /// The command.
    pub line: String,
}

/// A command to copy.
pub fn copy(purpose: &str, line: impl Into<String>) -> Copy {
    Copy { purpose: purpose.to_owned(), line: line.into() }
}

/// What the commands name.
pub struct Subject {
    namespace: String,
    name: String,
    uid: String,
    children: Children,
    node: Option<String>,
    class: Option<String>,
    /// The Computer exists.
    lives: bool,
}

impl Subject {
    /// Of a Computer.
    pub fn of(computer: &Computer, observed: &Observed) -> Self {
        let status = computer.status.clone().unwrap_or_default();
        let recorded = observed.record.as_found().map(|record| record.spec.state.children.clone());
        let children = recorded.or(status.children).unwrap_or_default();
        let node = status.node_name.or_else(|| children.pods.last().and_then(|pod| pod.node.clone()));
        Self {
            namespace: computer.namespace().unwrap_or_default(),
            name: computer.name_any(),
            uid: computer.uid().unwrap_or_default(),
            node,
            class: status.class_name.or_else(|| computer.spec.class_name.clone()),
            children,
            lives: computer.metadata.deletion_timestamp.is_none(),
        }
    }

    /// Of a Computer that is gone.
    pub fn of_record(record: &ComputerRecord) -> Self {
        let children = record.spec.state.children.clone();
        Self {
            namespace: record.spec.namespace.clone(),
            name: record.spec.computer.clone(),
            uid: record.name_any(),
            node: children.pods.last().and_then(|pod| pod.node.clone()),
            class: record.spec.class_name.clone(),
            children,
            lives: false,
        }
    }

    fn this(&self, command: &str) -> String {
        format!("kubectl computer {command} {} -n {}", quoted(&self.name), quoted(&self.namespace))
    }

    fn pod(&self) -> Option<String> {
        self.children.pods.last().map(|pod| format!("pod/{} -n {}", quoted(&pod.name), quoted(&self.namespace)))
    }

    /// Only its name: the command that shows its finalizers does not show its content.
    fn secret(&self) -> Option<String> {
        self.children.secret_name.as_ref().map(|name| format!("secret/{} -n {}", quoted(name), quoted(&self.namespace)))
    }

    fn computer(&self) -> String {
        format!("computer/{} -n {}", quoted(&self.name), quoted(&self.namespace))
    }

    fn watch(&self) -> Copy {
        copy("the steps as they change", format!("kubectl get {} -w", self.computer()))
    }

    fn claim(&self) -> Option<String> {
        self.children.claim_name.as_ref().map(|name| format!("pvc/{} -n {}", quoted(name), quoted(&self.namespace)))
    }

    fn volume(&self) -> Option<String> {
        self.children.volume.as_ref().map(|volume| format!("pv/{}", quoted(&volume.name)))
    }
}

/// Runs a subcommand of `computer-operator` in one of its pods, whatever the Helm release is called.
pub fn in_operator(observed: &Observed, command: &str) -> String {
    let namespace = quoted(&observed.operator_namespace);
    let one = format!("kubectl get deployment -n {namespace} -l app.kubernetes.io/component=controller -o name");
    format!("kubectl exec -n {namespace} $({one}) -- computer-operator {command}")
}

/// The operator: whether it runs, and its log.
pub fn operator(observed: &Observed) -> Vec<Copy> {
    let namespace = quoted(&observed.operator_namespace);
    vec![
        copy("for a cluster admin: whether the operator runs", format!("kubectl get pods -n {namespace}")),
        copy(
            "for a cluster admin: its log, of every replica",
            format!("kubectl logs -n {namespace} -l app.kubernetes.io/component=controller --prefix --tail=50"),
        ),
    ]
}

/// The commands for a reason, or for a computer without one.
pub fn of(observed: &Observed, subject: &Subject, spelling: Option<&str>, step: &str) -> Vec<Copy> {
    let Some(spelling) = spelling else { return vec![subject.watch()] };
    let mut commands = match reason(spelling) {
        Some(reason) => look(observed, subject, reason),
        None => operator(observed),
    };
    if let Some(reason) = reason(spelling) {
        commands.extend(repair(observed, subject, reason));
        commands.extend(give_up(observed, subject, reason, step));
    }
    commands
}

/// Where to look. Nothing here changes anything.
fn look(observed: &Observed, subject: &Subject, reason: R) -> Vec<Copy> {
    match reason {
        R::ClassNotFound | R::AmbiguousDefaultClass => vec![copy("the classes, and which are the default", CLASSES)],
        R::ClassNotAccepted | R::CrashLoop | R::ClassChanged | R::StorageTooLarge => look_at_class(subject, reason),
        R::PodUnschedulable | R::PodNotStarting => {
            let describe = |pod| vec![copy("why the pod does not start", format!("kubectl describe {pod}"))];
            subject.pod().map_or_else(|| operator(observed), describe)
        }
        R::SecretHeld => finalizers(subject.secret().as_ref()),
        R::PodHeld => finalizers(subject.pod().as_ref()),
        R::ClaimHeld => finalizers(subject.claim().as_ref()),
        R::ComputerHeld => finalizers(Some(&subject.computer())),
        R::HomeClaimDeleted | R::ForeignPodHoldsClaim => {
            subject.claim().iter().map(|claim| copy("which pods use the claim", format!("kubectl describe {claim}"))).collect()
        }
        R::PodStillRunning | R::PodStateUnknown | R::NodeUnreachable | R::VolumeAttached => look_at_node(subject),
        reason if VOLUME.contains(&reason) => look_at_volume(subject),
        R::ArchivePodWaiting | R::ArchivePodUnschedulable | R::ArchivePodHeld => look_at_archive_pod(observed, subject, false),
        R::ArchiveTooLarge => raise_the_bound(observed, subject),
        R::ArchiveFailed | R::ArchiveOverdue | R::UnreadableFiles => look_at_archive_pod(observed, subject, true),
        R::ArchiveDamaged => {
            let verify = in_operator(observed, &format!("archives verify {}", subject.uid));
            vec![copy("for a cluster admin: what is damaged", verify)]
        }
        R::StoreUnavailable => {
            let test = format!("helm test computer-operator -n {} --logs", quoted(&observed.operator_namespace));
            [copy("for a cluster admin: what is wrong with the store; if the release has another name, use that", test)]
                .into_iter()
                .chain(operator(observed))
                .collect()
        }
        R::KeyReplacement => {
            let line = format!("kubectl get {} -o jsonpath='{{.status.credentialSecretName}}'", subject.computer());
            vec![copy("the name of the new Secret, when it is ready", line)]
        }
        R::Provisioning => vec![subject.watch()],
        R::Suspended | R::KeyLost => Vec::new(),
        _ => operator(observed),
    }
}

/// Reasons that the volume and its events explain.
const VOLUME: &[R] = &[
    R::VolumeMarked,
    R::VolumePolicyUnknown,
    R::VolumeBeingDeleted,
    R::VolumeLost,
    R::VolumeTaken,
    R::VolumeNotDeleted,
    R::CustodyNotBound,
    R::HomeVolumeLost,
];

/// Shows which class is the default.
const CLASSES: &str = "kubectl get computerclasses -o custom-columns='NAME:.metadata.name,DEFAULT:.metadata.annotations.computer-operator\\.dev/is-default-class'";

fn look_at_volume(subject: &Subject) -> Vec<Copy> {
    let describe = |volume| copy("for a cluster admin: the volume and its events", format!("kubectl describe {volume}"));
    subject.volume().map(describe).into_iter().collect()
}

fn look_at_class(subject: &Subject, reason: R) -> Vec<Copy> {
    let mut commands = Vec::new();
    if let (R::CrashLoop, Some(pod)) = (reason, subject.pod()) {
        commands.push(copy("why the machine ended", format!("kubectl logs {pod}")));
    }
    commands.extend(subject.class.iter().map(|class| copy("the class", format!("kubectl describe computerclass {}", quoted(class)))));
    commands
}

fn look_at_node(subject: &Subject) -> Vec<Copy> {
    let pod = subject.pod().map(|pod| copy("the pod and the state of its containers", format!("kubectl get {pod} -o yaml")));
    let node = subject.node.as_ref().map(|node| copy("for a cluster admin: the node", format!("kubectl get node {}", quoted(node))));
    pod.into_iter().chain(node).collect()
}

fn look_at_archive_pod(observed: &Observed, subject: &Subject, log: bool) -> Vec<Copy> {
    let select = format!("-n {} -l {UID_LABEL}={}", quoted(&observed.operator_namespace), subject.uid);
    let describe = copy("for a cluster admin: the archive pod", format!("kubectl describe pods {select}"));
    let logs = log
        .then(|| copy("for a cluster admin: its log, and those of earlier attempts", format!("kubectl logs {select} --tail=-1 --prefix")));
    logs.into_iter().chain([describe]).collect()
}

/// The archive is larger than the class allows.
fn raise_the_bound(observed: &Observed, subject: &Subject) -> Vec<Copy> {
    let class = subject.class.as_deref().map_or_else(|| "CLASS".to_owned(), quoted);
    let patch = r#"'{"spec":{"archive":{"maxBytes":"2Ti"}}}'"#;
    let raise = format!("kubectl patch computerclass {class} --type=merge -p {patch}");
    let mut commands = vec![copy("for a cluster admin: raise the bound, here to 2Ti; the deletion continues", raise)];
    commands.extend(look_at_archive_pod(observed, subject, true));
    commands
}

fn finalizers(object: Option<&String>) -> Vec<Copy> {
    object
        .iter()
        .map(|object| {
            copy("the finalizers, which name their controllers", format!("kubectl get {object} -o jsonpath='{{.metadata.finalizers}}'"))
        })
        .collect()
}

/// What repairs it and gives nothing up.
fn repair(observed: &Observed, subject: &Subject, reason: R) -> Vec<Copy> {
    let again =
        || copy("start the machine again, after the cause is fixed", format!("{} && {}", subject.this("suspend"), subject.this("resume")));
    match reason {
        R::CrashLoop | R::PodNotStarting | R::HomeClaimDeleted | R::ClassChanged if subject.lives => vec![again()],
        R::Suspended => vec![copy("start it", subject.this("resume"))],
        R::KeyLost | R::HomeVolumeLost | R::StorageTooLarge if subject.lives => {
            vec![copy("delete it; first a preview of what is archived and what is destroyed is shown", subject.this("delete"))]
        }
        R::PodStillRunning | R::PodStateUnknown | R::NodeUnreachable | R::VolumeAttached => {
            let gone = |node: &String| {
                copy("for a cluster admin, ONLY if the node is permanently lost", format!("kubectl delete node {}", quoted(node)))
            };
            subject.node.iter().map(gone).collect()
        }
        R::StoreUnavailable => {
            let line = format!(
                "kubectl create secret generic archive-store -n {} --from-literal=AWS_ACCESS_KEY_ID=ID --from-literal=AWS_SECRET_ACCESS_KEY=SECRET --dry-run=client -o yaml | kubectl apply -f -",
                quoted(&observed.operator_namespace)
            );
            let purpose = "for a cluster admin, if the store does not accept the credentials: replace those in the Secret that archive.s3.credentialsSecret names";
            vec![copy(purpose, line)]
        }
        _ => Vec::new(),
    }
}

/// The steps that an override may give up for a reason. Empty: an override does not help, or the operator's retries succeed once the cause
/// is repaired. So a store that does not work must not be a reason to give sessions up.
fn skippable(reason: R, step: &str) -> Vec<SkippableStep> {
    match reason {
        R::PodStillRunning | R::PodStateUnknown | R::NodeUnreachable | R::VolumeAttached => vec![SkippableStep::StopPods],
        R::UnreadableFiles => vec![SkippableStep::UnreadableFiles],
        // A volume on a lost node can be neither read nor deleted.
        R::VolumeTaken | R::ArchivePodUnschedulable => vec![SkippableStep::ArchiveSessions, SkippableStep::DeleteVolumes],
        R::VolumeNotDeleted => vec![SkippableStep::DeleteVolumes],
        R::VolumeLost | R::VolumeBeingDeleted | R::ArchiveDamaged | R::ArchiveTooLarge => vec![SkippableStep::ArchiveSessions],
        R::StoreUnavailable if DeletionStep::from_id(step) == Some(DeletionStep::WriteReceipt) => vec![SkippableStep::WriteReceipt],
        _ => Vec::new(),
    }
}

fn give_up(observed: &Observed, subject: &Subject, reason: R, step: &str) -> Option<Copy> {
    let skip = skippable(reason, step);
    if subject.lives || skip.is_empty() {
        return None;
    }
    let names: Vec<&str> = skip.iter().map(|step| step_name(*step)).collect();
    let who = match observed.may_override {
        Some(true) => "",
        Some(false) => " (ask a cluster admin: you may not create deletionoverrides)",
        None => " (for a cluster admin)",
    };
    let lost: Vec<&str> = skip.iter().map(|step| given_up(*step)).collect();
    let target = if observed.computer.as_found().is_some() {
        format!("{} -n {}", quoted(&subject.name), quoted(&subject.namespace))
    } else {
        subject.uid.clone()
    };
    let line = format!("kubectl computer override {target} --skip {} --reason 'WHY, for the receipt'", names.join(","));
    let only = match reason {
        R::ArchivePodUnschedulable => "ONLY if the node and its disk are lost",
        _ => "ONLY if there is no other way",
    };
    Some(copy(&format!("{only}{who}. It gives up {}", lost.join(" And ")), line))
}
