//! Watches: the log of changes from a version on, as a stream of lines. Every watch may lag, be held back, or break.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::failure::Failure;
use super::kinds::{self, Kind};
use super::state::Change;
use super::value::{namespace, selected};
use crate::world::{Caller, World};

/// The parameters of a watch.
pub struct Request {
    pub kind: Kind,
    pub namespace: String,
    pub selector: String,
    pub from: u64,
    pub seconds: u64,
}

struct Watch {
    world: World,
    caller: Caller,
    request: Request,
    cursor: usize,
    ends: Instant,
    opened: Instant,
}

/// Bookmarks come about once a minute.
const BOOKMARK: Duration = Duration::from_secs(60);

pub fn open(world: &World, caller: &Caller, request: Request) -> BoxStream<'static, Result<Bytes, std::io::Error>> {
    let compacted = world.faults().compacted_at();
    let (cursor, expired) = world.with(|s| {
        if let Some(at) = compacted {
            let seen = s.log.partition_point(|c| c.at <= at);
            s.compacted = s.compacted.max(seen.checked_sub(1).map_or(0, |i| s.log[i].rv));
        }
        (s.log.partition_point(|c| c.rv <= request.from), request.from < s.compacted)
    });
    if expired {
        let line = line("ERROR", &Failure::expired().body());
        return stream::once(async move { Ok(line) }).boxed();
    }
    let ends = Instant::now() + Duration::from_secs(request.seconds);
    let watch = Watch { world: world.clone(), caller: caller.clone(), request, cursor, ends, opened: Instant::now() };
    stream::unfold(watch, |mut watch| async move { watch.next().await.map(|line| (line, watch)) }).boxed()
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Bytes, std::io::Error>> {
        let bookmark = Instant::now() + BOOKMARK;
        let mut changed = self.world.changes();
        loop {
            self.world.dead_wait(&self.caller).await;
            if self.world.faults().cut_since(&self.caller, self.opened) {
                return Some(Err(std::io::Error::other("the simulation breaks the watch off")));
            }
            let (next, latest) = self.world.with(|s| (s.log.get(self.cursor).cloned(), s.log.len()));
            let mut again = bookmark;
            if let Some(change) = next {
                let (seen, at) = self.world.faults().visible(&self.caller, self.cursor, &change, latest);
                if seen {
                    tokio::time::sleep_until(at).await;
                    self.cursor += 1;
                    match self.event(&change) {
                        Some(line) if self.caller.alive() => {
                            self.world.with(|s| s.observer.observed(self.caller.actor, &change));
                            return Some(Ok(line));
                        }
                        _ => continue,
                    }
                }
                again = at;
            } else if Instant::now() >= bookmark {
                return Some(Ok(self.bookmark()));
            }
            tokio::select! {
                biased;
                () = changed.changed() => {}
                () = tokio::time::sleep_until(self.ends) => return None,
                () = tokio::time::sleep_until(again) => {}
            }
        }
    }

    /// A change as this watch reports it: an object that no longer matches the selector is reported as deleted.
    fn event(&self, change: &Change) -> Option<Bytes> {
        let asked = &self.request;
        if change.kind != asked.kind || !(asked.namespace.is_empty() || namespace(change.object()) == asked.namespace) {
            return None;
        }
        let fits = |v: &Option<Arc<Value>>| v.as_ref().is_some_and(|v| selected(v, &asked.selector));
        let (kind, object) = match (fits(&change.before), fits(&change.after)) {
            (_, true) if change.before.is_none() || !fits(&change.before) => ("ADDED", change.after.as_deref()?),
            (_, true) => ("MODIFIED", change.after.as_deref()?),
            (true, false) => ("DELETED", change.object()),
            (false, false) => return None,
        };
        Some(line(kind, object))
    }

    fn bookmark(&self) -> Bytes {
        let meta = kinds::meta(self.request.kind);
        let rv =
            self.world.with(|s| self.cursor.checked_sub(1).and_then(|i| s.log.get(i)).map_or(s.compacted, |c| c.rv)).max(self.request.from);
        line(
            "BOOKMARK",
            &json!({"apiVersion": meta.api_version(), "kind": meta.kind, "metadata": {"resourceVersion": rv.to_string(), "creationTimestamp": null}}),
        )
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}
