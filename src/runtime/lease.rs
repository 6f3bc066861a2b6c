//! Leader election with a Lease. It saves work; correctness comes from fences (S10).
//!
//! Every write is a replace with the resourceVersion that was read, so of two contenders one gets a 409. Whether a lease has
//! expired is judged by our own clock since we saw it change, never by another machine's. Order at the end: the leading work is
//! cancelled, awaited, and only then the lease is released, so that the next one takes over at once (L4).

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{ErrorClass, classify};

const NAME: &str = "computer-operator";

/// Timing of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others respect a lease that is not renewed.
    pub lease: Duration,
    /// How long we try to renew before we stop leading; shorter than `lease`.
    pub renew_deadline: Duration,
    /// Time between two tries; also the timeout of one request.
    pub retry: Duration,
}

/// What we last saw of the lease, and when it last changed by our clock.
#[derive(Clone, Debug)]
struct Seen {
    lease: Lease,
    changed: Instant,
}

/// What to do about the lease.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// Write our name: it is free, expired or ours.
    Take,
    /// Somebody else holds it.
    Stand,
}

fn decide(seen: &Seen, identity: &str, now: Instant) -> Decision {
    let spec = seen.lease.spec.as_ref();
    let holder = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let seconds = spec.and_then(|s| s.lease_duration_seconds).unwrap_or(15).max(1);
    let expired = now.duration_since(seen.changed) > Duration::from_secs(u64::try_from(seconds).unwrap_or(15));
    if holder.is_empty() || holder == identity || expired { Decision::Take } else { Decision::Stand }
}

/// One contender.
struct Elector {
    api: Api<Lease>,
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
}

/// Runs `lead` while we hold the lease in `namespace`. Returns when `shutdown` is cancelled, or when the lease was lost.
///
/// # Errors
/// When the lease was lost while leading (the process should end and start again), or as `lead`.
pub async fn run_while_leading<F, L>(
    client: Client,
    namespace: &str,
    timing: Timing,
    shutdown: CancellationToken,
    on_change: impl Fn(bool),
    lead: L,
) -> anyhow::Result<()>
where
    L: FnOnce(CancellationToken) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    let identity = format!("{}-{:08x}", std::env::var("POD_NAME").unwrap_or_else(|_| "operator".to_owned()), rand::random::<u32>());
    let mut elector = Elector { api: Api::namespaced(client, namespace), identity, timing, seen: None };
    tracing::info!(identity = elector.identity, "standing by for the lease");
    while !elector.attempt().await {
        tokio::select! { () = shutdown.cancelled() => return Ok(()), () = tokio::time::sleep(timing.retry) => {} }
    }
    tracing::info!(identity = elector.identity, "leading");
    on_change(true);
    let stop = CancellationToken::new();
    let work = lead(stop.clone());
    tokio::pin!(work);
    let (ended, lost) = tokio::select! {
        ended = &mut work => (Some(ended), false),
        () = elector.keep() => (None, true),
        () = shutdown.cancelled() => (None, false),
    };
    stop.cancel();
    let result = match ended {
        Some(result) => result,
        None => work.await,
    };
    on_change(false);
    if lost {
        anyhow::bail!("the lease was lost; another replica goes on");
    }
    elector.release().await;
    result
}

impl Elector {
    /// One try to take or renew the lease.
    async fn attempt(&mut self) -> bool {
        let limit = self.timing.retry.max(Duration::from_secs(1));
        tokio::time::timeout(limit, self.try_once()).await.unwrap_or_default()
    }

    async fn try_once(&mut self) -> bool {
        let found = match self.api.get_opt(NAME).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return self.create().await,
            Err(error) => {
                tracing::warn!(%error, "the lease was not read");
                return false;
            }
        };
        let version = |l: &Lease| l.metadata.resource_version.clone();
        let changed = match &self.seen {
            Some(seen) if version(&seen.lease) == version(&found) => seen.changed,
            _ => Instant::now(),
        };
        let seen = Seen { lease: found, changed };
        let decision = decide(&seen, &self.identity, Instant::now());
        let mut next = seen.lease.clone();
        self.seen = Some(seen);
        if decision == Decision::Stand {
            return false;
        }
        next.spec = Some(self.spec(next.spec.as_ref()));
        self.stored(self.api.replace(NAME, &PostParams::default(), &next).await)
    }

    async fn create(&mut self) -> bool {
        let mut lease = Lease { spec: Some(self.spec(None)), ..Lease::default() };
        lease.metadata.name = Some(NAME.to_owned());
        self.stored(self.api.create(&PostParams::default(), &lease).await)
    }

    fn stored(&mut self, answer: Result<Lease, kube::Error>) -> bool {
        match answer {
            Ok(lease) => {
                self.seen = Some(Seen { lease, changed: Instant::now() });
                true
            }
            Err(error) => {
                let error = error.into();
                if classify(&error) != ErrorClass::Conflict {
                    tracing::warn!(%error, "the lease was not written");
                }
                false
            }
        }
    }

    fn spec(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let same = old.is_some_and(|o| o.holder_identity.as_deref() == Some(&self.identity));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs()).ok(),
            renew_time: now.clone(),
            acquire_time: if same { old.and_then(|o| o.acquire_time.clone()) } else { now },
            lease_transitions: Some(old.and_then(|o| o.lease_transitions).unwrap_or(0) + i32::from(!same)),
            ..LeaseSpec::default()
        }
    }

    /// Renews until that has failed for the renew deadline.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < self.timing.renew_deadline {
            tokio::time::sleep(self.timing.retry).await;
            if self.attempt().await {
                renewed = Instant::now();
            }
        }
        tracing::error!(identity = self.identity, "the lease could not be renewed in time");
    }

    /// Gives the lease back, so that the next one need not wait for it to expire.
    async fn release(&self) {
        let Some(mut lease) = self.seen.as_ref().map(|s| s.lease.clone()) else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        if let Ok(Ok(_)) =
            tokio::time::timeout(self.timing.retry.max(Duration::from_secs(1)), self.api.replace(NAME, &PostParams::default(), &lease))
                .await
        {
            tracing::info!("the lease is released")
        } else {
            tracing::warn!("the lease was not released; it expires by itself")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: &str, changed: Instant) -> Seen {
        let spec = LeaseSpec { holder_identity: Some(holder.to_owned()), lease_duration_seconds: Some(15), ..LeaseSpec::default() };
        Seen { lease: Lease { spec: Some(spec), ..Lease::default() }, changed }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_taken_only_when_free_ours_or_not_renewed_by_our_own_clock() {
        let start = Instant::now();
        assert_eq!(decide(&seen("", start), "me", start), Decision::Take);
        assert_eq!(decide(&seen("me", start), "me", start), Decision::Take);
        let other = seen("other", start);
        assert_eq!(decide(&other, "me", start + Duration::from_secs(15)), Decision::Stand);
        assert_eq!(decide(&other, "me", start + Duration::from_secs(16)), Decision::Take);
    }
}
