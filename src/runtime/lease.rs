//! Leader election with a Lease. It avoids duplicate work; correctness comes from preconditions on writes (S10). It must never delay a shutdown
//! indefinitely. kube has no leader election, and the alternatives compare clocks of different machines or do not drain before they release the lease.
//!
//! The lease is created once; every later write is a replace with the `resourceVersion` that was read, so one of two contenders gets a 409. A lease has
//! expired when it has not changed for its duration by this replica's monotonic clock; the clocks of other machines never count. A leader counts from the
//! moment its last successful write was *sent*, so it stops before another replica may take over. At shutdown the work of the leader is cancelled and awaited
//! while the lease is still renewed. Then the lease is released, so that the next leader takes over at once (L4). If the work does not end in time, the lease
//! is not released and expires. A lost lease ends the process with an error, and Kubernetes starts it again. The duration is `Config::lease`.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::client::{CallError, ErrorClass, classify};

#[cfg(test)]
mod tests;

const NAME: &str = "computer-operator";
/// Maximum duration of a lease that is respected, so that a wrong Lease cannot block the operator forever.
const LONGEST: u64 = 300;
/// Time that cancelled work has to finish: longer than one API call, shorter than a pod's default grace period (30 s).
pub const DRAIN: Duration = Duration::from_secs(25);

/// Timing of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others respect a lease that is not renewed, in whole seconds.
    pub lease: Duration,
    /// How long after the last renewal a leader stops; shorter than `lease`.
    pub renew_deadline: Duration,
    /// Time between attempts.
    pub retry: Duration,
}

impl Timing {
    /// Validates the timing.
    ///
    /// # Errors
    /// When two replicas could lead at the same time, or one failed attempt would end the leadership.
    pub fn validate(self) -> Result<Self, TimingError> {
        // The Lease contains whole seconds; other replicas would not see the fraction.
        let lease = Duration::from_secs(self.lease.as_secs());
        if lease.as_secs() == 0 || lease.as_secs() > LONGEST || self.renew_deadline >= lease {
            return Err(TimingError::Deadline { lease, renew: self.renew_deadline });
        }
        if self.retry.is_zero() || self.renew_deadline <= self.retry.mul_f64(1.2) {
            return Err(TimingError::Retry { renew: self.renew_deadline, retry: self.retry });
        }
        Ok(Self { lease, ..self })
    }

    /// Timeout of one request, so that two can fail before the deadline.
    fn request(self) -> Duration {
        self.renew_deadline / 2
    }
}

/// Why a timing is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// The renew deadline does not fit the lease.
    #[error("the renew deadline ({renew:?}) must be shorter than the lease ({lease:?}), and the lease must be 1 s to 300 s")]
    Deadline {
        /// The lease.
        lease: Duration,
        /// The deadline.
        renew: Duration,
    },
    /// The retry interval does not fit the renew deadline.
    #[error("the retry interval ({retry:?}) must be greater than 0 and at most five sixths of the renew deadline ({renew:?})")]
    Retry {
        /// The deadline.
        renew: Duration,
        /// The interval.
        retry: Duration,
    },
}

/// The last observed Lease, and when it changed by this replica's clock.
#[derive(Clone, Debug)]
struct Seen {
    lease: Lease,
    changed: Instant,
}

impl Seen {
    /// Records a Lease that was read at `now`. Only a change of the spec counts as a renewal, not a changed label or annotation.
    fn observe(before: Option<&Self>, lease: Lease, now: Instant) -> Self {
        let changed = before.filter(|b| b.lease.spec == lease.spec).map_or(now, |b| b.changed);
        Self { lease, changed }
    }
}

/// The holder of the lease.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// This replica.
    Us,
    /// None: the lease was released.
    None,
    /// Another replica, which has not renewed the lease in time.
    Expired,
    /// Another replica.
    Other,
}

/// The holder according to the observed Lease. Pure.
fn holder(seen: &Seen, identity: &str, now: Instant) -> Holder {
    let spec = seen.lease.spec.as_ref();
    let name = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let seconds = spec.and_then(|s| s.lease_duration_seconds).and_then(|s| u64::try_from(s).ok()).unwrap_or(15).clamp(1, LONGEST);
    let expired = now.duration_since(seen.changed) > Duration::from_secs(seconds);
    match name {
        "" => Holder::None,
        ours if ours == identity => Holder::Us,
        _ if expired => Holder::Expired,
        _ => Holder::Other,
    }
}

