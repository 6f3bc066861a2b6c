//! Limits the share of one tenant: it may hold at most half of the slots for requests in flight, and half of the memory for large responses. A slow or
//! greedy tenant (slow uploads, waiting for deletions, unread responses) must never block the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::auth::Caller;

/// Total size in bytes of the large responses that are being sent.
pub const ANSWERS: usize = 16 * 1024 * 1024;
/// Smaller responses are not counted; their number is bounded by the requests in flight.
pub const SMALL: usize = 4 * 1024;

/// What each tenant holds.
#[derive(Debug)]
pub struct Shares {
    /// Maximum number of requests in flight of one tenant.
    most: usize,
    /// Maximum size of large responses in bytes, in total and per tenant.
    answers: (usize, usize),
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    answers: usize,
    tenants: HashMap<String, Held>,
}

#[derive(Debug, Default)]
struct Held {
    requests: usize,
    answers: usize,
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
    tenant: String,
    bytes: usize,
}

impl Shares {
    /// Shares of this many requests in flight and this many bytes of large responses.
    pub fn new(in_flight: usize, answers: usize) -> Arc<Self> {
        Arc::new(Self { most: (in_flight / 2).max(1), answers: (answers, answers / 2), taken: Mutex::default() })
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
    pub fn room(&self, bytes: usize) -> Option<Room> {
        let (of_all, of_one) = self.shares.answers;
        let mut all = self.shares.lock();
        let own = all.tenants.get(&self.tenant).map_or(0, |held| held.answers);
        let fits = |taken: usize, most: usize| taken == 0 || taken + bytes <= most;
        if !fits(own, of_one) || !fits(all.answers, of_all) {
            return None;
        }
        all.answers += bytes;
        all.tenants.entry(self.tenant.clone()).or_default().answers += bytes;
        Some(Room { shares: Arc::clone(&self.shares), tenant: self.tenant.clone(), bytes })
    }
}

impl Taken {
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
        self.shares.lock().give_back(&self.tenant, 0, self.bytes);
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
        let first = greedy.room(50).unwrap();
        assert!(greedy.room(1).is_none(), "the tenant has reached its half");
        let second = other.room(40).unwrap();
        assert!(third.room(11).is_none() && third.room(10).is_some(), "the total limit holds");
        drop((first, second));
        let huge = greedy.room(1000).expect("a response of any size is sent if it is the only one");
        assert!(other.room(1).is_none());
        drop((huge, greedy, other, third));
        let all = shares.lock();
        assert!(all.tenants.is_empty() && all.answers == 0);
    }
}
