//! Explains failures of the archive store in stable texts. A text must never contain a request id or a duration: it would differ in each
//! attempt, each difference is a status write, and each status write would trigger the next attempt. [`STORE_ERRORS`] counts failures by reason.
//! Whether a failure is retried or blocks a deletion is not decided here: `verify` sorts it, `computer/deletion/archive.rs` decides.

use std::error::Error;
use std::sync::LazyLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// The reason of a failure: see [`Failure::reason`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ErrorLabels {
    reason: &'static str,
}

/// Failures of the archive stores of this process, by reason. A request that is repeated inside `object_store` counts once.
pub static STORE_ERRORS: LazyLock<Family<ErrorLabels, Counter>> = LazyLock::new(Family::default);

/// Counts a failure that is known without an answer of the store.
pub fn count(reason: &'static str) {
    STORE_ERRORS.get_or_create(&ErrorLabels { reason }).inc();
}

/// The store did not answer in time.
pub const NO_ANSWER: &str = "NoAnswer";
/// The folder of a local store is not there, or not the one that was opened.
pub const FOLDER_MISSING: &str = "FolderMissing";
/// No space is left, or only what is reserved for receipts and manifests.
pub const FULL: &str = "Full";

/// A kind of failure: its reason, what is wrong, and what to do about it.
type Kind = (&'static str, &'static str, &'static str);

/// What is known of a failed request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The status of the answer, if there was one.
    status: Option<u16>,
    /// The store's own code, as in S3's `<Code>NoSuchBucket</Code>`.
    code: Option<String>,
    /// The number of the operating system's error.
    errno: Option<i32>,
    /// The innermost cause, as a stable text.
    cause: String,
}

impl Failure {
    /// Reads the chain of an error.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut failure = Self::default();
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if let Some(status) = status(&text) {
                failure.status = Some(status);
                failure.code = code(&text);
            }
            if let Some(error) = error.downcast_ref::<std::io::Error>() {
                failure.errno = error.raw_os_error().or(failure.errno);
            }
            failure.cause = steady(&text);
            next = error.source();
        }
        failure
    }

    /// Whether the store itself says that the object does not exist. A 404 alone is no proof: a proxy also answers it, and so does S3 for a
    /// bucket that does not exist.
    pub fn says_no_such_key(&self) -> bool {
        self.status == Some(404) && self.code.as_deref() == Some("NoSuchKey")
    }

    /// Counts the failure, and says what is wrong and what to do about it.
    pub fn report(&self) -> String {
        count(self.reason());
        self.explain()
    }

    /// The kind of the failure in one word, from a fixed list.
    pub fn reason(&self) -> &'static str {
        self.kind().0
    }

    /// What is wrong, and what to do about it.
    pub fn explain(&self) -> String {
        let (_, what, advice) = self.kind();
        match self.status {
            Some(status) => {
                let code = self.code.as_deref().unwrap_or("no error code");
                format!("the archive store {what} (HTTP {status}, {code}): {advice}")
            }
            None => format!("{what} ({}): {advice}", self.cause),
        }
    }

    fn kind(&self) -> Kind {
        match self.status {
            Some(status) => of_answer(status, self.code.as_deref().unwrap_or_default()),
            None => self.of_system(),
        }
    }

    fn of_system(&self) -> Kind {
        const ENOENT: i32 = 2;
        const EACCES: i32 = 13;
        const ENOSPC: i32 = 28;
        const EROFS: i32 = 30;
        const EDQUOT: i32 = 122;
        match self.errno {
            Some(ENOSPC | EDQUOT) => (FULL, "the archive store is full", "free space on its volume, or enlarge it"),
            Some(EROFS) => ("ReadOnly", "the archive store is read-only", "its volume may be damaged, or mounted read-only"),
            Some(EACCES) => ("AccessDenied", "the archive store denies access", "check the owner and the mode of its folder"),
            Some(ENOENT) => (FOLDER_MISSING, "a folder of the archive store is missing", "check its volume"),
            _ if self.cause.contains("no progress in time") => {
                (NO_ANSWER, "the archive store does not answer", "check that it is running and that the operator can connect to it")
            }
            _ if self.cause.contains("certificate") => (
                "Certificate",
                "the certificate of the archive store is not accepted",
                "check the endpoint's name and its certificate authority",
            ),
            _ => ("Unreachable", "the archive store cannot be used", "check that it is running and that the operator can connect to it"),
        }
    }
}

/// What an answer means, and what to do about it.
fn of_answer(status: u16, code: &str) -> Kind {
    match (status, code) {
        (_, "NoSuchBucket") => ("NoSuchBucket", "has no such bucket", "check its name, region and endpoint, or create it"),
        (_, "RequestTimeTooSkewed") => ("ClockSkew", "rejects the time of the request", "check the clocks of the node and of the store"),
        (
            _,
            "InvalidAccessKeyId" | "XAdminUserNotFound" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" | "InvalidSecurity",
        )
        | (401, _) => ("InvalidCredentials", "does not accept the credentials", "check the access key and the secret key"),
        (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull" | "StorageFull" | "InsufficientCapacity") => {
            (FULL, "is full", "free space in it, or raise its quota")
        }
        (403, _) => (
            "AccessDenied",
            "denies access",
            "the credentials need s3:GetObject, s3:PutObject and, to distinguish missing objects from denied ones, s3:ListBucket",
        ),
        (404, _) => (
            "UnprovenAbsence",
            "does not say that the object is missing",
            "check bucket and endpoint: a proxy or another server may have answered",
        ),
        (_, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") | (300..=399, _) => {
            ("WrongRegion", "is in another region or has another endpoint", "check region and endpoint")
        }
        (_, "NotImplemented") | (501, _) => {
            ("Unsupported", "does not support the request", "use a store that supports conditional writes (If-None-Match: *)")
        }
        (429, _) | (_, "SlowDown" | "RequestLimitExceeded" | "ServiceUnavailable" | "Throttling" | "TooManyRequests") => {
            ("Throttled", "limits requests, or is overloaded", "wait until its load is lower")
        }
        (500..=599, _) => ("ServerError", "failed", "see its log"),
        _ => ("Rejected", "rejected the request", "see its log"),
    }
}

