//! Limits the share of one tenant in the slots for requests in flight and in the memory for large responses. A slow or greedy tenant (slow uploads, waiting
//! for deletions, unread responses) must never block the others, and neither must several such tenants together. The callers,
//! `extract.rs` for slots and `middleware.rs` for memory, respond with 429.
//!
//! Slots: a tenant may hold half of them, and the last quarter is left to tenants that hold none. A slot is never taken back, so without this quarter two
//! tenants could hold all slots.
//!
//! Memory: a tenant may hold half of it. When it is used up, the server closes connections whose responses are read too slowly. If a tenant has been denied
//! its equal share for 5 s nevertheless, responses of tenants that hold more than an equal share give way, the slowest first. Young responses are spared,
//! but not for longer than these 5 s: tenants that keep replacing their own responses would otherwise never give way. So no number of slow tenants denies
//! another tenant its equal share. Exports have places of their own (`places.rs`). While memory is left, no response is cut off for another tenant, however slowly it is read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::auth::Caller;
use super::response_body::Progress;
use crate::runtime::server::connections::Seat;

mod places;

/// Total size in bytes of the large responses that are being sent.
pub const ANSWERS: usize = 16 * 1024 * 1024;
/// Memory of one response of any size: a chunk of an archive, and a piece of its index as it is read.
pub const EXPORT: usize = 12 * 1024 * 1024;
/// Total memory of such responses: four, of which a tenant has two.
pub const EXPORTS: usize = 4 * EXPORT;
/// Smaller responses are not counted; their number is bounded by the requests in flight.
pub const SMALL: usize = 4 * 1024;
/// A response is not cut off before it is this old, and a tenant is not denied its equal share for longer than this.
const GRACE: Duration = Duration::from_millis(if cfg!(test) { 1000 } else { 5000 });
/// A tenant that was denied its equal share is remembered for this long after it last asked: 10 minutes.
const REMEMBERED: Duration = Duration::from_secs(GRACE.as_secs() * 120);
/// Average bytes per second at which a response is read fast enough to keep its memory while other tenants need it.
const PACE: f64 = 32.0 * 1024.0;
/// Bytes that can be in buffers of this process although the client has not read them.
const AHEAD: u64 = 128 * 1024;

/// What each tenant holds.
#[derive(Debug)]
pub struct Shares {
    /// Number of slots for requests in flight.
    in_flight: usize,
    bounds: Bounds,
    taken: Mutex<Taken>,
}

/// Maximum size of large responses in bytes, in total and per tenant.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    of_all: usize,
    of_one: usize,
    /// All responses have the same size, and each tenant may have one: see `places.rs`.
    places: bool,
}

#[derive(Debug, Default)]
struct Taken {
    requests: usize,
    answers: usize,
    tenants: HashMap<String, Held>,
    /// Number of the last response.
    next: u64,
    sending: HashMap<u64, Answer>,
    /// Tenants that were denied their equal share of the memory: when it was first and when it was last.
    denied: HashMap<String, (Instant, Instant)>,
}

#[derive(Debug, Default)]
struct Held {
    requests: usize,
    answers: usize,
}

/// A large response that is being sent.
#[derive(Debug)]
struct Answer {
    tenant: String,
    bytes: usize,
    began: Instant,
    sent: Arc<Progress>,
    /// Whether its request may have changed something.
    written: bool,
    /// Its connection; `None` if it cannot be closed.
    seat: Option<Arc<Seat>>,
}

/// The share of one request; released when dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    tenant: String,
}

/// Memory for one large response; released when dropped.
#[derive(Debug)]
pub struct Room {
    shares: Arc<Shares>,
    number: u64,
    sent: Arc<Progress>,
}

impl Shares {
    /// Shares of this many requests in flight and this many bytes of large responses.
    pub fn new(in_flight: usize, answers: usize) -> Arc<Self> {
        let bounds = Bounds { of_all: answers, of_one: answers / 2, places: false };
        Arc::new(Self { in_flight, bounds, taken: Mutex::default() })
    }

