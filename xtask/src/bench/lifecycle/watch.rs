//! One watch of the objects of a kind, and waits for all of some lives to be ready or gone. A life is observed when its event arrives, so no
//! request is made to ask for it.
//!
//! A wait must never be endless: it fails at its deadline and says what is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::StreamExt as _;
use kube::api::DynamicObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::contender::Kind;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The objects are ready.
    Ready,
    /// There are no such objects.
    Gone,
}

/// The objects of a kind by life, and whether they are ready.
#[derive(Debug)]
struct Objects {
    kind: Kind,
    present: BTreeMap<String, bool>,
    /// The objects of a list that is not complete yet.
    listed: BTreeMap<String, bool>,
    complete: bool,
    error: Option<String>,
}

impl Objects {
    const fn new(kind: Kind) -> Self {
        Self { kind, present: BTreeMap::new(), listed: BTreeMap::new(), complete: false, error: None }
    }

    fn take(&mut self, event: Event<DynamicObject>) {
        let entry = |object: &DynamicObject| Some((self.kind.life(object)?, self.kind.ready(object)));
        match event {
            Event::Apply(object) => self.present.extend(entry(&object)),
            Event::Delete(object) => {
                if let Some(life) = self.kind.life(&object) {
                    self.present.remove(&life);
                }
            }
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => self.listed.extend(entry(&object)),
            Event::InitDone => {
                self.present = std::mem::take(&mut self.listed);
                self.complete = true;
            }
        }
    }

    /// Lives that have not reached the goal.
    fn missing<'a>(&'a self, lives: &'a [String], goal: Goal) -> impl Iterator<Item = &'a String> {
        lives.iter().filter(move |life| match goal {
            Goal::Ready => self.present.get(*life) != Some(&true),
            Goal::Gone => self.present.contains_key(*life),
        })
    }

    /// The message of a wait that has failed.
    fn failure(&self, lives: &[String], goal: Goal, limit: Duration) -> String {
        let missing: Vec<&String> = self.missing(lives, goal).collect();
        let some: Vec<&str> = missing.iter().take(3).map(|life| life.as_str()).collect();
        let (count, all, seconds) = (missing.len(), lives.len(), limit.as_secs());
        let error = self.error.as_ref().map(|error| format!("; the watch failed: {error}")).unwrap_or_default();
        format!(
            "{count} of {all} objects of kind {:?} are not {goal:?} after {seconds} s, for example {}{error}",
            self.kind,
            some.join(", ")
        )
    }
}

/// A running watch. It ends when this is dropped.
pub struct Watch {
    objects: watch::Receiver<Objects>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Starts a watch and waits until it has listed what exists.
    pub async fn start(client: &kube::Client, kind: Kind) -> Result<Self> {
        let (sender, objects) = watch::channel(Objects::new(kind));
        let api = kind.api(client);
        let task = tokio::spawn(async move {
            let mut events = watcher::watcher(api, watcher::Config::default()).default_backoff().boxed();
            while let Some(event) = events.next().await {
                sender.send_modify(|objects| match event {
                    Ok(event) => objects.take(event),
                    Err(error) => objects.error = Some(error.to_string()),
                });
            }
        });
        let mut watch = Self { objects, task };
        let limit = Duration::from_secs(60);
        let complete = async { watch.objects.wait_for(|objects| objects.complete).await.is_ok() };
        let listed = tokio::time::timeout(limit, complete).await.unwrap_or_default();
        if !listed {
            bail!("the objects of kind {kind:?} are not listed after {} s: {:?}", limit.as_secs(), watch.objects.borrow().error);
        }
        Ok(watch)
    }

    /// Waits until all lives have reached the goal.
    pub async fn wait(&mut self, lives: &[String], goal: Goal, limit: Duration) -> Result<()> {
        let reached = async { self.objects.wait_for(|objects| objects.missing(lives, goal).next().is_none()).await.is_ok() };
        if tokio::time::timeout(limit, reached).await.unwrap_or_default() {
            return Ok(());
        }
        bail!("{}", self.objects.borrow().failure(lives, goal, limit))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn computer(name: &str, phase: &str) -> DynamicObject {
        let object = json!({"apiVersion": "x/v1", "kind": "Computer", "metadata": {"name": name}, "status": {"phase": phase}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_life_is_ready_and_gone_by_its_events() {
        let lives = ["a".to_owned(), "b".to_owned()];
        let mut objects = Objects::new(Kind::Computer);
        let missing = |objects: &Objects, goal| objects.missing(&lives, goal).cloned().collect::<Vec<_>>();
        objects.take(Event::Apply(computer("a", "Active")));
        objects.take(Event::Apply(computer("b", "Provisioning")));
        assert_eq!(missing(&objects, Goal::Ready), ["b"]);
        objects.take(Event::Apply(computer("b", "Active")));
        assert!(missing(&objects, Goal::Ready).is_empty());
        objects.take(Event::Delete(computer("b", "Terminating")));
        assert_eq!(missing(&objects, Goal::Gone), ["a"]);
        // A list after an interruption shows that the other one is gone too.
        objects.take(Event::Init);
        assert!(!missing(&objects, Goal::Gone).is_empty());
        objects.take(Event::InitDone);
        assert!(missing(&objects, Goal::Gone).is_empty());
    }

    #[test]
    fn a_failed_wait_names_what_is_missing() {
        let lives: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        let mut objects = Objects::new(Kind::Computer);
        objects.take(Event::Apply(computer("a", "Active")));
        objects.error = Some("refused".into());
        let text = objects.failure(&lives, Goal::Ready, Duration::from_secs(5));
        let expected = "4 of 5 objects of kind Computer are not Ready after 5 s, for example b, c, d; the watch failed: refused";
        assert_eq!(text, expected);
    }
}