/// The result of one attempt.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// This replica holds the lease, according to a write that was sent at this time.
    Held(Instant),
    /// Another replica holds the lease.
    Taken,
    /// Unknown: no response, or another client wrote first.
    Unknown,
}

/// One contender.
struct Elector {
    api: Api<Lease>,
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
}

/// How a term as the leader ended.
struct Term {
    /// The result of the work; `None` if it did not finish in time.
    result: Option<anyhow::Result<()>>,
    lost: bool,
}

/// Runs `lead` while this replica holds the lease in `namespace`. Returns when `shutdown` is cancelled, when `lead` ends, or when the lease is lost. `lead`
/// is cancelled through its token and has [`DRAIN`] to finish. `on_change` is called with whether this replica leads.
///
/// # Errors
/// When the timing is invalid, when the lease was lost or the work did not finish in time (the process should then exit and be restarted), or the error of
/// `lead`.
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
    let timing = timing.validate()?;
    let identity = format!("{}-{:08x}", std::env::var("POD_NAME").unwrap_or_else(|_| "operator".to_owned()), rand::random::<u32>());
    let mut elector = Elector { api: Api::namespaced(client, namespace), identity, timing, seen: None };
    tracing::info!(identity = elector.identity, "waiting for the lease");
    let Some(since) = elector.acquire(&shutdown).await else { return Ok(()) };
    tracing::info!(identity = elector.identity, "acquired the lease, leading");
    on_change(true);
    let term = serve(&mut elector, since, &shutdown, lead).await;
    on_change(false);
    if term.lost && !shutdown.is_cancelled() {
        anyhow::bail!(
            "lost lease/{NAME} -n {namespace}: another replica takes over, or the lease could not be renewed. The process exits and is restarted"
        );
    }
    let Some(result) = term.result else {
        // Part of the work may still be running, so the lease must expire instead of being released.
        anyhow::bail!("the work of the leader did not finish within {} s; lease/{NAME} -n {namespace} is left to expire", DRAIN.as_secs());
    };
    if !term.lost {
        elector.release().await;
    }
    result
}

/// One term: works and renews concurrently. At the end it cancels the work and waits for it while still renewing.
async fn serve<F, L>(elector: &mut Elector, since: Instant, shutdown: &CancellationToken, lead: L) -> Term
where
    L: FnOnce(CancellationToken) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    let stop = CancellationToken::new();
    let (work, keep) = (lead(stop.clone()), elector.keep(since));
    tokio::pin!(work, keep);
    let mut term = Term { result: None, lost: false };
    tokio::select! {
        ended = &mut work => term.result = Some(ended),
        () = &mut keep => term.lost = true,
        () = shutdown.cancelled() => {}
    }
    stop.cancel();
    let limit = sleep(DRAIN);
    tokio::pin!(limit);
    while term.result.is_none() {
        tokio::select! {
            ended = &mut work => term.result = Some(ended),
            () = &mut keep, if !term.lost => term.lost = true,
            () = &mut limit => break,
        }
    }
    term
}

impl Elector {
    /// Retries until this replica holds the lease. `None` if `shutdown` was cancelled first.
    async fn acquire(&mut self, shutdown: &CancellationToken) -> Option<Instant> {
        loop {
            // An attempt is not cancelled: a write that was already sent would leave the lease held by a replica that has stopped.
            if let Attempt::Held(since) = self.try_acquire(false).await {
                return Some(since);
            }
            tokio::select! { () = shutdown.cancelled() => return None, () = sleep(self.timing.retry) => {} }
        }
    }

    /// Renews the lease. Returns when another replica holds it, or when it could not be renewed within the deadline.
    async fn keep(&mut self, mut renewed: Instant) {
        loop {
            let deadline = renewed + self.timing.renew_deadline;
            sleep_until(deadline.min(Instant::now() + self.timing.retry)).await;
            match timeout_at(deadline, self.renew()).await {
                Ok(Attempt::Held(since)) => renewed = since,
                Ok(Attempt::Taken) => {
                    tracing::error!(identity = self.identity, "lost the lease: another replica holds it");
                    return;
                }
                Ok(Attempt::Unknown) if Instant::now() < deadline => {}
                Ok(Attempt::Unknown) | Err(_) => {
                    tracing::error!(identity = self.identity, "lost the lease: it could not be renewed in time");
                    return;
                }
            }
        }
    }