    /// Shares of this many requests in flight and of the places for responses of any size.
    pub fn of_exports(in_flight: usize) -> Arc<Self> {
        let bounds = Bounds { of_all: EXPORTS, of_one: EXPORTS / 2, places: true };
        Arc::new(Self { in_flight, bounds, taken: Mutex::default() })
    }

    /// Takes a share for this caller; `None` if its tenant has reached its limit.
    pub fn take(self: &Arc<Self>, caller: &Caller) -> Option<Share> {
        let tenant = tenant(caller);
        let mut all = self.lock();
        let own = all.tenants.get(&tenant).map_or(0, |held| held.requests);
        let free = self.in_flight.saturating_sub(all.requests);
        if own > 0 && (own >= free || free <= self.in_flight / 4) {
            return None;
        }
        all.requests += 1;
        all.tenants.entry(tenant.clone()).or_default().requests += 1;
        Some(Share { shares: Arc::clone(self), tenant })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock()
    }
}

impl Share {
    /// Reserves memory for the response; `None` if the limit is reached. A response that is larger than the limit is sent when no other one is, so that it
    /// is not rejected forever.
    pub fn room(&self, bytes: usize, seat: Option<Arc<Seat>>) -> Option<Room> {
        let mut all = self.shares.lock();
        let bounds = self.shares.bounds;
        let ended = if bounds.places { all.place(&self.tenant, bytes, bounds) } else { all.reclaim(&self.tenant, bytes, bounds) }?;
        if ended > 0 {
            tracing::info!(
                tenant = self.tenant,
                ended,
                "closed connections whose large responses are read too slowly or exceed their tenant's share, or exports that have run for the longest time: this tenant needs the memory"
            );
        }
        Some(self.hold(&mut all, bytes, false, seat))
    }

    /// Reserves memory for the response of a request that may have changed something. It is counted and never rejected. It gives way only once it is older
    /// than 5 s: its client had time to read at least the status.
    pub fn room_after_write(&self, bytes: usize, seat: Option<Arc<Seat>>) -> Room {
        self.hold(&mut self.shares.lock(), bytes, true, seat)
    }

    fn hold(&self, all: &mut Taken, bytes: usize, written: bool, seat: Option<Arc<Seat>>) -> Room {
        let (tenant, counted) = (self.tenant.clone(), Arc::<Progress>::default());
        all.answers += bytes;
        all.tenants.entry(tenant.clone()).or_default().answers += bytes;
        all.next += 1;
        let number = all.next;
        let answer = Answer { tenant, bytes, began: Instant::now(), sent: Arc::clone(&counted), written, seat };
        all.sending.insert(number, answer);
        Room { shares: Arc::clone(&self.shares), number, sent: counted }
    }
}

impl Room {
    /// How far it has been sent.
    pub fn sent(&self) -> Arc<Progress> {
        Arc::clone(&self.sent)
    }
}

impl Answer {
    /// Bytes per second that were sent, and whether the client reads too slowly; `None` if the connection must not be closed. `young` responses may be
    /// closed as well if another tenant has been denied its share; whether they are read too slowly is not known yet.
    fn pace(&self, now: Instant, young: bool) -> Option<(f64, bool)> {
        // Time in which the server has nothing to send is not the client's.
        let age = now.duration_since(self.began).saturating_sub(self.sent.waited(now));
        let old = age >= GRACE;
        self.seat.as_ref().filter(|_| old || (young && !self.written))?;
        let sent = self.sent.bytes.load(Ordering::Relaxed);
        let a_second = |bytes: u64| f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / age.as_secs_f64().max(0.001);
        Some((a_second(sent), old && a_second(sent.saturating_sub(AHEAD)) < PACE))
    }
}

