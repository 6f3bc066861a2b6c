//! The time of day, as the API server says it: the `Date` of its answers, carried on by the monotonic clock. What time decides here
//! (times to live, deadlines, pauses, expiry) is counted from timestamps that the API server wrote. With a node's own clock, one that
//! is wrong or is set anew would begin deletions, give archives up, or wait for years. Before the first answer: the system's.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::http::{HeaderMap, Response, header};
use jiff::{SignedDuration, Timestamp};

/// What an answer may differ from what is expected without being believed: a `Date` has whole seconds and was on its way.
const USUAL: SignedDuration = SignedDuration::from_secs(2);
/// Every answer of an API server bears it, and that of a proxy in front of it does not.
const OF_API_SERVER: &str = "audit-id";

/// The last time that was believed, and when.
static HEARD: Mutex<Option<Heard>> = Mutex::new(None);

/// A time of day at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heard {
    said: Timestamp,
    at: Instant,
}

impl Heard {
    fn at(self, moment: Instant) -> Timestamp {
        let passed = SignedDuration::try_from(moment.saturating_duration_since(self.at)).unwrap_or(SignedDuration::MAX);
        self.said.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }
}

/// Pure: what is believed after an answer that said so.
fn believe(before: Option<Heard>, said: Timestamp, at: Instant) -> Heard {
    match before {
        Some(before) if before.at(at).duration_since(said).abs() <= USUAL => before,
        _ => Heard { said, at },
    }
}

fn heard() -> MutexGuard<'static, Option<Heard>> {
    // A copy is whole at any time.
    HEARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time of day.
pub fn now() -> Timestamp {
    heard().map_or_else(Timestamp::now, |heard| heard.at(Instant::now()))
}

/// The time that an API server's answer bears.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    headers.get(OF_API_SERVER)?;
    let date = headers.get(header::DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp())
}

/// Listens to what an answer says, and hands it on.
pub fn listen<B>(answer: Response<B>) -> Response<B> {
    if let Some(said) = date(answer.headers()) {
        let mut heard = heard();
        *heard = Some(believe(*heard, said, Instant::now()));
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_date_of_an_api_servers_answer_counts_and_that_of_nobody_else() {
        let answer = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
        };
        let said = "Wed, 25 Nov 2026 02:26:10 GMT";
        assert_eq!(date(&answer(&[("date", said), ("audit-id", "1")])), Some(time("2026-11-25T02:26:10Z")));
        assert_eq!(date(&answer(&[("date", said)])), None, "a proxy's");
        assert_eq!(date(&answer(&[("audit-id", "1")])), None);
        assert_eq!(date(&answer(&[("date", "yesterday"), ("audit-id", "1")])), None);
    }

    #[test]
    fn time_goes_on_by_itself_and_whole_seconds_do_not_make_it_jump() {
        let begin = Instant::now();
        let first = believe(None, time("2026-11-25T02:00:00Z"), begin);
        let later = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(first.at(later(600)), time("2026-11-25T02:10:00Z"));
        for said in ["2026-11-25T02:09:58Z", "2026-11-25T02:10:02Z"] {
            assert_eq!(believe(Some(first), time(said), later(600)), first);
        }
    }

    #[test]
    fn a_clock_that_was_set_anew_is_followed() {
        let begin = Instant::now();
        let first = believe(None, time("2026-11-25T02:00:00Z"), begin);
        let set = believe(Some(first), time("2016-11-25T02:00:00Z"), begin);
        assert_eq!(set.at(begin), time("2016-11-25T02:00:00Z"));
        assert_eq!(believe(Some(set), Timestamp::MAX, begin).at(begin + Duration::from_secs(9)), Timestamp::MAX, "no overflow");
    }
}
