//! Limits the share of one tenant: it may hold at most half of the slots for requests in flight, and half of the memory for large responses. A slow or
//! greedy tenant (slow uploads, waiting for deletions, unread responses) must never block the others.
//!
//! When that memory is used up, the server closes connections whose responses are read too slowly, and then those of tenants that hold more than an equal
//! share, the slowest first. So no number of slow tenants denies another tenant its equal share. While memory is left, no response is cut off, however
//! slowly it is read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::auth::Caller;
use crate::runtime::server::connections::Seat;

/// Total size in bytes of the large responses that are being sent.
pub const ANSWERS: usize = 16 * 1024 * 1024;
/// Smaller responses are not counted; their number is bounded by the requests in flight.
pub const SMALL: usize = 4 * 1024;
/// A response is never cut off before it is this old.
const GRACE: Duration = Duration::from_millis(if cfg!(test) { 1000 } else { 5000 });
/// Average bytes per second at which a response is read fast enough to keep its memory while other tenants need it.
const PACE: f64 = 32.0 * 1024.0;
/// Bytes that can be in buffers of this process although the client has not read them.
const AHEAD: u64 = 128 * 1024;

/// What each tenant holds.
#[derive(Debug)]
pub struct Shares {
    /// Maximum number of requests in flight of one tenant.
    most: usize,
    bounds: Bounds,
    taken: Mutex<Taken>,
}

/// Maximum size of large responses in bytes, in total and per tenant.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    of_all: usize,
    of_one: usize,
}

#[derive(Debug, Default)]
struct Taken {
    answers: usize,
    tenants: HashMap<String, Held>,
    /// Number of the last response.
    next: u64,
    sending: HashMap<u64, Answer>,
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
    sent: Arc<AtomicU64>,
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
    sent: Arc<AtomicU64>,
}

impl Shares {
    /// Shares of this many requests in flight and this many bytes of large responses.
    pub fn new(in_flight: usize, answers: usize) -> Arc<Self> {
        let bounds = Bounds { of_all: answers, of_one: answers / 2 };
        Arc::new(Self { most: (in_flight / 2).max(1), bounds, taken: Mutex::default() })
    }

    /// Takes a share for this caller; `None` if its tenant has reached its limit.
    pub fn take(self: &Arc<Self>, caller: &Caller) -> Option<Share> {
        let tenant = tenant(caller);
        let mut all = self.lock();
        let held = all.tenants.entry(tenant.clone()).or_default();
        if held.requests >= self.most {
            return None;
        }
        held.requests += 1;
        Some(Share { shares: Arc::clone(self), tenant })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Reserves memory for the response; `None` if the limit is reached. A response that is larger than the limit is sent when no other one is, so that it
    /// is not rejected forever.
    pub fn room(&self, bytes: usize, seat: Option<Arc<Seat>>) -> Option<Room> {
        let mut all = self.shares.lock();
        let ended = all.reclaim(&self.tenant, bytes, self.shares.bounds)?;
        if ended > 0 {
            tracing::info!(
                tenant = self.tenant,
                ended,
                "closed connections that read large responses too slowly: other tenants need the memory"
            );
        }
        Some(self.hold(&mut all, bytes, seat))
    }

    /// Reserves memory for the response of a request that may have changed something. It is counted and never rejected.
    pub fn room_after_write(&self, bytes: usize, seat: Option<Arc<Seat>>) -> Room {
        self.hold(&mut self.shares.lock(), bytes, seat)
    }

    fn hold(&self, all: &mut Taken, bytes: usize, seat: Option<Arc<Seat>>) -> Room {
        let (tenant, counted) = (self.tenant.clone(), Arc::new(AtomicU64::new(0)));
        all.answers += bytes;
        all.tenants.entry(tenant.clone()).or_default().answers += bytes;
        all.next += 1;
        let number = all.next;
        all.sending.insert(number, Answer { tenant, bytes, began: Instant::now(), sent: Arc::clone(&counted), seat });
        Room { shares: Arc::clone(&self.shares), number, sent: counted }
    }
}

impl Room {
    /// The counter of the bytes that have been sent.
    pub fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }
}

impl Answer {
    /// Bytes per second that were sent, and whether the client reads too slowly; `None` if the connection must not be closed.
    fn pace(&self, now: Instant) -> Option<(f64, bool)> {
        let age = now.duration_since(self.began);
        self.seat.as_ref().filter(|_| age >= GRACE)?;
        let sent = self.sent.load(Ordering::Relaxed);
        let a_second = |bytes: u64| f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / age.as_secs_f64();
        Some((a_second(sent), a_second(sent.saturating_sub(AHEAD)) < PACE))
    }
}

