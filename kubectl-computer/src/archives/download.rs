//! Downloads an archive, or a session of it. One GET gives everything that is expected and begins to send; where a part is there already, a second one asks for the
//! rest. Every byte is compared while it is written, and nothing is complete before its length and its digest are right.

use std::io::Write;
use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use reqwest::StatusCode;

use super::answer::Answer;
use super::api::HttpApi;
use super::check::Check;
use super::expected::Expected;
use super::fault::Fault;
use super::meter::Meter;
use super::pace::Pace;
use super::part::Part;
use super::target::Target;
use crate::screen;

/// A download that the API has agreed to.
pub struct Download<'a> {
    api: &'a HttpApi,
    target: &'a Target,
    expected: Expected,
    /// The answer to the first request, until it is read or a later part is asked for.
    first: Option<Answer>,
    pace: Pace,
}

impl<'a> Download<'a> {
    /// Asks for everything.
    ///
    /// # Errors
    /// When the request fails repeatedly, or the answer does not say what to expect.
    pub async fn begin(api: &'a HttpApi, target: &'a Target) -> Result<Self> {
        let mut pace = Pace::new(api.limits.waits);
        loop {
            let fault = match ask(api, target).await {
                Ok((expected, first)) => return Ok(Self { api, target, expected, first: Some(first), pace }),
                Err(fault) => fault,
            };
            let paused = pace.pause(fault, |why| screen::note(&format!("the download of {target} has not begun: {why}"))).await;
            paused.map_err(|fault| anyhow!("the download of {target} has not begun{}: {fault}", requests(&pace, &fault)))?;
        }
    }

    /// What is expected.
    pub fn expected(&self) -> &Expected {
        &self.expected
    }

    /// Downloads to a file that does not exist, from where an earlier command ended, and returns what was verified.
    ///
    /// # Errors
    /// When it fails repeatedly, or what was received is not what was expected.
    pub async fn save(mut self, file: &Path) -> Result<String> {
        is_free(file)?;
        let mut part = Part::open(file, &self.expected.etag)?;
        let mut check = Check::new(&self.expected)?;
        let received = match part.compare(&mut check) {
            Ok(()) => self.receive(&mut check, &mut part).await,
            Err(fault) => Err(fault),
        };
        let (passed, path) = (check.passed(), part.path().display().to_string());
        match received.and_then(|()| check.finish().map_err(Fault::Wrong)) {
            Ok(verified) => part.complete(file).map(|()| verified),
            Err(fault @ Fault::Wrong(_)) => {
                part.remove()?;
                Err(self.failed(passed, &fault, &format!("{path} was wrong and is removed: repeat the command to begin again")))
            }
            Err(fault) => Err(self.failed(passed, &fault, &format!("What has arrived is in {path}: repeat the command to resume"))),
        }
    }

    /// Downloads to a stream, which must not be used when this fails, and returns what was verified.
    ///
    /// # Errors
    /// As [`Download::save`].
    pub async fn fetch(mut self, out: &mut impl Write) -> Result<String> {
        let mut check = Check::new(&self.expected)?;
        let received = self.receive(&mut check, out).await;
        let passed = check.passed();
        let verified = received.and_then(|()| check.finish().map_err(Fault::Wrong));
        verified.map_err(|fault| self.failed(passed, &fault, "Nothing of it is kept: repeat the command"))
    }

    /// What happened to which archive, and what to do.
    fn failed(&self, passed: u64, fault: &Fault, next: &str) -> anyhow::Error {
        let (target, length, requests) = (self.target, self.expected.length, requests(&self.pace, fault));
        anyhow!("the download of {target} failed after {passed} of {length} bytes{requests}: {fault}. {next}")
    }

