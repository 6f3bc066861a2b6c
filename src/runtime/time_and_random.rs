//! Where the time of day and randomness come from: the API server and the system, or those of a simulation with a seed and a clock of its own.
//! Durations are tokio's business, not this module's.

use std::sync::Arc;

use jiff::Timestamp;
use rand::RngCore;

type Now = dyn Fn() -> Timestamp + Send + Sync;
type Fill = dyn Fn(&mut [u8]) + Send + Sync;

/// The time of day and randomness. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    now: Arc<Now>,
    fill: Arc<Fill>,
}

impl Default for Sources {
    /// The API server's time, the system's randomness.
    fn default() -> Self {
        Self::new(super::clock::now, |bytes| rand::rng().fill_bytes(bytes))
    }
}

/// Random material for this pass, so that plans stay pure functions of their input.
#[derive(Clone)]
pub struct Fresh {
    /// Suffix for new names: 128 bits, not to be guessed by a tenant.
    pub suffix: String,
    /// Secret bytes of a new key.
    pub key: [u8; 32],
}

impl Sources {
    /// `fill` must fill all of what it is given with bytes that nobody can guess.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static, fill: impl Fn(&mut [u8]) + Send + Sync + 'static) -> Self {
        Self { now: Arc::new(now), fill: Arc::new(fill) }
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// Random material for one pass.
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
