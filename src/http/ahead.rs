//! Reads an object while the caller's permission to see it is being reviewed: one round trip instead of two. A caller must never learn anything about an
//! object that it may not see, not even from the time that the response takes. So a refusal is returned at once, whatever the read has found, and the
//! read then ends by itself: a cancelled one would cost its connection to the Kubernetes API.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::error::ApiError;

/// Maximum number of reads before it is known that their caller may see the object. Those of refused callers belong to no request in flight, so they need a
/// bound of their own (L9). Without a place the review comes first.
pub const READS: usize = 16;

/// Places for such reads.
pub struct Ahead(Arc<Semaphore>);

impl Default for Ahead {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(READS)))
    }
}

impl Ahead {
    /// What is read, if the review permits it. Both are boxed: a handler would be as large as all that it may wait for.
    ///
    /// # Errors
    /// As the review; only if it permits, as the read.
    pub async fn read<T: Send + 'static>(
        &self,
        review: BoxFuture<'_, Result<(), ApiError>>,
        read: BoxFuture<'static, Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let Ok(place) = Arc::clone(&self.0).try_acquire_owned() else {
            review.await?;
            return read.await;
        };
        let reading = async move {
            let found = read.await;
            drop(place);
            found
        };
        let reading = tokio::spawn(reading.in_current_span());
        review.await?;
        reading.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a read has ended without a result");
            Err(ApiError::internal("the request failed because of an internal error: retry it"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;
    use tokio::time::{Instant, sleep};

    use super::*;

    const TAKES: Duration = Duration::from_millis(10);

    fn review(permitted: bool) -> BoxFuture<'static, Result<(), ApiError>> {
        let answer = if permitted { Ok(()) } else { Err(ApiError::not_found("computer")) };
        async move { sleep(TAKES).map(|()| answer).await }.boxed()
    }

    fn read(takes: Duration, found: Result<u8, ApiError>) -> BoxFuture<'static, Result<u8, ApiError>> {
        async move { sleep(takes).map(|()| found).await }.boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_and_its_review_take_one_round_trip() {
        let (ahead, began) = (Ahead::default(), Instant::now());
        assert_eq!(ahead.read(review(true), read(TAKES, Ok(1))).await, Ok(1));
        assert_eq!(began.elapsed(), TAKES);
        let failed = ApiError::internal("reading failed");
        assert_eq!(ahead.read(review(true), read(TAKES, Err(failed.clone()))).await, Err(failed));
    }

    /// Otherwise the time, or the code of a failed read, would show whether an object exists.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_does_not_depend_on_the_object() {
        let ahead = Ahead::default();
        for (takes, found) in [(TAKES / 10, Ok(1)), (TAKES / 10, Err(ApiError::internal("reading failed"))), (100 * TAKES, Ok(1))] {
            let began = Instant::now();
            assert_eq!(ahead.read(review(false), read(takes, found)).await, Err(ApiError::not_found("computer")));
            assert_eq!(began.elapsed(), TAKES);
        }
    }

    /// L9: each of them can have 1.5 MiB in memory, and the requests that they belong to are no longer in flight.
    #[tokio::test(start_paused = true)]
    async fn reads_of_refused_callers_are_bounded_and_delay_nobody() {
        let ahead = Ahead::default();
        for _ in 0..2 * READS {
            assert!(ahead.read(review(false), read(100 * TAKES, Ok(1))).await.is_err());
        }
        assert_eq!(ahead.0.available_permits(), 0);
        let began = Instant::now();
        assert_eq!(ahead.read(review(true), read(TAKES, Ok(1))).await, Ok(1));
        assert_eq!(began.elapsed(), 2 * TAKES, "the review comes first");
        sleep(200 * TAKES).await;
        assert_eq!(ahead.0.available_permits(), READS, "a place was not released");
    }
}