impl Taken {
    /// Makes room for a response of this size, and closes other connections if necessary. Returns how many were closed; `None` if it does not fit,
    /// in which case none was closed.
    fn reclaim(&mut self, tenant: &str, bytes: usize, bounds: Bounds) -> Option<usize> {
        let fits = |taken: usize, most: usize| taken == 0 || taken + bytes <= most;
        let mut held: HashMap<&str, usize> = self.tenants.iter().map(|(name, held)| (name.as_str(), held.answers)).collect();
        let (mut all, mut own) = (self.answers, held.get(tenant).copied().unwrap_or(0));
        let sharing = held.values().filter(|answers| **answers > 0).count() + usize::from(own == 0);
        let equal = bounds.of_all / sharing;
        let entitled = own + bytes <= equal;
        let now = Instant::now();
        let mut slowest: Vec<_> = self.sending.iter().filter_map(|(number, a)| Some((a.pace(now)?, *number, a))).collect();
        slowest.sort_by(|(a, ..), (b, ..)| a.0.total_cmp(&b.0));
        let mut ended = Vec::new();
        for ((_, slow), number, answer) in slowest {
            let (room, own_room) = (fits(all, bounds.of_all), fits(own, bounds.of_one));
            if room && own_room {
                break;
            }
            let mine = answer.tenant == tenant;
            let of_tenant = held.entry(&answer.tenant).or_default();
            let too_much = entitled && !mine && *of_tenant > equal;
            if (slow && (mine || !room)) || (too_much && !room) {
                *of_tenant -= answer.bytes;
                all -= answer.bytes;
                own -= if mine { answer.bytes } else { 0 };
                ended.push(number);
            }
        }
        let fit = fits(all, bounds.of_all) && fits(own, bounds.of_one);
        fit.then(|| ended.into_iter().map(|number| self.end(number)).count())
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
        Caller::Computer(id) => format!("namespace {}", id.namespace),
        Caller::User(user) => {
            user.namespace.as_ref().map_or_else(|| format!("user {}", user.name), |namespace| format!("namespace {namespace}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::ComputerId;
    use crate::runtime::server::connections::Crowd;

    fn of(namespace: &str) -> Caller {
        Caller::Computer(ComputerId { namespace: namespace.into(), name: "c".into(), uid: "u".into() })
    }

    #[test]
    fn a_tenant_gets_half_of_the_requests_and_releases_them() {
        let shares = Shares::new(4, 100);
        let taken: Vec<_> = (0..2).map(|_| shares.take(&of("greedy")).unwrap()).collect();
        assert!(shares.take(&of("greedy")).is_none());
        assert!(shares.take(&of("other")).is_some());
        drop(taken);
        assert!(shares.lock().tenants.is_empty(), "tenants without requests are removed");
    }

    #[test]
    fn large_responses_of_one_tenant_leave_memory_for_others() {
        let shares = Shares::new(8, 100);
        let (greedy, other, third) =
            (shares.take(&of("greedy")).unwrap(), shares.take(&of("other")).unwrap(), shares.take(&of("third")).unwrap());
        let first = greedy.room(50, None).unwrap();
        assert!(greedy.room(1, None).is_none(), "the tenant has reached its half");
        let second = other.room(40, None).unwrap();
        assert!(third.room(11, None).is_none() && third.room(10, None).is_some(), "the total limit holds");
        drop((first, second));
        let huge = greedy.room(1000, None).expect("a response of any size is sent if it is the only one");
        assert!(other.room(1, None).is_none());
        drop((huge, greedy, other, third));
        let all = shares.lock();
        assert!(all.tenants.is_empty() && all.answers == 0);
    }

    fn seat() -> Arc<Seat> {
        Arc::new(Crowd::default()).seat("192.0.2.1".parse().unwrap())
    }

    fn is_ended(seat: &Seat) -> bool {
        futures::FutureExt::now_or_never(seat.closed()).is_some()
    }

    /// Two tenants that read slowly held all of the memory without a time limit.
    #[tokio::test(start_paused = true)]
    async fn slow_readers_of_any_number_of_tenants_leave_others_their_equal_share() {
        let shares = Shares::new(64, 1200);
        for slow in 2..6 {
            let tenants: Vec<_> = (0..slow).map(|n| shares.take(&of(&format!("slow-{n}"))).unwrap()).collect();
            let mut unread = Vec::new();
            // The tenants take turns until the memory is used up.
            while let Some(held) = (0..slow).find_map(|n| {
                let seat = seat();
                tenants[(unread.len() + n) % slow].room(50, Some(Arc::clone(&seat))).map(|room| (room, seat))
            }) {
                // These clients read fast enough, but their tenants hold more than an equal share.
                held.0.sent().store(u64::MAX, Ordering::Relaxed);
                unread.push(held);
            }
            let other = shares.take(&of("other")).unwrap();
            let equal = 1200 / (slow + 1);
            assert!(other.room(equal, None).is_none(), "young responses are not cut off");
            tokio::time::sleep(GRACE).await;
            let room = other.room(equal, None).expect("the equal share");
            let ended = unread.iter().filter(|(_, seat)| is_ended(seat)).count();
            assert!(ended > 0 && ended <= equal.div_ceil(50), "{ended} were cut off for {equal}");
            assert!(other.room(51, None).is_none(), "more than the equal share is not taken from fast clients");
            drop((room, other, unread, tenants));
            let all = shares.lock();
            assert_eq!((all.answers, all.sending.len()), (0, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_responses_are_cut_off_only_when_other_tenants_need_the_memory() {
        let shares = Shares::new(8, 100);
        let (one, two, third) = (shares.take(&of("one")).unwrap(), shares.take(&of("two")).unwrap(), shares.take(&of("third")).unwrap());
        let (stalled, healthy, small) = (seat(), seat(), seat());
        let _stalled = one.room(50, Some(Arc::clone(&stalled))).unwrap();
        let room = two.room(30, Some(Arc::clone(&healthy))).unwrap();
        tokio::time::sleep(GRACE * 100).await;
        assert!(!is_ended(&stalled) && !is_ended(&healthy), "no tenant needs the memory");
        let fast = 2.0 * PACE * (GRACE * 100).as_secs_f64();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        room.sent().store(fast as u64 + AHEAD, Ordering::Relaxed);
        let more = third.room(30, Some(Arc::clone(&small))).expect("the stalled response is cut off");
        assert!(is_ended(&stalled) && !is_ended(&healthy));
        assert!(two.room(70, None).is_none(), "more than half, and a young response is not cut off for it");
        assert!(!is_ended(&small));
        drop((more, room));
        assert_eq!(shares.lock().answers, 0, "memory is not released twice");
    }
}
