//! Why a deletion began. The spellings are stored in records and receipts and published by the HTTP API: they must never change, and the
//! value of a newer version must survive a rollback. `spelling_tests.rs` pins them.

use serde::{Deserialize, Serialize};

/// Why a deletion began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Someone deleted the Computer.
    ComputerDeleted,
    /// Its namespace is being deleted, and with it every Computer in it.
    NamespaceTerminating,
    /// Its time to live expired, so the operator deleted it.
    TimeToLiveExpired,
    /// The Computer disappeared before the operator saw that it was being deleted: its finalizer was removed.
    ComputerVanished,
    /// A cause of a newer version, kept as it was read.
    #[serde(untagged)]
    Unknown(String),
}

impl Cause {
    /// As it is stored.
    pub fn as_str(&self) -> &str {
        match self {
            Self::ComputerDeleted => "ComputerDeleted",
            Self::NamespaceTerminating => "NamespaceTerminating",
            Self::TimeToLiveExpired => "TimeToLiveExpired",
            Self::ComputerVanished => "ComputerVanished",
            Self::Unknown(other) => other,
        }
    }
}
