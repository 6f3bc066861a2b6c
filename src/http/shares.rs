//! Half of the requests in flight at most are one tenant's: who is slow or greedy, with bodies that trickle or deletions that are
//! waited for, leaves room for others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::auth::Caller;

/// Requests in flight of each tenant.
#[derive(Debug)]
pub struct Shares {
    most: usize,
    taken: Mutex<HashMap<String, usize>>,
}

/// One request's share; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    tenant: String,
}

impl Shares {
    /// Of this many requests in flight.
    pub fn new(in_flight: usize) -> Arc<Self> {
        Arc::new(Self { most: (in_flight / 2).max(1), taken: Mutex::default() })
    }

    /// A share for this caller; `None`: its tenant has all that it gets.
    pub fn take(self: &Arc<Self>, caller: &Caller) -> Option<Share> {
        let tenant = tenant(caller);
        let mut all = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = all.entry(tenant.clone()).or_default();
        if *taken >= self.most {
            return None;
        }
        *taken += 1;
        Some(Share { shares: Arc::clone(self), tenant })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut all = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = all.get_mut(&self.tenant) {
            *taken -= 1;
            if *taken == 0 {
                all.remove(&self.tenant);
            }
        }
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

    #[test]
    fn a_tenant_has_half_and_gets_it_back() {
        let shares = Shares::new(4);
        let of = |namespace: &str| Caller::Computer(ComputerId { namespace: namespace.into(), name: "c".into(), uid: "u".into() });
        let taken: Vec<_> = (0..2).map(|_| shares.take(&of("greedy")).unwrap()).collect();
        assert!(shares.take(&of("greedy")).is_none());
        assert!(shares.take(&of("other")).is_some());
        drop(taken);
        assert!(shares.taken.lock().unwrap().is_empty(), "no tenant is remembered for ever");
    }
}
