//! Leader election with a Lease. It saves work; correctness comes from fences (S10). It must never hold up a shutdown for ever.
//!
//! Every write is a replace with the resourceVersion that was read, so of two contenders one gets a 409. Whether a lease has
//! expired is judged by our own clock since we saw it change, never by another machine's. A leader counts from the moment its
//! last successful write was *sent*, so it stops before anyone may take over. Order at the end: the leading work is cancelled and
//! awaited, the lease being renewed meanwhile, and only then released, so that the next one takes over at once (L4).

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
/// Longest lease that is respected, whatever a record says: nobody can lock the operator out for ever.
const LONGEST: u64 = 300;
/// Work that was cancelled has this long to end: more than one call, less than a pod's usual grace period (30 s).
pub const DRAIN: Duration = Duration::from_secs(25);

/// Timing of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others respect a lease that is not renewed; whole seconds.
    pub lease: Duration,
    /// How long after the last renewal we stop leading; shorter than `lease`.
    pub renew_deadline: Duration,
    /// Time between two tries.
    pub retry: Duration,
}

impl Timing {
    /// # Errors
    /// When two replicas could lead at once, or one failed try would end the lead.
    pub fn validate(self) -> Result<Self, TimingError> {
        // What the record holds is whole seconds; the rest would be lost on the others.
        let lease = Duration::from_secs(self.lease.as_secs());
        if lease.as_secs() == 0 || lease.as_secs() > LONGEST || self.renew_deadline >= lease {
            return Err(TimingError::Deadline { lease, renew: self.renew_deadline });
        }
        if self.retry.is_zero() || self.renew_deadline <= self.retry.mul_f64(1.2) {
            return Err(TimingError::Retry { renew: self.renew_deadline, retry: self.retry });
        }
        Ok(Self { lease, ..self })
    }

    /// Timeout of one request: two may fail before the deadline.
    fn request(self) -> Duration {
        self.renew_deadline / 2
    }
}

/// Why a timing cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// Lease and renew deadline.
    #[error("the renew deadline ({renew:?}) must be shorter than the lease ({lease:?}), and the lease 1 s to 300 s")]
    Deadline {
        /// The lease.
        lease: Duration,
        /// The deadline.
        renew: Duration,
    },
    /// Renew deadline and retry.
    #[error(
        "the time between two tries ({retry:?}) must be more than 0 and well below the renew deadline ({renew:?}): at most five sixths"
    )]
    Retry {
        /// The deadline.
        renew: Duration,
        /// Between two tries.
        retry: Duration,
    },
}

/// What we last saw of the lease, and when it last changed by our clock.
#[derive(Clone, Debug)]
struct Seen {
    lease: Lease,
    changed: Instant,
}

impl Seen {
    /// Takes in what was read at `now`. Only the spec counts: a touched label or annotation is no sign of life.
    fn observe(before: Option<&Self>, lease: Lease, now: Instant) -> Self {
        let changed = before.filter(|b| b.lease.spec == lease.spec).map_or(now, |b| b.changed);
        Self { lease, changed }
    }
}

/// Whose the lease is.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// Ours.
    Us,
    /// Nobody's: released.
    Nobody,
    /// Another one's that has not renewed it.
    Expired,
    /// Another one's.
    Other,
}

/// Pure: whose the lease is, from what was seen.
fn holder(seen: &Seen, identity: &str, now: Instant) -> Holder {
    let spec = seen.lease.spec.as_ref();
    let name = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let seconds = spec.and_then(|s| s.lease_duration_seconds).and_then(|s| u64::try_from(s).ok()).unwrap_or(15).clamp(1, LONGEST);
    let expired = now.duration_since(seen.changed) > Duration::from_secs(seconds);
    match name {
        "" => Holder::Nobody,
        ours if ours == identity => Holder::Us,
        _ if expired => Holder::Expired,
        _ => Holder::Other,
    }
}

/// How one try came out.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// The lease is ours, by a write that was sent at this time.
    Held(Instant),
    /// It is another one's.
    Taken,
    /// Not known: no answer, or somebody was faster.
    Unknown,
}

/// One contender.
struct Elector {
    api: Api<Lease>,
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
}

/// How a term of leading ended.
struct Term {
    /// What the work said; `None`: it did not end in time.
    result: Option<anyhow::Result<()>>,
    lost: bool,
}

