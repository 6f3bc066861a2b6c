//! The rules of the clock, against servers whose clocks are right, wrong, or set while they respond.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The time of the server with the right clock at the start.
fn begin() -> Timestamp {
    time("2026-11-25T02:00:00.4Z")
}

fn millis(count: i64) -> SignedDuration {
    SignedDuration::from_millis(count)
}

/// An API server and a clock. All times are milliseconds since the start.
struct Bench {
    origin: Instant,
    clock: Clock,
}

impl Bench {
    /// A clock whose system time is off by this much.
    fn new(system_off: i64) -> Self {
        // Earlier moments must be representable.
        let origin = Instant::now() + Duration::from_secs(1000);
        Self { origin, clock: Clock::new(later(begin(), millis(system_off)), origin) }
    }

    /// A clock that a response has confirmed.
    fn right() -> Self {
        let mut bench = Self::new(0);
        bench.answer(0, 10, 10, 0);
        bench
    }

    fn moment(&self, at: i64) -> Instant {
        self.origin + Duration::from_millis(at.unsigned_abs())
    }

    /// A response of a server whose clock is off by this much.
    fn answer(&mut self, sent: i64, date_at: i64, received: i64, off: i64) {
        let exact = later(begin(), millis(date_at + off));
        let date = Timestamp::from_second(exact.as_millisecond().div_euclid(1000)).unwrap();
        self.clock.observe(&Answer { sent: self.moment(sent), received: self.moment(received), date });
    }

    /// How far the clock is ahead of the right time, in milliseconds.
    fn off(&mut self, at: i64) -> i64 {
        let moment = self.moment(at);
        self.clock.at(moment).as_millisecond() - later(begin(), millis(at)).as_millisecond()
    }
}

const HOUR: i64 = 3_600_000;

