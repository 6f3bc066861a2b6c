//! Waits by watches, with deadlines, and shows what changes. The decisions are in `progress`; here are the watch, the timers and the output. A
//! wait must never stop what it waits for.

use std::time::Duration;

use anyhow::{Result, bail};
use computer_operator_api::{Computer, ComputerRecord, StepStatus};
use futures::{Stream, StreamExt as _};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::{Format, Waiting};
use crate::cluster::{Cluster, Kind, typed};
use crate::outcome::Outcome;
use crate::progress::{BLOCKED, Progress, Row, Seen, State};
use crate::screen;
use crate::text::span;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The state is `Reached`, `Gone` or `Lost`.
    Settled,
    /// It is blocked, and the caller does not want to wait on.
    Blocked,
    /// The time is over.
    Timeout,
    /// The user pressed Ctrl-C.
    Interrupted,
}

/// A wait with its output and its deadline.
pub struct Wait {
    view: View,
    deadline: Instant,
    keep_waiting: bool,
}

/// How changes are shown.
enum View {
    /// One line for each change.
    Lines,
    /// One JSON document for each change.
    Json,
    /// One line for each change, on standard error: standard output belongs to another command.
    Aside,
    /// Rows that change in place.
    Rows(MultiProgress, Vec<(Row, ProgressBar)>),
}

impl Wait {
    /// Starts the clock.
    pub fn new(waiting: &Waiting) -> Self {
        let view = match waiting.output {
            Format::Json => View::Json,
            Format::Text if screen::live() => View::Rows(MultiProgress::new(), Vec::new()),
            Format::Text => View::Lines,
        };
        Self { view, deadline: Instant::now() + waiting.timeout, keep_waiting: waiting.keep_on }
    }

    /// For a command that waits before it runs another one: nothing goes to standard output.
    pub fn aside(timeout: Duration) -> Self {
        Self { view: View::Aside, deadline: Instant::now() + timeout, keep_waiting: false }
    }

    /// Watches the Computers of a name until the wait ends.
    ///
    /// # Errors
    /// When the caller may not watch.
    pub async fn computer(&mut self, cluster: &Cluster, namespace: &str, name: &str, progress: &mut Progress) -> Result<End> {
        let stream = objects::<Computer>(cluster, namespace, &format!("metadata.name={name}")).map(|seen| {
            Ok(match seen? {
                Some(computer) => Seen::Computer(Box::new(computer)),
                None => Seen::Gone,
            })
        });
        self.run(stream, progress).await
    }

    /// Watches the record of a deletion until it has a receipt.
    ///
    /// # Errors
    /// When the caller may not watch, or the record disappears.
    pub async fn record(&mut self, cluster: &Cluster, record: &ComputerRecord, progress: &mut Progress) -> Result<End> {
        progress.state = State::Running;
        let namespace = record.namespace().unwrap_or_default();
        let records =
            objects::<ComputerRecord>(cluster, &namespace, &format!("metadata.name={}", record.name_any())).map(|seen| match seen? {
                Some(record) => Ok(Seen::Record(Box::new(record))),
                None => bail!("the record of the deletion was deleted"),
            });
        // Only events say what blocks it. A caller who may not see them waits without.
        let about = format!("involvedObject.uid={},type=Warning", record.uid().unwrap_or_default());
        let events = objects::<Event>(cluster, &namespace, &about).filter_map(|seen| {
            let event = seen.ok().flatten().map(|event| Ok(Seen::Warning(Box::new(event))));
            std::future::ready(event)
        });
        self.run(futures::stream::select(records, events), progress).await
    }

    async fn run(&mut self, stream: impl Stream<Item = Result<Seen>>, progress: &mut Progress) -> Result<End> {
        let mut stream = std::pin::pin!(stream);
        loop {
            let until = match progress.state {
                State::Reached | State::Gone | State::Lost(_) => return Ok(End::Settled),
                State::Blocked(since) if !self.keep_waiting => {
                    let left = BLOCKED.saturating_sub(Timestamp::now().as_second().saturating_sub(since.as_second()));
                    let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) else { return Ok(End::Blocked) };
                    self.deadline.min(Instant::now() + Duration::from_secs(left))
                }
                State::Blocked(_) | State::Running => self.deadline,
            };
            tokio::select! {
                seen = stream.next() => match seen {
                    Some(seen) => {
                        let changes = progress.feed(&seen?, Timestamp::now());
                        self.view.show(&changes);
                    }
                    None => bail!("the watch ended"),
                },
                () = tokio::time::sleep_until(until) => if Instant::now() >= self.deadline { return Ok(End::Timeout) },
                _ = tokio::signal::ctrl_c() => return Ok(End::Interrupted),
            }
        }
    }

    /// Ends the output with a result, and the exit code that belongs to it.
    pub fn finish(&self, outcome: Outcome, text: &str, more: &Value) -> Outcome {
        match &self.view {
            View::Json => {
                let mut line = json!({"type": "result", "outcome": outcome.as_str(), "exitCode": outcome.code(), "message": text});
                if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
                    line.extend(more.clone());
                }
                screen::out(&line.to_string());
            }
            View::Aside => screen::note(text),
            View::Lines | View::Rows(..) => {
                // The rows in place end without a line break: they are shown again as lines, whole.
                if let View::Rows(all, bars) = &self.view {
                    let _ = all.clear();
                    for (row, _) in bars {
                        screen::note(&format!(" {} {}", mark(row.status), line(row)));
                    }
                }
                screen::out(text);
            }
        }
        outcome
    }
}