impl Taken {
    /// Makes room for a response of this size, and closes other connections if necessary. Returns how many were closed; `None` if it does not fit,
    /// in which case none was closed.
    fn reclaim(&mut self, tenant: &str, bytes: usize, bounds: Bounds) -> Option<usize> {
        let fits = |taken: usize, most: usize| taken == 0 || taken + bytes <= most;
        let (mut all, mut own) = (self.answers, self.tenants.get(tenant).map_or(0, |held| held.answers));
        if fits(all, bounds.of_all) && fits(own, bounds.of_one) {
            self.denied.remove(tenant);
            return Some(0);
        }
        let mut held: HashMap<&str, usize> = self.tenants.iter().map(|(name, held)| (name.as_str(), held.answers)).collect();
        let sharing = held.values().filter(|answers| **answers > 0).count() + usize::from(own == 0);
        let equal = bounds.of_all / sharing;
        let entitled = own + bytes <= equal;
        let now = Instant::now();
        let owed = entitled && self.is_owed(tenant, now);
        let mut slowest: Vec<_> = self.sending.iter().filter_map(|(number, a)| Some((a.pace(now, owed)?, *number, a))).collect();
        // Those that are known to be read too slowly first: a young one has not had the time to be read.
        slowest.sort_by(|((a, slow_a), ..), ((b, slow_b), ..)| slow_b.cmp(slow_a).then(a.total_cmp(b)));
        let mut ended = Vec::new();
        for ((_, slow), number, answer) in slowest {
            let (room, own_room) = (fits(all, bounds.of_all), fits(own, bounds.of_one));
            if room && own_room {
                break;
            }
            let mine = answer.tenant == tenant;
            let of_tenant = held.entry(&answer.tenant).or_default();
            // A fast response is not closed while a slow one may only be too young to be recognized.
            let too_much = owed && !mine && *of_tenant > equal;
            if (slow && (mine || !room)) || (too_much && !room) {
                *of_tenant -= answer.bytes;
                all -= answer.bytes;
                own -= if mine { answer.bytes } else { 0 };
                ended.push(number);
            }
        }
        if fits(all, bounds.of_all) && fits(own, bounds.of_one) {
            self.denied.remove(tenant);
            return Some(ended.into_iter().map(|number| self.end(number)).count());
        }
        if entitled && !fits(all, bounds.of_all) {
            self.deny(tenant, now);
        }
        None
    }

    /// Whether this tenant has been denied its equal share for so long that young responses of others must give way.
    fn is_owed(&self, tenant: &str, now: Instant) -> bool {
        self.denied.get(tenant).is_some_and(|(first, last)| now.duration_since(*first) >= GRACE && recent(*last, now))
    }

    /// Records that this tenant was denied its equal share. A tenant that does not ask again is forgotten.
    fn deny(&mut self, tenant: &str, now: Instant) {
        self.denied.retain(|_, (_, last)| recent(*last, now));
        self.denied.entry(tenant.to_owned()).or_insert((now, now)).1 = now;
    }

    /// Closes the connection of a response. Its memory is released as soon as the task of the connection runs.
    fn end(&mut self, number: u64) {
        let Some(answer) = self.sending.remove(&number) else { return };
        if let Some(seat) = &answer.seat {
            seat.end();
        }
        self.give_back(&answer.tenant, 0, answer.bytes);
    }

    /// Releases resources, and removes a tenant that holds none.
    fn give_back(&mut self, tenant: &str, requests: usize, answers: usize) {
        self.requests -= requests;
        self.answers -= answers;
        if let Some(held) = self.tenants.get_mut(tenant) {
            held.requests -= requests;
            held.answers -= answers;
            if held.requests == 0 && held.answers == 0 {
                self.tenants.remove(tenant);
            }
        }
    }
}

/// Whether a tenant that was denied then still counts as waiting.
fn recent(denied: Instant, now: Instant) -> bool {
    now.duration_since(denied) <= REMEMBERED
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.lock().give_back(&self.tenant, 1, 0);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut all = self.shares.lock();
        if let Some(answer) = all.sending.remove(&self.number) {
            all.give_back(&answer.tenant, 0, answer.bytes);
        }
    }
}

/// The tenant of a caller: its namespace, or the user itself if it does not belong to a namespace.
fn tenant(caller: &Caller) -> String {
    match caller {
        Caller::Computer(id, _) => format!("namespace {}", id.namespace),
        Caller::User(user) => {
            user.namespace.as_ref().map_or_else(|| format!("user {}", user.name), |namespace| format!("namespace {namespace}"))
        }
    }
}

#[cfg(test)]
mod tests;
