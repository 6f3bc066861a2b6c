//! The connections of one endpoint, and which of them is closed for a new connection when all slots are in use.
//!
//! Only a connection that waits for a request (between two requests, or for the rest of a head) may be closed. It is chosen from the client with the most
//! connections, and of these it is the one that has been idle longest. A client that opens many connections thus closes its own.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;

/// All connections of one endpoint.
#[derive(Debug, Default)]
pub struct Crowd {
    all: Mutex<All>,
    waits: Notify,
}

#[derive(Debug, Default)]
struct All {
    /// The next number, for seats and for the order in which they became idle.
    next: u64,
    seats: HashMap<u64, Place>,
    peers: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Place {
    peer: IpAddr,
    /// When it became idle; `None` while a request is being answered or the connection is being closed.
    waits: Option<u64>,
    close: CancellationToken,
}

/// One connection; removed from the endpoint when dropped.
#[derive(Debug)]
pub struct Seat {
    crowd: Arc<Crowd>,
    number: u64,
    close: CancellationToken,
}

impl Crowd {
    /// Adds a new connection, which waits for its first request.
    pub fn seat(self: &Arc<Self>, peer: IpAddr) -> Arc<Seat> {
        let (peer, close) = (network(peer), CancellationToken::new());
        let mut all = self.lock();
        all.next += 1;
        let number = all.next;
        all.seats.insert(number, Place { peer, waits: Some(number), close: close.clone() });
        *all.peers.entry(peer).or_default() += 1;
        Arc::new(Seat { crowd: Arc::clone(self), number, close })
    }

    /// Closes one idle connection; `false` if all connections are busy.
    pub fn close_one(&self) -> bool {
        let mut all = self.lock();
        let All { seats, peers, .. } = &mut *all;
        let waiting = seats.values_mut().filter(|place| place.waits.is_some());
        let chosen = waiting.max_by_key(|place| (peers.get(&place.peer).copied(), std::cmp::Reverse(place.waits)));
        let Some(place) = chosen else { return false };
        place.waits = None;
        place.close.cancel();
        true
    }

    /// Completes when a connection becomes idle after this call.
    pub fn next_idle(&self) -> Notified<'_> {
        self.waits.notified()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock()
    }
}

impl Seat {
    /// A request is being answered, so the connection must not be closed for another one.
    pub fn busy(&self) {
        if let Some(place) = self.crowd.lock().seats.get_mut(&self.number) {
            place.waits = None;
        }
    }

    /// The response has been sent, and the connection waits for another request.
    pub fn waits(&self) {
        let mut all = self.crowd.lock();
        all.next += 1;
        let now = all.next;
        if let Some(place) = all.seats.get_mut(&self.number).filter(|place| !place.close.is_cancelled()) {
            place.waits = Some(now);
            drop(all);
            self.crowd.waits.notify_waiters();
        }
    }

    /// Closes the connection even though one of its requests is being answered.
    pub fn end(&self) {
        self.close.cancel();
    }

    /// Completes when the connection must be closed for another one.
    pub async fn closed(&self) {
        self.close.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.crowd.lock();
        let Some(place) = all.seats.remove(&self.number) else { return };
        if let Some(count) = all.peers.get_mut(&place.peer) {
            *count -= 1;
            if *count == 0 {
                all.peers.remove(&place.peer);
            }
        }
    }
}

/// The network of a client: an IPv4 address, or a /64 IPv6 network, within which one machine can use any number of addresses.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_client_with_the_most_connections_loses_the_one_that_was_idle_longest() {
        let crowd = Arc::new(Crowd::default());
        let polite = crowd.seat(address("192.0.2.1"));
        let greedy: Vec<_> = (0..3).map(|_| crowd.seat(address("192.0.2.2"))).collect();
        greedy[0].busy();
        assert!(crowd.close_one());
        assert!(greedy[1].close.is_cancelled() && !greedy[2].close.is_cancelled() && !polite.close.is_cancelled());
        drop(greedy);
        assert!(crowd.close_one() && polite.close.is_cancelled());
        drop(polite);
        let all = crowd.lock();
        assert!(all.seats.is_empty() && all.peers.is_empty(), "closed connections are removed");
    }

    #[test]
    fn a_busy_connection_is_never_closed() {
        let crowd = Arc::new(Crowd::default());
        let seat = crowd.seat(address("192.0.2.1"));
        seat.busy();
        assert!(!crowd.close_one());
        seat.waits();
        assert!(crowd.close_one() && !crowd.close_one(), "a connection is closed only once");
        seat.waits();
        assert!(!crowd.close_one());
    }

    #[test]
    fn addresses_of_one_network_count_as_one_client() {
        assert_eq!(network(address("2001:db8::1")), network(address("2001:db8::ffff:1")));
        assert_ne!(network(address("2001:db8::1")), network(address("2001:db8:0:1::1")));
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }
}
