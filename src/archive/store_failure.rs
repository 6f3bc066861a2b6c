//! Explains failures of the archive store in stable texts. A text must never contain a request id or a duration: it would differ in each
//! attempt, each difference is a status write, and each status write would trigger the next attempt.

use std::error::Error;

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

    /// What is wrong, and what to do about it.
    pub fn explain(&self) -> String {
        match self.status {
            Some(status) => {
                let code = self.code.as_deref().unwrap_or("no error code");
                let (what, advice) = of_answer(status, code);
                format!("the archive store {what} (HTTP {status}, {code}): {advice}")
            }
            None => self.of_system(),
        }
    }

    fn of_system(&self) -> String {
        const ENOENT: i32 = 2;
        const EACCES: i32 = 13;
        const ENOSPC: i32 = 28;
        const EROFS: i32 = 30;
        const EDQUOT: i32 = 122;
        let (what, advice) = match self.errno {
            Some(ENOSPC | EDQUOT) => ("the archive store is full", "free space on its volume, or enlarge it"),
            Some(EROFS) => ("the archive store is read-only", "its volume may be damaged, or mounted read-only"),
            Some(EACCES) => ("the archive store denies access", "check the owner and the mode of its folder"),
            Some(ENOENT) => ("a folder of the archive store is missing", "check its volume"),
            _ if self.cause.contains("no progress in time") => {
                ("the archive store does not answer", "check that it is running and that the operator can connect to it")
            }
            _ if self.cause.contains("certificate") => {
                ("the certificate of the archive store is not accepted", "check the endpoint's name and its certificate authority")
            }
            _ => ("the archive store cannot be used", "check that it is running and that the operator can connect to it"),
        };
        format!("{what} ({}): {advice}", self.cause)
    }
}

/// What an answer means, and what to do about it.
fn of_answer(status: u16, code: &str) -> (&'static str, &'static str) {
    match (status, code) {
        (_, "NoSuchBucket") => ("has no such bucket", "check its name, region and endpoint, or create it"),
        (_, "RequestTimeTooSkewed") => ("rejects the time of the request", "check the clocks of the node and of the store"),
        (
            _,
            "InvalidAccessKeyId" | "XAdminUserNotFound" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" | "InvalidSecurity",
        )
        | (401, _) => ("does not accept the credentials", "check the access key and the secret key"),
        (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull" | "StorageFull" | "InsufficientCapacity") => {
            ("is full", "free space in it, or raise its quota")
        }
        (403, _) => (
            "denies access",
            "the credentials need s3:GetObject, s3:PutObject and, to distinguish missing objects from denied ones, s3:ListBucket",
        ),
        (404, _) => ("does not say that the object is missing", "check bucket and endpoint: a proxy or another server may have answered"),
        (_, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") | (300..=399, _) => {
            ("is in another region or has another endpoint", "check region and endpoint")
        }
        (_, "NotImplemented") | (501, _) => {
            ("does not support the request", "use a store that supports conditional writes (If-None-Match: *)")
        }
        (429, _) | (_, "SlowDown" | "RequestLimitExceeded" | "ServiceUnavailable" | "Throttling" | "TooManyRequests") => {
            ("limits requests, or is overloaded", "wait until its load is lower")
        }
        (500..=599, _) => ("failed", "see its log"),
        _ => ("rejected the request", "see its log"),
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
        for (status, code, words) in [
            ("403 Forbidden", "SignatureDoesNotMatch", "check the access key"),
            ("403 Forbidden", "AccessDenied", "s3:PutObject"),
            ("404 Not Found", "NoSuchBucket", "no such bucket"),
            ("404 Not Found", "Whatever", "a proxy"),
            ("503 Slow Down", "SlowDown", "limits requests"),
            ("507 Insufficient Storage", "XMinioStorageFull", "is full"),
            ("301 Moved Permanently", "PermanentRedirect", "region"),
            ("501 Not Implemented", "NotImplemented", "conditional writes"),
        ] {
            let reported = Failure::of(&refused(status, code, 1)).explain();
            assert!(reported.contains(words), "{reported}");
        }
        let full = Failure::of(&std::io::Error::from_raw_os_error(28)).explain();
        assert!(full.contains("is full") && full.contains("free space"), "{full}");
    }

    #[test]
    fn only_the_store_itself_says_that_an_object_is_missing() {
        assert!(Failure::of(&refused("404 Not Found", "NoSuchKey", 1)).says_no_such_key());
        for (status, code) in [("404 Not Found", "NoSuchBucket"), ("403 Forbidden", "NoSuchKey"), ("404 Not Found", "")] {
            assert!(!Failure::of(&refused(status, code, 1)).says_no_such_key(), "{status} {code}");
        }
    }
}
