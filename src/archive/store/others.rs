//! Readers that take turns: a read that makes no progress is cancelled when another reader waits, so that it does not keep its turn.

use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use super::Store;

/// Whether others wait. By default, nobody does.
#[derive(Clone, Default)]
pub(super) struct Others(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Debug for Others {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Others")
    }
}

impl Store {
    /// For a reader that gives up what cannot be read for a while, when `others_wait`.
    #[must_use]
    pub fn shared_with(&self, others_wait: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { others: Others(Some(Arc::new(others_wait))), ..self.clone() }
    }

    /// Whether others wait for the end of a read.
    pub fn is_wanted_by_others(&self) -> bool {
        self.others.0.as_ref().is_some_and(|others_wait| others_wait())
    }
}
