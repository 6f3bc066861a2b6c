//! The time of day, as the API server tells it: the `Date` of its answers, carried on by the monotonic clock. What time decides here
//! (times to live, deadlines, pauses, expiry) counts from timestamps that the API server wrote, so the clock of a node must not decide it.
//!
//! An answer says only that the server's time was `Date`, or up to a second more, at some moment between sending and receiving. That
//! bounds the time from both sides ([`Span`]). The rule:
//! - An answer that fits our time narrows it. Our time never goes backwards for that: it waits until the server's has caught up.
//! - An answer that does not fit is a doubt, not a fact: one of several API servers may have a wrong clock. An answer that fits our time
//!   ends the doubt. A doubt is believed when [`ENOUGH`] answers agree on it, the last one sent [`AHEAD`] or [`BEHIND`] after the first.
//!   So a server whose clock was really set is followed, and one wrong server out of several ends no deadline.
//! - Until an answer has confirmed it, our time is the system's. An earlier one is believed at once, a later one after [`FIRST`]: a time
//!   that is too early delays what is irrevocable, a time that is too late begins it.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Request, Response, header};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tower::{Layer, Service};

/// What the clocks of several API servers may differ by.
const USUAL: SignedDuration = SignedDuration::from_secs(2);
/// A `Date` has whole seconds.
const SECOND: SignedDuration = SignedDuration::from_secs(1);
/// How many answers make another time believed.
const ENOUGH: u32 = 3;
/// How long they must agree on a later time. Every watch is opened again within this, often at another server.
const AHEAD: Duration = Duration::from_secs(300);
/// How long they must agree on an earlier time.
const BEHIND: Duration = Duration::from_secs(60);
/// How long the first answers must agree on a later time than the system's.
const FIRST: Duration = Duration::from_secs(10);
/// Every answer of an API server has it, and that of a proxy in front of it does not.
const OF_API_SERVER: &str = "audit-id";

/// The clock of this process.
static CLOCK: LazyLock<Mutex<Clock>> = LazyLock::new(|| Mutex::new(Clock::new(Timestamp::now(), Instant::now())));

/// What one answer said.
#[derive(Clone, Copy, Debug)]
struct Answer {
    sent: Instant,
    received: Instant,
    date: Timestamp,
}

/// Where the server's time was at [`Clock::origin`], by one answer.
#[derive(Clone, Copy, Debug)]
struct Span {
    low: Timestamp,
    high: Timestamp,
}

impl Span {
    /// Whether a time fits, but for the usual difference between servers.
    fn fits(self, time: Timestamp) -> bool {
        time.saturating_add(USUAL).is_ok_and(|t| t >= self.low) && time.saturating_sub(USUAL).is_ok_and(|t| t <= self.high)
    }

    /// Whether a time is within.
    fn holds(self, time: Timestamp) -> bool {
        (self.low..=self.high).contains(&time)
    }

    /// The nearest time within.
    fn nearest(self, time: Timestamp) -> Timestamp {
        time.clamp(self.low, self.high.max(self.low))
    }
}

/// A time that answers agree on and that is not believed yet.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    /// At [`Clock::origin`].
    time: Timestamp,
    since: Instant,
    answers: u32,
}

/// The time of day, by the answers so far. Pure but for what is passed in.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// A moment that all times here are told of.
    origin: Instant,
    /// The time of day at that moment, as it is believed.
    time: Timestamp,
    /// An answer has agreed with it.
    confirmed: bool,
    doubt: Option<Doubt>,
    /// The latest time that was read.
    read: Timestamp,
}

impl Clock {
    fn new(system: Timestamp, now: Instant) -> Self {
        Self { origin: now, time: system, confirmed: false, doubt: None, read: Timestamp::MIN }
    }

    /// The time at a moment: never earlier than one that was read before.
    fn at(&mut self, moment: Instant) -> Timestamp {
        self.read = self.read.max(later(self.time, since(self.origin, moment)));
        self.read
    }

    fn span(&self, answer: &Answer) -> Span {
        let low = earlier(answer.date, since(self.origin, answer.received));
        let high = earlier(later(answer.date, SECOND), since(self.origin, answer.sent));
        Span { low, high }
    }

    /// Takes an answer in.
    fn hear(&mut self, answer: &Answer) {
        let span = self.span(answer);
        let doubted = self.doubt.filter(|doubt| span.fits(doubt.time));
        match (span.fits(self.time), doubted) {
            // It took so long, or the two are so near, that it does not tell which of them is right.
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
            // The server's time really went back: so does ours.
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

/// From one moment to another; negative if it is before.
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
    // A copy is whole at any time.
    CLOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time of day.
pub fn now() -> Timestamp {
    clock().at(Instant::now())
}

/// The time that an API server's answer bears.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    headers.get(OF_API_SERVER)?;
    let date = headers.get(header::DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp())
}

/// The layer of a client whose answers tell the time.
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
                clock().hear(&Answer { sent, received: Instant::now(), date });
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests;
