//! Places for responses of any size (exports of archives), all of the same size. There are fewer places than tenants, so an equal share may be less than
//! one place, and an export that is read fast may take hours. So every tenant may have one place: a tenant that has none and was denied one for 5 s gets
//! that of the export that has been sent for the longest time, first of a tenant that has several. Its client resumes it with `Range`.
//!
//! An export is sent for at least 5 s from its first byte, so that each makes progress (L8). A free place is kept for the tenant that was denied first
//! and still asks, so that tenants that end their own exports and ask again do not keep their places.

use tokio::time::Instant;

use super::{Bounds, GRACE, Taken};

impl Taken {
    /// Finds a place, and closes another connection if necessary. Returns how many were closed; `None` if there is no place.
    pub(super) fn place(&mut self, tenant: &str, bytes: usize, bounds: Bounds) -> Option<usize> {
        let (now, own) = (Instant::now(), self.holds(tenant));
        let more = own + bytes <= bounds.of_one;
        let free = bounds.of_all.saturating_sub(self.answers) / bytes;
        if more && free > self.ahead(tenant, now) {
            self.denied.remove(tenant);
            return Some(0);
        }
        let owed = own == 0 && free == 0 && self.is_owed(tenant, now);
        let slow = self.slowest(tenant, more, now);
        let Some(number) = slow.or_else(|| self.longest(tenant, now).filter(|_| owed)) else {
            if own == 0 {
                self.deny(tenant, now);
            }
            return None;
        };
        self.denied.remove(tenant);
        self.end(number);
        Some(1)
    }

    fn holds(&self, tenant: &str) -> usize {
        self.tenants.get(tenant).map_or(0, |held| held.answers)
    }

    /// How many tenants without a place were denied one before this tenant was, and still ask.
    fn ahead(&self, tenant: &str, now: Instant) -> usize {
        let since = self.denied.get(tenant).map(|(first, _)| *first);
        let ahead = |first: Instant, last: Instant| now.duration_since(last) <= GRACE && since.is_none_or(|since| first < since);
        self.denied.iter().filter(|(name, (first, last))| *name != tenant && ahead(*first, *last)).count()
    }

    /// The export that is read too slowly, most of all: of all tenants, or of this one if it may not have more.
    fn slowest(&self, tenant: &str, of_all: bool, now: Instant) -> Option<u64> {
        let paces = self.sending.iter().filter(|(_, answer)| of_all || answer.tenant == tenant);
        let slow = paces.filter_map(|(number, answer)| Some((answer.pace(now, false).filter(|(_, slow)| *slow)?.0, *number)));
        slow.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, number)| number)
    }

    /// The export of another tenant that has been sent for the longest time, first of those that have several.
    fn longest(&self, tenant: &str, now: Instant) -> Option<u64> {
        let others = self.sending.iter().filter(|(_, answer)| answer.seat.is_some() && answer.tenant != tenant);
        let begun = others.filter_map(|(number, answer)| Some((answer, *number, answer.sent.first()?)));
        let old = begun.filter(|(.., first)| now.duration_since(*first) >= GRACE);
        old.min_by_key(|(answer, _, first)| (self.holds(&answer.tenant) <= answer.bytes, *first)).map(|(_, number, _)| number)
    }
}
