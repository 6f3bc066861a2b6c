//! The actions that a plan can return: one request each. Data only: `apply` performs it, `View::absorb` adds the answer to the view. Every
//! delete and patch names the UID that it is meant for (promise S4).
#![allow(missing_docs)] // Fields and payloads say what they are: a namespace, a name, a UID, an object.

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret};

use crate::resources::{Computer, ComputerRecord};

/// An object, or a list, that can be read. Only a live read proves that it does not exist (promise S3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The machine's pod or an archive pod.
    Pod { namespace: String, name: String },
    /// The claim of the home or the custody claim.
    Claim { namespace: String, name: String },
    /// A Secret. It is never read: a dry-run DELETE returns its UID (DESIGN.md 4.8).
    Secret { namespace: String, name: String },
    /// A persistent volume.
    Volume { name: String },
    /// The same volume, read live in this reconcile; never filled from a cache.
    LiveVolume { name: String },
    /// The node that a pod ran on.
    Node { name: String },
    /// The namespace of the computer.
    Namespace { name: String },
    /// All pods of a namespace that mount a claim, as names.
    ClaimUsers { namespace: String, claim: String },
    /// Volumes whose `claimRef` has this UID, as names: a crash can leave a bound volume that no record names yet.
    VolumesOfClaim { uid: String },
    /// Where a volume is still attached, each attachment as a message names it (attachable drivers only).
    Attachments { volume: String },
}

/// What is known about a subject.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A live read returned 404, or an object with another UID.
    Gone,
    Pod(Box<Pod>),
    Claim(Box<PersistentVolumeClaim>),
    Volume(Box<PersistentVolume>),
    Node(Box<Node>),
    Namespace(Box<Namespace>),
    /// A Secret with this UID exists.
    Uid(String),
    /// This reconcile has created a Secret, with this UID.
    Created(String),
    /// A delete was accepted. A read must show whether the object is gone.
    Accepted,
    /// A Secret with this UID is being deleted, and a finalizer of another controller blocks its deletion.
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
    /// Reads a subject live, not from a cache.
    Read(Subject),
    /// Reads the Computer live, which proves that it has the finalizer (DESIGN.md 4.2).
    ReadComputer,
    /// Adds the deletion finalizer, fenced by UID and resourceVersion; never to an object that is being deleted (S8).
    AddFinalizer,
    /// Deletes the Computer: its namespace is terminating, or its time to live has expired and the object has not changed.
    DeleteComputer,
    /// Removes the deletion finalizer, fenced by UID and resourceVersion: the last request of a deletion (S3).
    ReleaseFinalizer,
    /// Creates the record.
    CreateRecord(Box<ComputerRecord>),
    /// Replaces the record, fenced by its resourceVersion.
    SaveRecord(Box<ComputerRecord>),
    /// Creates a child.
    Create(Object),
    /// Deletes a subject with a UID precondition.
    Delete { subject: Subject, uid: String },
    /// Force-deletes a pod with a UID precondition: it is removed from the API without confirmation by its kubelet.
    Remove { subject: Subject, uid: String },
    /// JSON patch whose first operation tests the UID.
    Patch { subject: Subject, patch: json_patch::Patch },
    /// JSON patch that sets a volume to `Retain` and labels it. Sent only after a live read of the record, see [`Action::acquires_child`].
    Retain { volume: String, patch: json_patch::Patch },
    /// Asks the archive verifier for the state of this computer's archive.
    CheckArchive,
    /// Writes the receipt to the store, create-only.
    PutReceipt(Vec<u8>),
}

/// The answer to an action.
#[derive(Clone, Debug)]
pub enum Effect {
    /// What is now known about a subject.
    Learned(Subject, Fact),
    /// The machine's pod, which this request has created.
    Created(Subject, Fact),
    /// The Computer as the API server returned it. `None`: gone, or an object with another UID.
    Computer(Option<Box<Computer>>),
    /// The record as stored.
    Record(Box<ComputerRecord>),
    /// The record as another writer has stored it: facts that this reconcile has read are older.
    Overtaken(Box<ComputerRecord>),
    /// The state of the archive.
    Archive(crate::archive::Verification),
    /// The receipt as it is stored.
    ReceiptStored(Vec<u8>),
}

impl Action {
    /// Whether it acquires a child: creates one, or protects a volume. With a stale record it would restore what another leader has already
    /// deleted or released, and nothing would remove it again (S5, S6). So the record is read live first, after everything that the plan has
    /// read about the child.
    pub fn acquires_child(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Retain { .. })
    }

    /// Whether it changes a child. Reads, and writes of the Computer or the record, do not.
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

    /// Kind and name for a message to users.
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
