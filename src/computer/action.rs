//! What a plan can ask for: one request each. Data only; `apply` performs it, `View::absorb` takes the answer in.
//! Every delete and patch names the UID that it is meant for (promise S4).
#![allow(missing_docs)] // Fields and payloads say what they are: a namespace, a name, a UID, an object.

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret};

use crate::resources::{Computer, ComputerRecord};

/// Something that can be looked up by name. Absence is only ever concluded from a live read of it (promise S3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A pod, ours or the archive's.
    Pod { namespace: String, name: String },
    /// A claim, the home's or the custody claim.
    Claim { namespace: String, name: String },
    /// A Secret. Never read: a dry-run DELETE tells its UID (DESIGN.md 4.8).
    Secret { namespace: String, name: String },
    /// A persistent volume.
    Volume { name: String },
    /// The same volume, read live in this pass: no cache fills it in.
    LiveVolume { name: String },
    /// The node that a pod ran on.
    Node { name: String },
    /// The namespace of the computer.
    Namespace { name: String },
    /// Pods of a namespace that mount a claim, ours or foreign; answered by names.
    ClaimUsers { namespace: String, claim: String },
    /// Volumes whose `claimRef` has this UID: a crash can leave a bound volume that no record names yet.
    VolumesOfClaim { uid: String },
    /// Attachments of a volume that still exist (attachable drivers only); answered by names.
    Attachments { volume: String },
}

/// What is known of a subject.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A live read answered 404, or another UID stands under that name.
    Gone,
    Pod(Box<Pod>),
    Claim(Box<PersistentVolumeClaim>),
    Volume(Box<PersistentVolume>),
    Node(Box<Node>),
    Namespace(Box<Namespace>),
    /// A Secret of that UID exists.
    Uid(String),
    /// A delete was accepted: whether it is gone is to be read.
    Accepted,
    /// A Secret of that UID is being deleted, but somebody else's finalizer holds it.
    Held(String),
    Names(Vec<String>),
}

/// An object to create.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Pod(Box<Pod>),
    /// A machine's pod: JSON, created with strict field validation, because it has what an admin wrote in a class.
    Machine(Box<serde_json::Value>),
    Claim(Box<PersistentVolumeClaim>),
    Secret(Box<Secret>),
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Live read, no cache.
    Read(Subject),
    /// Live read of the Computer itself, which proves that the finalizer stands (DESIGN.md 4.2).
    ReadComputer,
    /// Adds the deletion finalizer, fenced by UID and resourceVersion; never on a deleting object (S8).
    AddFinalizer,
    /// Deletes the Computer: its namespace is going, or its time to live is over and it is still the object that was seen.
    DeleteComputer,
    /// Takes the deletion finalizer off, fenced by UID and resourceVersion: the last request of all (S3).
    ReleaseFinalizer,
    /// Creates the record.
    CreateRecord(Box<ComputerRecord>),
    /// Replaces the record, fenced by its resourceVersion.
    SaveRecord(Box<ComputerRecord>),
    /// Creates a child.
    Create(Object),
    /// Deletes a subject with a UID precondition.
    Delete { subject: Subject, uid: String },
    /// Takes a pod out of the API at once, without its kubelet's word, with a UID precondition.
    Remove { subject: Subject, uid: String },
    /// JSON patch whose first operation tests the UID.
    Patch { subject: Subject, patch: json_patch::Patch },
    /// JSON patch that sets a volume to `Retain` under our mark. Sent only after a live read of the record, see [`Action::takes`].
    Retain { volume: String, patch: json_patch::Patch },
    /// Asks the archive verifier how the archive of this computer stands.
    CheckArchive,
    /// Writes the receipt to the store, create-only.
    PutReceipt(Vec<u8>),
}

/// The answer to an action.
#[derive(Clone, Debug)]
pub enum Effect {
    /// What is now known of a subject.
    Learned(Subject, Fact),
    /// The Computer as the API server has it; `None`: gone, or another UID.
    Computer(Option<Box<Computer>>),
    /// The record as stored.
    Record(Box<ComputerRecord>),
    /// The record as somebody else has stored it: what this pass has learned is older than it.
    Overtaken(Box<ComputerRecord>),
    /// How the archive stands.
    Archive(crate::archive::Verification),
    /// The receipt is in the store, these bytes.
    ReceiptStored(Vec<u8>),
}

impl Action {
    /// Whether it brings a child into our care: creates one, or marks a volume. A stale record would bring back what another leader has
    /// already deleted or given back, and nobody would remove it (S5, S6). So the record is read live first, after everything that the plan
    /// has read of the child.
    pub fn takes(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Retain { .. })
    }

    /// Whether it changes a child, rather than reads something or keeps an account of it.
    pub fn changes_child(&self) -> bool {
        match self {
            Self::Create(_) | Self::Delete { .. } | Self::Remove { .. } | Self::Patch { .. } | Self::Retain { .. } => true,
            Self::Read(_)
            | Self::ReadComputer
            | Self::AddFinalizer
            | Self::DeleteComputer
            | Self::ReleaseFinalizer
            | Self::CreateRecord(_)
            | Self::SaveRecord(_)
            | Self::CheckArchive
            | Self::PutReceipt(_) => false,
        }
    }
}

impl Subject {
    /// A pod.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() }
    }
    /// A claim.
    pub fn claim(namespace: &str, name: &str) -> Self {
        Self::Claim { namespace: namespace.to_owned(), name: name.to_owned() }
    }
    /// A Secret.
    pub fn secret(namespace: &str, name: &str) -> Self {
        Self::Secret { namespace: namespace.to_owned(), name: name.to_owned() }
    }
    /// A volume.
    pub fn volume(name: &str) -> Self {
        Self::Volume { name: name.to_owned() }
    }

    /// Kind and name for a message to people.
    pub fn describe(&self) -> String {
        match self {
            Self::Pod { namespace, name } => format!("Pod {namespace}/{name}"),
            Self::Claim { namespace, name } => format!("PersistentVolumeClaim {namespace}/{name}"),
            Self::Secret { namespace, name } => format!("Secret {namespace}/{name}"),
            Self::Volume { name } | Self::LiveVolume { name } => format!("PersistentVolume {name}"),
            Self::Node { name } => format!("Node {name}"),
            Self::Namespace { name } => format!("Namespace {name}"),
            Self::ClaimUsers { namespace, claim } => format!("pods of {namespace} on claim {claim}"),
            Self::VolumesOfClaim { uid } => format!("volumes of claim UID {uid}"),
            Self::Attachments { volume } => format!("VolumeAttachments of {volume}"),
        }
    }
}
