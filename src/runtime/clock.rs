//! Wall-clock time according to the API server: the `Date` header of its responses, advanced by the monotonic clock. Times to live, deadlines, pauses and
//! expiry times are relative to timestamps that the API server wrote, so the clock of a node must not decide about them.
//!
//! A response shows only that the server's time was `Date`, or up to a second later, at some moment between sending and receiving. That bounds the time
//! from both sides ([`Span`]). The rules:
//! - A response that is consistent with our time narrows it. Our time never goes backwards for that: it waits until the server's time has caught up.
//! - An inconsistent response is only a doubt, because one of several API servers may have a wrong clock. A consistent response ends the doubt. A doubt is
//!   accepted when [`ENOUGH`] responses agree on it and the last one was sent [`AHEAD`] or [`BEHIND`] after the first. The clock therefore follows a server
//!   whose clock was set, but one wrong server among several does not end any deadline.
//! - Until a response has confirmed it, our time is the system's. An earlier time is accepted at once, a later one after [`FIRST`]: a time that is too early
//!   only delays irreversible actions, while a time that is too late would start them.

use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Request, Response, header};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use parking_lot::{Mutex, MutexGuard};
use tower::{Layer, Service};

/// Tolerated difference between the clocks of several API servers.
const USUAL: SignedDuration = SignedDuration::from_secs(2);
/// The resolution of `Date`.
const SECOND: SignedDuration = SignedDuration::from_secs(1);
/// Number of responses that must agree before another time is accepted.
const ENOUGH: u32 = 3;
/// How long they must agree on a later time. Every watch is reopened within this time, often on another server.
const AHEAD: Duration = Duration::from_secs(300);
/// How long they must agree on an earlier time.
const BEHIND: Duration = Duration::from_secs(60);
/// How long the first responses must agree on a later time than the system's.
const FIRST: Duration = Duration::from_secs(10);
/// A header that every response of an API server has, but not the response of a proxy in front of it.
const OF_API_SERVER: &str = "audit-id";

/// The clock of this process.
static CLOCK: LazyLock<Mutex<Clock>> = LazyLock::new(|| Mutex::new(Clock::new(Timestamp::now(), Instant::now())));

/// The `Date` of one response.
#[derive(Clone, Copy, Debug)]
struct Answer {
    sent: Instant,
    received: Instant,
    date: Timestamp,
}

/// The bounds of the server's time at [`Clock::origin`] according to one response.
#[derive(Clone, Copy, Debug)]
struct Span {
    low: Timestamp,
    high: Timestamp,
}

impl Span {
    /// Whether a time is within the bounds, with the tolerated difference between servers.
    fn fits(self, time: Timestamp) -> bool {
        time.saturating_add(USUAL).is_ok_and(|t| t >= self.low) && time.saturating_sub(USUAL).is_ok_and(|t| t <= self.high)
    }

    /// Whether a time is within the bounds.
    fn holds(self, time: Timestamp) -> bool {
        (self.low..=self.high).contains(&time)
    }

    /// The nearest time within the bounds.
    fn nearest(self, time: Timestamp) -> Timestamp {
        time.clamp(self.low, self.high.max(self.low))
    }
}

/// A time that responses agree on but that is not accepted yet.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    /// At [`Clock::origin`].
    time: Timestamp,
    since: Instant,
    answers: u32,
}

/// The time according to the responses so far. Pure: all times are passed in.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// The moment that all times in this struct refer to.
    origin: Instant,
    /// The accepted wall-clock time at that moment.
    time: Timestamp,
    /// Whether a response has confirmed it.
    confirmed: bool,
    doubt: Option<Doubt>,
    /// The latest time that was read.
    read: Timestamp,
}

impl Clock {
    fn new(system: Timestamp, now: Instant) -> Self {
        Self { origin: now, time: system, confirmed: false, doubt: None, read: Timestamp::MIN }
    }

    /// The time at a moment, never earlier than a time that was read before.
    fn at(&mut self, moment: Instant) -> Timestamp {
        self.read = self.read.max(later(self.time, since(self.origin, moment)));
        self.read
    }

    fn span(&self, answer: &Answer) -> Span {
        let low = earlier(answer.date, since(self.origin, answer.received));
        let high = earlier(later(answer.date, SECOND), since(self.origin, answer.sent));
        Span { low, high }
    }

    /// Processes a response.
    fn observe(&mut self, answer: &Answer) {
        let span = self.span(answer);
        let doubted = self.doubt.filter(|doubt| span.fits(doubt.time));
        match (span.fits(self.time), doubted) {
            // The response is consistent with both times, so it cannot decide between them.
            (true, Some(doubt)) if !span.holds(self.time) || span.holds(doubt.time) => {}
            (true, _) => {
                self.time = span.nearest(self.time);
                self.confirmed = true;
                self.doubt = None;
            }
            (false, Some(doubt)) => {
                self.doubt = Some(Doubt { time: span.nearest(doubt.time), answers: doubt.answers.saturating_add(1), ..doubt });
            }
            (false, None) => self.doubt = Some(Doubt { time: span.low, since: answer.received, answers: 1 }),
        }
        if let Some(doubt) = self.doubt.filter(|doubt| self.believable(doubt, answer)) {
            // The server's clock was set back, so ours follows.
            if doubt.time < self.time {
                self.read = Timestamp::MIN;
            }
            *self = Self { time: doubt.time, confirmed: true, doubt: None, ..*self };
        }
    }

    fn believable(&self, doubt: &Doubt, answer: &Answer) -> bool {
        let agreed = answer.sent.saturating_duration_since(doubt.since);
        match (self.confirmed, doubt.time < self.time) {
            (false, true) => true,
            (false, false) => agreed >= FIRST && doubt.answers >= ENOUGH,
            (true, true) => agreed >= BEHIND && doubt.answers >= ENOUGH,
            (true, false) => agreed >= AHEAD && doubt.answers >= ENOUGH,
        }
    }
}

/// The time from one moment to another; negative if the other is earlier.
fn since(origin: Instant, moment: Instant) -> SignedDuration {
    let positive = |passed: Duration| SignedDuration::try_from(passed).unwrap_or(SignedDuration::MAX);
    match moment.checked_duration_since(origin) {
        Some(passed) => positive(passed),
        None => -positive(origin.saturating_duration_since(moment)),
    }
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn earlier(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_sub(by).unwrap_or(Timestamp::MIN)
}

fn clock() -> MutexGuard<'static, Clock> {
    CLOCK.lock()
}

/// The current wall-clock time.
pub fn now() -> Timestamp {
    clock().at(Instant::now())
}

/// The time in the response of an API server.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    headers.get(OF_API_SERVER)?;
    let date = headers.get(header::DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp())
}

/// The client layer that updates the clock from responses.
#[derive(Clone, Copy, Debug)]
pub struct ListenLayer;

/// See [`ListenLayer`].
#[derive(Clone, Debug)]
pub struct Listening<S>(S);

impl<S> Layer<S> for ListenLayer {
    type Service = Listening<S>;

    fn layer(&self, inner: S) -> Listening<S> {
        Listening(inner)
    }
}

impl<S, A, B> Service<Request<A>> for Listening<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let sent = Instant::now();
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(date) = date(answer.headers()) {
                clock().observe(&Answer { sent, received: Instant::now(), date });
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests;
