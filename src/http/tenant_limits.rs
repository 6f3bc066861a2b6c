//! What one tenant may hold of what all of them share: half of the requests in flight, and half of the memory for large answers. A tenant
//! that is slow or greedy, with bodies that trickle, deletions that are waited for or answers that nobody reads, leaves room for others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::auth::Caller;

/// Bytes of large answers that are being sent, of all tenants.
pub const ANSWERS: usize = 16 * 1024 * 1024;
/// A smaller answer is not counted: there are not more of them than requests in flight.
pub const SMALL: usize = 4 * 1024;

/// What each tenant holds.
#[derive(Debug)]
pub struct Shares {
    /// Requests in flight of one tenant.
    most: usize,
    /// Bytes of large answers, of all and of one tenant.
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

/// One request's share; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    tenant: String,
}

/// Memory for one large answer; given back when it is dropped.
#[derive(Debug)]
pub struct Room {
    shares: Arc<Shares>,
    tenant: String,
    bytes: usize,
}

impl Shares {
    /// Of this many requests in flight, and this many bytes of large answers.
    pub fn new(in_flight: usize, answers: usize) -> Arc<Self> {
        Arc::new(Self { most: (in_flight / 2).max(1), answers: (answers, answers / 2), taken: Mutex::default() })
    }

    /// A share for this caller; `None`: its tenant has all that it gets.
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
    /// Memory for an answer to this request; `None`: too much is being sent already. An answer that is larger than its bound is sent when
    /// no other one is: it must not be refused for ever.
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
    /// Gives back, and forgets a tenant that holds nothing.
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

/// A namespace, whoever in it calls; a user of the cluster is a tenant for itself.
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
    fn a_tenant_has_half_and_gets_it_back() {
        let shares = Shares::new(4, 100);
        let taken: Vec<_> = (0..2).map(|_| shares.take(&of("greedy")).unwrap()).collect();
        assert!(shares.take(&of("greedy")).is_none());
        assert!(shares.take(&of("other")).is_some());
        drop(taken);
        assert!(shares.lock().tenants.is_empty(), "no tenant is remembered for ever");
    }

    #[test]
    fn large_answers_of_one_tenant_leave_room_for_others() {
        let shares = Shares::new(8, 100);
        let (greedy, other, third) =
            (shares.take(&of("greedy")).unwrap(), shares.take(&of("other")).unwrap(), shares.take(&of("third")).unwrap());
        let first = greedy.room(50).unwrap();
        assert!(greedy.room(1).is_none(), "it has half");
        let second = other.room(40).unwrap();
        assert!(third.room(11).is_none() && third.room(10).is_some(), "all together have no more than all of it");
        drop((first, second));
        let huge = greedy.room(1000).expect("alone, any answer is sent");
        assert!(other.room(1).is_none());
        drop((huge, greedy, other, third));
        let all = shares.lock();
        assert!(all.tenants.is_empty() && all.answers == 0);
    }
}