    /// Renews with one write based on this replica's last write. The lease is read only if that fails.
    async fn renew(&mut self) -> Attempt {
        let ours = self.seen.as_ref().filter(|s| holder(s, &self.identity, Instant::now()) == Holder::Us).map(|s| s.lease.clone());
        match ours {
            Some(lease) => match self.write(lease).await {
                Ok(since) => Attempt::Held(since),
                Err(ErrorClass::Conflict | ErrorClass::NotFound) => self.try_acquire(true).await,
                Err(_) => Attempt::Unknown,
            },
            None => self.try_acquire(true).await,
        }
    }

    /// Reads the lease and takes it if permitted. A leader never takes over a lease that another replica has held.
    async fn try_acquire(&mut self, leading: bool) -> Attempt {
        let found = match self.limited(self.api.get_opt(NAME)).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return self.create().await,
            Err(_) => return Attempt::Unknown,
        };
        let now = Instant::now();
        let seen = Seen::observe(self.seen.as_ref(), found, now);
        let (whose, lease) = (holder(&seen, &self.identity, now), seen.lease.clone());
        self.seen = Some(seen);
        match whose {
            Holder::Other => Attempt::Taken,
            Holder::Expired if leading => Attempt::Taken,
            Holder::Us | Holder::None | Holder::Expired => self.write(lease).await.map_or(Attempt::Unknown, Attempt::Held),
        }
    }

    async fn create(&mut self) -> Attempt {
        let mut lease = Lease { spec: Some(self.spec(None)), ..Lease::default() };
        lease.metadata.name = Some(NAME.to_owned());
        let sent = Instant::now();
        match self.limited(self.api.create(&PostParams::default(), &lease)).await {
            Ok(lease) => self.held(lease, sent),
            Err(_) => Attempt::Unknown,
        }
    }

    async fn write(&mut self, mut lease: Lease) -> Result<Instant, ErrorClass> {
        lease.spec = Some(self.spec(lease.spec.as_ref()));
        let sent = Instant::now();
        let lease = self.limited(self.api.replace(NAME, &PostParams::default(), &lease)).await?;
        self.held(lease, sent);
        Ok(sent)
    }

    fn held(&mut self, lease: Lease, sent: Instant) -> Attempt {
        self.seen = Some(Seen { lease, changed: sent });
        Attempt::Held(sent)
    }

    /// One request with a timeout, so that an unresponsive API server cannot delay this replica beyond the renew deadline.
    async fn limited<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ErrorClass> {
        let error = match timeout(self.timing.request(), request).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => CallError::Kube(error),
            Err(_) => CallError::Timeout,
        };
        let class = classify(&error);
        match class {
            ErrorClass::Conflict => tracing::debug!("conflict: another replica wrote the lease"),
            ErrorClass::Timeout => tracing::warn!(limit = ?self.timing.request(), "request for the lease timed out"),
            _ => tracing::warn!(%error, "request for the lease failed"),
        }
        Err(class)
    }

    fn spec(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let same = old.is_some_and(|o| o.holder_identity.as_deref() == Some(&self.identity));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs()).ok(),
            renew_time: now.clone(),
            acquire_time: if same { old.and_then(|o| o.acquire_time.clone()) } else { now },
            lease_transitions: Some(old.and_then(|o| o.lease_transitions).unwrap_or(0).saturating_add(i32::from(!same && old.is_some()))),
            ..LeaseSpec::default()
        }
    }

    /// Releases the lease if this replica still holds it, so that the next leader does not have to wait until it expires.
    async fn release(&mut self) {
        for _ in 0..3 {
            let Ok(Some(mut lease)) = self.limited(self.api.get_opt(NAME)).await else { break };
            let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&self.identity)) else { return };
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            match self.limited(self.api.replace(NAME, &PostParams::default(), &lease)).await {
                Ok(_) => return tracing::info!("released the lease"),
                // A cancelled renewal of this replica may have arrived in between.
                Err(ErrorClass::Conflict) => {}
                Err(_) => break,
            }
        }
        tracing::warn!("cannot release the lease; it will expire");
    }
}