impl View {
    fn show(&mut self, rows: &[Row]) {
        match self {
            Self::Json => rows.iter().for_each(|row| screen::out(&json_line(row, Timestamp::now()))),
            Self::Aside => rows.iter().for_each(|row| screen::note(&line(row))),
            Self::Lines => rows.iter().for_each(|row| screen::out(&line(row))),
            Self::Rows(all, bars) => {
                for row in rows {
                    let known = bars.iter_mut().find(|(shown, _)| shown.id == row.id).map(|(shown, bar)| {
                        shown.clone_from(row);
                        bar.clone()
                    });
                    let bar = known.unwrap_or_else(|| {
                        let bar = all.add(ProgressBar::new_spinner());
                        bar.enable_steady_tick(Duration::from_millis(120));
                        bars.push((row.clone(), bar.clone()));
                        bar
                    });
                    draw(&bar, row);
                }
            }
        }
    }
}

fn draw(bar: &ProgressBar, row: &Row) {
    let running = row.status == StepStatus::Running;
    let template = if running { " {spinner} {wide_msg}  {elapsed}" } else { " {wide_msg}" };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let text = if running { format!("{:<20}{}", row.id, row.title) } else { format!("{} {}", mark(row.status), line(row)) };
    bar.set_message(crate::text::plain(&text));
    if matches!(row.status, StepStatus::Completed | StepStatus::Skipped | StepStatus::NotApplicable) {
        bar.abandon();
    }
}

fn mark(status: StepStatus) -> &'static str {
    match status {
        StepStatus::Completed => "✓",
        StepStatus::Blocked => "!",
        StepStatus::Skipped | StepStatus::NotApplicable => "-",
        StepStatus::Pending | StepStatus::Running => "·",
    }
}

/// A change as a line.
pub fn line(row: &Row) -> String {
    let seconds = row.seconds.filter(|_| row.status != StepStatus::Running).map(span).unwrap_or_default();
    let detail = if row.detail.is_empty() { &row.title } else { &row.detail };
    format!("{:<20}{:<15}{seconds:<8}{detail}", row.id, row.status.as_str())
}

fn json_line(row: &Row, now: Timestamp) -> String {
    let message = (!row.detail.is_empty()).then_some(&row.detail);
    let time = Timestamp::from_second(now.as_second()).unwrap_or(now);
    json!({"type": "step", "time": time.to_string(), "step": row.id, "title": row.title, "status": row.status.as_str(), "seconds": row.seconds, "message": message}).to_string()
}

/// The objects of a selection as a watch shows them; `None`: there is none.
fn objects<K: Kind>(cluster: &Cluster, namespace: &str, fields: &str) -> impl Stream<Item = Result<Option<K>>> + use<K> {
    let config = watcher::Config::default().fields(fields);
    let stream = watcher(cluster.api::<K>(Some(namespace)), config).default_backoff();
    stream
        .scan(false, |listed, event| {
            let ready = std::future::ready::<Option<Vec<Result<Option<K>>>>>;
            let seen = match event {
                Ok(watcher::Event::Init) => {
                    *listed = false;
                    None
                }
                Ok(watcher::Event::InitApply(object)) => {
                    *listed = true;
                    Some(typed(object).map(Some))
                }
                Ok(watcher::Event::InitDone) => (!*listed).then_some(Ok(None)),
                Ok(watcher::Event::Apply(object)) => Some(typed(object).map(Some)),
                // Its last state first: no watch may have shown it.
                Ok(watcher::Event::Delete(object)) => return ready(Some(vec![typed(object).map(Some), Ok(None)])),
                Err(error) => refused(&error).map(Err),
            };
            ready(Some(seen.into_iter().collect()))
        })
        .flat_map(futures::stream::iter)
}

/// A failure that a retry does not help with. The watch retries all others.
fn refused(error: &watcher::Error) -> Option<anyhow::Error> {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status)) | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return None;
    };
    matches!(status.code, 401 | 403 | 404).then(|| anyhow::anyhow!("cannot wait: {}", crate::text::plain(&status.message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(status: StepStatus, detail: &str) -> Row {
        Row {
            id: "archive-sessions".into(),
            title: "Archive the sessions".into(),
            status,
            began: None,
            seconds: Some(6),
            detail: detail.into(),
        }
    }

    #[test]
    fn a_change_is_one_line_and_says_why_it_is_blocked() {
        assert_eq!(line(&row(StepStatus::Running, "")), "archive-sessions    Running                Archive the sessions");
        assert_eq!(line(&row(StepStatus::Completed, "2 sessions")), "archive-sessions    Completed      6s      2 sessions");
        let blocked = json_line(&row(StepStatus::Blocked, "StoreUnavailable: 503"), Timestamp::UNIX_EPOCH);
        let read: Value = serde_json::from_str(&blocked).unwrap();
        assert_eq!((read["status"].as_str(), read["message"].as_str()), (Some("Blocked"), Some("StoreUnavailable: 503")));
        assert!(!blocked.contains('\n'));
    }
}