/// Runs `lead` while we hold the lease in `namespace`. Returns when `shutdown` is cancelled, when `lead` ends, or when the lease
/// was lost. `lead` is cancelled through its token and has [`DRAIN`] to end. `on_change` hears whether we lead.
///
/// # Errors
/// When the timing cannot be used, the lease was lost while leading or the work did not end in time (the process should end and
/// start again), or as `lead`.
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
    tracing::info!(identity = elector.identity, "standing by for the lease");
    let Some(since) = elector.acquire(&shutdown).await else { return Ok(()) };
    tracing::info!(identity = elector.identity, "leading");
    on_change(true);
    let term = serve(&mut elector, since, &shutdown, lead).await;
    on_change(false);
    if term.lost && !shutdown.is_cancelled() {
        anyhow::bail!("the lease was lost; another replica goes on");
    }
    let Some(result) = term.result else {
        // Something of it may still be running: the lease is left to expire.
        anyhow::bail!("the leading work did not end within {} s; the lease is not released", DRAIN.as_secs());
    };
    if !term.lost {
        elector.release().await;
    }
    result
}

/// One term: works and renews side by side; at the end cancels the work and waits for it, still renewing.
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
    /// Tries until the lease is ours. `None`: `shutdown` came first.
    async fn acquire(&mut self, shutdown: &CancellationToken) -> Option<Instant> {
        loop {
            // A try is not cut off: a write that was sent would leave the lease in our name without anybody behind it.
            if let Attempt::Held(since) = self.look(false).await {
                return Some(since);
            }
            tokio::select! { () = shutdown.cancelled() => return None, () = sleep(self.timing.retry) => {} }
        }
    }

    /// Renews; returns when the lease is another one's, or could not be renewed within the deadline.
    async fn keep(&mut self, mut renewed: Instant) {
        loop {
            let deadline = renewed + self.timing.renew_deadline;
            sleep_until(deadline.min(Instant::now() + self.timing.retry)).await;
            match timeout_at(deadline, self.renew()).await {
                Ok(Attempt::Held(since)) => renewed = since,
                Ok(Attempt::Taken) => {
                    tracing::error!(identity = self.identity, "the lease is another replica's");
                    return;
                }
                Ok(Attempt::Unknown) if Instant::now() < deadline => {}
                Ok(Attempt::Unknown) | Err(_) => {
                    tracing::error!(identity = self.identity, "the lease could not be renewed in time");
                    return;
                }
            }
        }
    }

    /// One write on top of what we wrote last; only when that is no longer so, the lease is read.
    async fn renew(&mut self) -> Attempt {
        let ours = self.seen.as_ref().filter(|s| holder(s, &self.identity, Instant::now()) == Holder::Us).map(|s| s.lease.clone());
        match ours {
            Some(lease) => match self.write(lease).await {
                Ok(since) => Attempt::Held(since),
                Err(ErrorClass::Conflict | ErrorClass::NotFound) => self.look(true).await,
                Err(_) => Attempt::Unknown,
            },
            None => self.look(true).await,
        }
    }

    /// Reads the lease, and writes our name if we may. A leader never takes a lease that has been another one's.
    async fn look(&mut self, leading: bool) -> Attempt {
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
            Holder::Us | Holder::Nobody | Holder::Expired => self.write(lease).await.map_or(Attempt::Unknown, Attempt::Held),
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

    /// One request with a timeout: an API server that does not answer must not outlast the renew deadline.
    async fn limited<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ErrorClass> {
        let error = match timeout(self.timing.request(), request).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => CallError::Kube(error),
            Err(_) => CallError::Timeout,
        };
        let class = classify(&error);
        match class {
            ErrorClass::Conflict => tracing::debug!("somebody else wrote the lease"),
            ErrorClass::Timeout => tracing::warn!(limit = ?self.timing.request(), "no answer about the lease in time"),
            _ => tracing::warn!(%error, "the lease was neither read nor written"),
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

    /// Gives the lease back, so that the next one need not wait for it to expire. Only if it is still ours.
    async fn release(&mut self) {
        for _ in 0..3 {
            let Ok(Some(mut lease)) = self.limited(self.api.get_opt(NAME)).await else { break };
            let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&self.identity)) else { return };
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            match self.limited(self.api.replace(NAME, &PostParams::default(), &lease)).await {
                Ok(_) => return tracing::info!("the lease is released"),
                // A renewal of ours that was cut off may have arrived in between.
                Err(ErrorClass::Conflict) => {}
                Err(_) => break,
            }
        }
        tracing::warn!("the lease was not released; it expires by itself");
    }
}