    /// Downloads what the comparison has not seen, with as many requests as it takes.
    async fn receive(&mut self, check: &mut Check, out: &mut impl Write) -> Result<(), Fault> {
        let meter = Meter::new(self.expected.length);
        meter.begin(check.passed());
        while check.passed() < self.expected.length {
            let had = check.passed();
            let Err(fault) = self.rest(check, out, &meter).await else { break };
            if check.passed() > had {
                self.pace.progress();
            }
            let (passed, length) = (check.passed(), self.expected.length);
            self.pace.pause(fault, |why| meter.note(&format!("the download has {passed} of {length} bytes: {why}"))).await?;
        }
        out.flush().map_err(cannot_write)
    }

    /// One request for the rest.
    async fn rest(&mut self, check: &mut Check, out: &mut impl Write, meter: &Meter) -> Result<(), Fault> {
        let has = check.passed();
        let (mut answer, mut known) = self.answer(has).await?;
        while check.passed() < self.expected.length {
            let Some(bytes) = answer.chunk().await? else {
                let (passed, length) = (check.passed(), self.expected.length);
                return Err(Fault::broken(format!("the answer ended after {passed} of {length} bytes")));
            };
            let skipped = bytes.len().min(usize::try_from(known).unwrap_or(usize::MAX));
            known -= skipped as u64;
            let new = &bytes[skipped..];
            check.take(new).map_err(Fault::Wrong)?;
            out.write_all(new).map_err(cannot_write)?;
            meter.at(check.passed());
        }
        Ok(())
    }

    /// The answer with what follows after this many bytes, and how many bytes before that it repeats.
    async fn answer(&mut self, has: u64) -> Result<(Answer, u64), Fault> {
        let first = self.first.take();
        if has == 0
            && let Some(first) = first
        {
            return Ok((first, 0));
        }
        let part = [("range", format!("bytes={has}-")), ("if-range", self.expected.etag.clone())];
        let answer = self.api.read(self.target, if has > 0 { &part } else { &[] }).await?;
        if answer.header("etag") != Some(&self.expected.etag) {
            return Err(Fault::Wrong(anyhow!("the HTTP API sends another archive than before")));
        }
        let length = self.expected.length;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            // A proxy that drops ranges sends everything again.
            let other = answer.header("content-length").is_some_and(|all| all != length.to_string());
            return if other { Err(Fault::Wrong(anyhow!("the archive no longer has {length} bytes"))) } else { Ok((answer, has)) };
        }
        let range = answer.header("content-range").unwrap_or_default();
        if range != format!("bytes {has}-{}/{length}", length - 1) {
            let range = crate::text::plain(range);
            return Err(Fault::Lasting(anyhow!(
                "the HTTP API was asked for the bytes from {has} to the end of {length} and sends \"{range}\""
            )));
        }
        Ok((answer, 0))
    }
}

/// Requires that there is no file with this name.
///
/// # Errors
/// When there is one.
pub fn is_free(file: &Path) -> Result<()> {
    ensure!(!file.try_exists()?, "{} exists: choose another file", file.display());
    Ok(())
}

/// The first request, and what its answer says.
async fn ask(api: &HttpApi, target: &Target) -> Result<(Expected, Answer), Fault> {
    let answer = api.read(target, &[]).await?;
    let unusable =
        |error: anyhow::Error| error.context("the answer of the HTTP API cannot be used: is it that of a proxy, or of another version?");
    if answer.status() != StatusCode::OK {
        return Err(Fault::Lasting(unusable(anyhow!("it is {}", answer.status()))));
    }
    let expected = Expected::of(answer.headers()).map_err(|error| Fault::Lasting(unusable(error)))?;
    Ok((expected, answer))
}

/// How many requests failed before it gave up.
fn requests(pace: &Pace, fault: &Fault) -> String {
    match fault {
        Fault::Passing(..) if pace.failed() > 1 => format!(" ({} requests in a row failed)", pace.failed()),
        _ => String::new(),
    }
}

fn cannot_write(error: std::io::Error) -> Fault {
    Fault::Lasting(anyhow::Error::new(error).context("it cannot be written"))
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
