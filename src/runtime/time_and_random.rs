//! The sources of wall-clock time and randomness: the API server and the system, or a simulation with its own seed and clock. Durations are measured with
//! tokio and not here.

use std::sync::Arc;

use jiff::Timestamp;
use rand::RngCore;

type Now = dyn Fn() -> Timestamp + Send + Sync;
type Fill = dyn Fn(&mut [u8]) + Send + Sync;

/// Wall-clock time and randomness. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    now: Arc<Now>,
    fill: Arc<Fill>,
}

impl Default for Sources {
    /// The time of the API server and the randomness of the system.
    fn default() -> Self {
        Self::new(super::clock::now, |bytes| rand::rng().fill_bytes(bytes))
    }
}

/// Random data for one reconcile, so that plans stay pure functions of their input.
#[derive(Clone)]
pub struct Fresh {
    /// Suffix of new names: 128 bits, so that a tenant cannot guess it.
    pub suffix: String,
    /// Secret bytes of a new key.
    pub key: [u8; 32],
}

impl Sources {
    /// Creates sources. `fill` must fill the whole slice with unpredictable bytes.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static, fill: impl Fn(&mut [u8]) + Send + Sync + 'static) -> Self {
        Self { now: Arc::new(now), fill: Arc::new(fill) }
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// Random data for one reconcile.
    pub fn fresh(&self) -> Fresh {
        Fresh { key: self.bytes(), suffix: hex::encode(self.bytes::<16>()) }
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        (self.fill)(&mut bytes);
        bytes
    }
}
