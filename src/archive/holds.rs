//! The question that is asked directly before an archive, or a part of one, is destroyed: is it held? The answer comes from live reads of the cluster,
//! which this layer does not know (`erasure/live_holds.rs`). An unknown answer must count as held.

use async_trait::async_trait;

use super::store::StoreError;

/// An archive whose destruction is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// UID of the computer.
    pub computer_uid: String,
    /// UID of its namespace. `None`: neither the receipt nor the archive says it, so any hold of a namespace may be for this one.
    pub namespace_uid: Option<String>,
}

/// Why nothing more is destroyed.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Holds name the archive. The text names them.
    #[error("{0}")]
    Held(String),
    /// It is not known whether a hold names the archive.
    #[error("{0}")]
    HoldsUnknown(String),
    /// The computer exists, or its deletion is not complete.
    #[error("{0}")]
    NotReleased(String),
    /// The API server does not answer, so it is not known whether the decision is still valid, or it cannot be said that it is executed.
    #[error("{0}")]
    ApiServer(String),
    /// The decision was withdrawn.
    #[error("{0}")]
    Withdrawn(String),
    /// The store has no final receipt of the deletion.
    #[error("{0}")]
    NoReceipt(String),
    /// The request is for another computer.
    #[error("{0}")]
    Mismatch(String),
    /// The store has something that cannot be read, or that this version does not know.
    #[error("{0}")]
    Unreadable(String),
    /// The store does not answer, does not delete, or has something else than expected.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Stop> for StoreError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Store(error) => error,
            other => Self::Config(other.to_string()),
        }
    }
}

/// Answers whether an archive may be destroyed now.
#[async_trait]
pub trait Holds: Send + Sync {
    /// Whether no hold names this archive, by a live read.
    ///
    /// # Errors
    /// [`Stop::Held`] or [`Stop::HoldsUnknown`]; who decides may add [`Stop::Withdrawn`].
    async fn permit(&self, subject: &Subject) -> Result<(), Stop>;
}

/// The holds, and the archive that they are asked about.
#[derive(Clone, Copy)]
pub struct Permit<'a> {
    /// Whom to ask.
    pub holds: &'a dyn Holds,
    /// About what.
    pub subject: &'a Subject,
}

impl Permit<'_> {
    /// Asks. The answer is valid for the next request, or for a few that are sent together, and for no other.
    ///
    /// # Errors
    /// As [`Holds::permit`].
    pub async fn ask(&self) -> Result<(), Stop> {
        self.holds.permit(self.subject).await
    }
}