#[test]
fn only_the_date_of_an_api_servers_response_counts() {
    let answer = |pairs: &[(&'static str, &str)]| -> HeaderMap {
        pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
    };
    let date_at = "Wed, 25 Nov 2026 02:26:10 GMT";
    assert_eq!(date(&answer(&[("date", date_at), ("audit-id", "1")])), Some(time("2026-11-25T02:26:10Z")));
    assert_eq!(date(&answer(&[("date", date_at)])), None, "the response of a proxy");
    assert_eq!(date(&answer(&[("audit-id", "1")])), None);
    assert_eq!(date(&answer(&[("date", "yesterday"), ("audit-id", "1")])), None);
}

#[test]
fn the_clock_advances_without_responses() {
    let mut bench = Bench::right();
    assert!(bench.off(600_000).abs() <= 1000);
    assert!(bench.off(10 * HOUR).abs() <= 1000);
}

/// Seen on a busy machine: a response that arrived seconds late set the clock back, so that an expired time to live was no longer expired.
#[test]
fn a_slow_response_does_not_set_the_clock_back() {
    let mut bench = Bench::right();
    let before = bench.off(8_000);
    bench.answer(20, 30, 8_000, 0);
    assert_eq!(bench.off(8_000), before);
    bench.answer(20, 14_000, 15_000, 0);
    assert_eq!(bench.off(15_000), before);
}

#[test]
fn one_response_of_a_wrong_server_changes_nothing() {
    for wrong in [HOUR, -HOUR, 10_000] {
        let mut bench = Bench::right();
        bench.answer(5_000, 5_010, 5_020, wrong);
        assert!(bench.off(5_020).abs() <= 1000, "{wrong}");
    }
}

/// In both directions.
#[test]
fn the_clock_follows_a_server_whose_clock_was_set() {
    for (set, within) in [(HOUR, AHEAD), (-HOUR, BEHIND), (87_600 * HOUR, AHEAD)] {
        let mut bench = Bench::right();
        let within = i64::try_from(within.as_millis()).unwrap();
        for n in 1..=within / 2_000 + 2 {
            assert!(bench.off(n * 2_000 - 1).abs() <= 1000 || n * 2_000 > within, "{set}: too early, after {n} responses");
            bench.answer(n * 2_000, n * 2_000 + 5, n * 2_000 + 10, set);
        }
        let end = within + 6_000;
        assert!((bench.off(end) - set).abs() <= 1000, "{set}: {}", bench.off(end));
    }
}

/// On a node with a wrong clock, the API server's time is used as soon as it is known.
#[test]
fn a_wrong_system_clock_is_corrected() {
    let mut ahead = Bench::new(HOUR);
    assert_eq!(ahead.off(0), HOUR);
    ahead.answer(0, 5, 10, 0);
    assert!(ahead.off(10).abs() <= 1000, "at once");
    let mut behind = Bench::new(-HOUR);
    for n in 0..=6 {
        behind.answer(n * 2_000, n * 2_000 + 5, n * 2_000 + 10, 0);
    }
    assert!(behind.off(12_010).abs() <= 1000);
}

/// The very first response comes from the server with the wrong clock.
#[test]
fn a_wrong_first_response_does_not_override_the_system_and_other_servers() {
    let mut bench = Bench::new(0);
    for n in 0..200 {
        let wrong = if n % 3 == 0 { HOUR } else { 0 };
        bench.answer(n * 2_000, n * 2_000 + 5, n * 2_000 + 10, wrong);
        assert!(bench.off(n * 2_000 + 10).abs() <= 1500, "response {n}");
    }
}

#[test]
fn extreme_times_do_not_panic() {
    let mut bench = Bench::right();
    for date in [Timestamp::MAX, Timestamp::MIN] {
        for n in 0..400_i64 {
            let at = bench.moment(n * 2_000);
            bench.clock.observe(&Answer { sent: at, received: at, date });
        }
        let last = bench.moment(900_000);
        bench.clock.at(last);
    }
}

/// Responses: a pause, the time until the server, and the time back.
fn answers() -> impl Strategy<Value = Vec<(i64, i64, i64)>> {
    proptest::collection::vec((0..30_000_i64, 0..15_000_i64, 0..15_000_i64), 1..80)
}

proptest! {
    /// However slow the responses are, the clock never goes backwards and is never off by more than the latency.
    #[test]
    fn time_only_goes_forward(answers in answers(), skews in proptest::collection::vec(-900..900_i64, 3)) {
        let (mut bench, mut at, mut last) = (Bench::right(), 30_000, Timestamp::MIN);
        for (n, (pause, there, back)) in answers.into_iter().enumerate() {
            // In the order of arrival: a request may be in flight while other responses arrive.
            at += pause;
            bench.answer(at - back - there, at - back, at, skews[n % 3]);
            let received = bench.moment(at);
            let read = bench.clock.at(received);
            prop_assert!(read >= last, "{last} then {read}");
            last = read;
            prop_assert!(bench.off(at).abs() <= 2_500);
        }
    }

    /// C4: one of three servers has a wrong clock. The clock does not jump as long as another server responds in time.
    #[test]
    fn one_wrong_server_of_three_ends_no_deadline(
        answers in proptest::collection::vec((100..4_000_i64, 0..2_000_i64, 0..3_usize), 30..300),
        wrong in prop_oneof![20_000..10 * HOUR, -10 * HOUR..-20_000],
        system in -1_000..1_000_i64,
    ) {
        let (mut bench, mut at, mut right_at) = (Bench::new(system), 0, 0);
        for (pause, took, server) in answers {
            at += pause;
            // A server with the right clock responds at least this often.
            let right = server != 0 || at - right_at > 8_000;
            right_at = if right { at } else { right_at };
            bench.answer(at, at + took / 2, at + took, if right { 0 } else { wrong });
            let off = bench.off(at + took);
            // Before the system's clock has been confirmed, an earlier time is accepted at once, which only delays.
            prop_assert!(off <= 4_000, "{off} ms ahead");
        }
    }

    /// The clock follows a server whose clock was set within the bound, whatever happened before.
    #[test]
    fn a_real_step_is_followed_within_its_bound(
        before in answers(),
        step in prop_oneof![20_000..100 * HOUR, -100 * HOUR..-20_000],
        after in proptest::collection::vec((0..2_000_i64, 0..1_000_i64), 400),
    ) {
        let (mut bench, mut at) = (Bench::right(), 0);
        for (pause, there, back) in before {
            at += pause;
            bench.answer(at, at + there, at + there + back, 0);
        }
        at += 40_000;
        let set = at;
        let mut followed = None;
        for (pause, took) in after {
            at += 1_000 + pause;
            bench.answer(at, at + took, at + took, step);
            if (bench.off(at + took) - step).abs() <= 3_000 {
                followed.get_or_insert(at + took - set);
            }
        }
        let bound = i64::try_from(AHEAD.as_millis()).unwrap() + 10_000;
        prop_assert!(followed.is_some_and(|after| after <= bound), "{followed:?}");
        prop_assert!((bench.off(at + 2_000) - step).abs() <= 3_000);
    }
}