/// The status in a text of `object_store`.
fn status(text: &str) -> Option<u16> {
    let after = text.split_once("status code: ").map(|(_, after)| after);
    if text.contains("redirect without LOCATION") {
        return Some(301);
    }
    after?.get(..3)?.parse().ok()
}

fn code(text: &str) -> Option<String> {
    let (_, after) = text.split_once("<Code>")?;
    let (code, _) = after.split_once("</Code>")?;
    let plain = !code.is_empty() && code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| code.to_owned())
}

/// A text without the parts that differ between attempts: numbers, such as ports, times and ids. Numbers of system errors stay.
fn steady(text: &str) -> String {
    let mut steady = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let end = from.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(from.len());
        let kept = before.ends_with("os error ");
        steady.push_str(before);
        steady.push_str(if kept { &from[..end] } else { "#" });
        rest = &from[end..];
    }
    steady.push_str(rest);
    crate::resources::conditions::truncate(&steady, 300)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Reported(String, Option<Box<Reported>>);

    impl std::fmt::Display for Reported {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl Error for Reported {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|e| e as _)
        }
    }

    fn refused(status: &str, code: &str, try_: u32) -> Reported {
        let body = format!(
            "Server returned non-2xx status code: {status}: <Error><Code>{code}</Code><RequestId>{try_:X}F{try_}</RequestId></Error>"
        );
        let outer = format!("Error performing PUT http://s3/b/k in {}.{try_}ms - {body}", try_ + 3);
        Reported(outer, Some(Box::new(Reported(body, None))))
    }

    /// Each different text is a status write, and each status write triggers the next attempt.
    #[test]
    fn the_same_failure_has_the_same_text_each_time() {
        for (status, code) in [("403 Forbidden", "AccessDenied"), ("503 Service Unavailable", "SlowDown"), ("500 Oops", "InternalError")] {
            let reported = |n| Failure::of(&refused(status, code, n)).explain();
            assert_eq!(reported(1), reported(2));
            assert!(reported(1).contains(code) && reported(1).contains(&status[..3]), "{}", reported(1));
        }
        let reported =
            |port: u32| Failure::of(&Reported(format!("read tcp 10.0.0.5:{port}->10.0.0.9:443: reset in {port}.5ms"), None)).explain();
        assert_eq!(reported(49_152), reported(50_001));
    }

    #[test]
    fn each_kind_of_failure_says_what_to_do() {
        for (status, code, words, reason) in [
            ("403 Forbidden", "SignatureDoesNotMatch", "check the access key", "InvalidCredentials"),
            ("403 Forbidden", "AccessDenied", "s3:PutObject", "AccessDenied"),
            ("404 Not Found", "NoSuchBucket", "no such bucket", "NoSuchBucket"),
            ("404 Not Found", "Whatever", "a proxy", "UnprovenAbsence"),
            ("503 Slow Down", "SlowDown", "limits requests", "Throttled"),
            ("507 Insufficient Storage", "XMinioStorageFull", "is full", "Full"),
            ("301 Moved Permanently", "PermanentRedirect", "region", "WrongRegion"),
            ("501 Not Implemented", "NotImplemented", "conditional writes", "Unsupported"),
        ] {
            let failure = Failure::of(&refused(status, code, 1));
            assert!(failure.explain().contains(words), "{}", failure.explain());
            assert_eq!(failure.reason(), reason);
        }
        let full = Failure::of(&std::io::Error::from_raw_os_error(28));
        assert!(full.explain().contains("is full") && full.explain().contains("free space"), "{}", full.explain());
        assert_eq!(full.reason(), "Full");
    }

    #[test]
    fn a_reported_failure_is_counted_by_its_reason() {
        let counted = || STORE_ERRORS.get_or_create(&ErrorLabels { reason: "ClockSkew" }).get();
        let before = counted();
        Failure::of(&refused("403 Forbidden", "RequestTimeTooSkewed", 1)).report();
        assert_eq!(counted(), before + 1);
    }

    #[test]
    fn only_the_store_itself_says_that_an_object_is_missing() {
        assert!(Failure::of(&refused("404 Not Found", "NoSuchKey", 1)).says_no_such_key());
        for (status, code) in [("404 Not Found", "NoSuchBucket"), ("403 Forbidden", "NoSuchKey"), ("404 Not Found", "")] {
            assert!(!Failure::of(&refused(status, code, 1)).says_no_such_key(), "{status} {code}");
        }
    }
}
