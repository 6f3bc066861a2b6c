//! The `ArchiveErasure` controller: erases the archives of a deleted computer on request (DESIGN.md S7). It decides whether the computer is released, by live
//! reads; `archive/removal.rs` does everything in the store. It must never touch an archive that is held, or whose computer may still be deleted.
//!
//! A pass may be interrupted at any point, and two leaders may run the same one: what was done is derived again from the tombstone and the store.

pub mod live_holds;
mod status;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{ObjectRef, Store as Cache};
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;

use self::live_holds::LiveHolds;
use self::status::State;
use crate::archive::Store;
use crate::archive::holds::{Holds, Stop, Subject};
use crate::archive::removal::figures::{BLOCKED, ERASED_BYTES, ERASURES};
use crate::archive::removal::{Progress, Request, remove};
use crate::archive::tombstone::{Decision, Target};
use crate::credentials::id::{is_label, is_name, is_uid};
use crate::resources::conditions::{is_true, types};
use crate::resources::{ArchiveErasure, ArchiveHold, Computer, ComputerRecord, RecordPhase};
use crate::runtime::cached_fields;
use crate::runtime::caches::{ADMINS_PAGE, Spawn, touched, watched};
use crate::runtime::client::{CallError, ErrorClass, call, classify};
use crate::runtime::patch;
use crate::runtime::queue::{self, Queue, Work};
use crate::runtime::time_and_random::Sources;

/// Time until a blocked erasure is checked again. A change of a hold queues it at once.
const RETRY: Duration = Duration::from_secs(60);
/// Time until a pass whose status could not be written is repeated: another leader may have written it.
const AGAIN: Duration = Duration::from_secs(5);
/// Number of erasures that run concurrently.
const CONCURRENCY: usize = 2;

/// The controller, with its watches, before it runs.
pub struct Controller {
    work: Work,
    erasures: Cache<ArchiveErasure>,
}

fn is_complete(erasure: &ArchiveErasure) -> bool {
    erasure.status.as_ref().is_some_and(|status| is_true(&status.conditions, types::COMPLETE))
}

impl Controller {
    /// Starts its watches in `spawn.tasks`.
    pub fn start(client: &Client, spawn: &mut Spawn<'_>) -> Self {
        let (queue, work): (Queue, Work) = queue::queue();
        let mut own = Spawn { queue: &queue, tasks: spawn.tasks, sources: spawn.sources, stop: spawn.stop };
        let erasures = own.watch(
            Api::<DeserializeGuard<ArchiveErasure>>::all(client.clone()),
            watched(ADMINS_PAGE),
            cached_fields::managed,
            changed(),
        );
        let of = erasures.clone();
        // Nothing is decided from this cache: it only shows when to ask again.
        own.watch(Api::<DeserializeGuard<ArchiveHold>>::all(client.clone()), watched(ADMINS_PAGE), cached_fields::managed, move |event| {
            let waiting = |_| of.state().iter().filter(|erasure| !is_complete(erasure)).map(|erasure| erasure.name_any()).collect();
            touched(event).map(waiting).unwrap_or_default()
        });
        Self { work, erasures }
    }

    /// Runs until `stop` is cancelled.
    pub async fn run(self, client: Client, namespace: String, store: Arc<Store>, sources: Sources, stop: CancellationToken) {
        let holds: Arc<dyn Holds> = Arc::new(LiveHolds::new(&client));
        let reconciler = Arc::new(Reconciler { client, namespace, store, holds, sources, blocked: Mutex::default() });
        let (stopping, of) = (stop.clone(), Arc::clone(&reconciler));
        let pass = move |name: String| {
            let (cached, reconciler, stop) = (self.erasures.get(&ObjectRef::new(&name)), Arc::clone(&of), stopping.clone());
            async move {
                let Some(cached) = cached.filter(|erasure| !is_complete(erasure)) else {
                    reconciler.note(&name, false);
                    return None;
                };
                // Each request can be interrupted, and the next leader continues.
                stop.run_until_cancelled(reconciler.run(&cached)).await?
            }
        };
        self.work.run(CONCURRENCY, stop, pass).await;
        BLOCKED.set(0);
    }
}

/// Queues an erasure when it is created or deleted, by name. Status updates are ignored: a status may quote an error that differs on each attempt, which
/// would make the controller try and write in a loop.
fn changed() -> impl Fn(&watcher::Event<ArchiveErasure>) -> Vec<String> + Send {
    let known = RefCell::new(HashMap::new());
    move |event| {
        let Some(erasure) = touched(event) else { return Vec::new() };
        let (name, version) = (erasure.name_any(), (erasure.metadata.uid.clone(), erasure.metadata.generation));
        if matches!(event, watcher::Event::Delete(_)) {
            known.borrow_mut().remove(&name);
            return vec![name];
        }
        let same = known.borrow_mut().insert(name.clone(), version.clone()) == Some(version);
        // A relist queues every erasure: one that failed before its end has queued nothing.
        if same && matches!(event, watcher::Event::Apply(_)) { Vec::new() } else { vec![name] }
    }
}

/// What a pass needs.
struct Reconciler {
    client: Client,
    namespace: String,
    store: Arc<Store>,
    holds: Arc<dyn Holds>,
    sources: Sources,
    /// Names of blocked erasures.
    blocked: Mutex<HashSet<String>>,
}

impl Reconciler {
    fn note(&self, name: &str, is_blocked: bool) {
        // Each change is one insertion or removal.
        let mut blocked = self.blocked.lock();
        if is_blocked {
            blocked.insert(name.to_owned());
        } else {
            blocked.remove(name);
        }
        BLOCKED.set(i64::try_from(blocked.len()).unwrap_or(i64::MAX));
    }

    /// One pass. Returns when to run it again without an event.
    #[tracing::instrument(skip_all, fields(kind = "ArchiveErasure", name = cached.name_any(), uid = cached.metadata.uid))]
    async fn run(&self, cached: &ArchiveErasure) -> Option<Duration> {
        let mut erasure = match self.live(cached).await {
            Ok(Some(erasure)) => erasure,
            Ok(None) => {
                self.note(&cached.name_any(), false);
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read an ArchiveErasure; retrying in {} s", RETRY.as_secs());
                return Some(RETRY);
            }
        };
        let mut progress = Progress::default();
        let state = self.advance(&mut erasure, &mut progress).await;
        self.note(&erasure.name_any(), state.is_blocked());
        if let Err(error) = self.publish(&mut erasure, &state, &progress).await {
            tracing::debug!(%error, "cannot write the status of an ArchiveErasure; retrying in {} s", AGAIN.as_secs());
            return Some(AGAIN);
        }
        if let Some(at) = progress.again {
            // Not earlier than after the time of a blocked one: requests may be rejected for long.
            let wait = at.duration_since(self.sources.now()).try_into().unwrap_or(RETRY);
            return Some(RETRY.max(wait));
        }
        if !state.is_complete() {
            tracing::info!(reason = %state.reason, message = state.message, "an erasure is blocked");
            return Some(RETRY);
        }
        ERASURES.inc();
        ERASED_BYTES.inc_by(progress.removed.map_or(0, |(_, bytes)| bytes));
        let by = &erasure.spec.requested_by;
        tracing::info!(computer = erasure.spec.computer.uid, by, removed = ?progress.removed, "an archive was erased");
        None
    }

    /// The erasure as it is now. `None`: it was completed, withdrawn or replaced.
    async fn live(&self, cached: &ArchiveErasure) -> Result<Option<ArchiveErasure>, CallError> {
        let api: Api<ArchiveErasure> = Api::all(self.client.clone());
        let live = match call(api.get(&cached.name_any())).await {
            Err(error) if classify(&error) == ErrorClass::NotFound => return Ok(None),
            live => live?,
        };
        let same = live.metadata.uid.is_some() && live.metadata.uid == cached.metadata.uid && live.metadata.deletion_timestamp.is_none();
        Ok(Some(live).filter(|live| same && !is_complete(live)))
    }

    /// Continues an erasure as far as possible.
    async fn advance(&self, erasure: &mut ArchiveErasure, progress: &mut Progress) -> State {
        let done = match self.released(erasure).await {
            Ok(()) => {
                let (request, now) = (request(erasure), self.sources.now());
                let asked = Asked { reconciler: self, pass: AsyncMutex::new(Pass { erasure, announced: false }) };
                remove(&self.store, &request, &asked, now, progress).await
            }
            Err(stop) => Err(stop),
        };
        State::of(&done, progress)
    }

    /// Whether the computer counts as released, by live reads. Its record decides; once that has expired, the receipt in the store does, if no Computer has
    /// the UID.
    async fn released(&self, erasure: &ArchiveErasure) -> Result<(), Stop> {
        let target = &erasure.spec.computer;
        // They become parts of paths.
        if !is_label(&target.namespace) || !is_name(&target.name) || !is_uid(&target.uid) {
            return Err(Stop::Mismatch("the namespace, the name or the UID is not one of a computer".to_owned()));
        }
        let unknown = |error: CallError| Stop::ApiServer(format!("cannot read whether the computer is released: {error}"));
        let not_released = |why: &str| Err(Stop::NotReleased(format!("Computer {}/{} {why}", target.namespace, target.name)));
        let records: Api<ComputerRecord> = Api::namespaced(self.client.clone(), &self.namespace);
        let record = match call(records.get(&target.uid)).await {
            Err(error) if classify(&error) == ErrorClass::NotFound => None,
            record => Some(record.map_err(unknown)?.spec),
        };
        let Some(record) = record else {
            let computers: Api<Computer> = Api::namespaced(self.client.clone(), &target.namespace);
            return match call(computers.get(&target.name)).await {
                Err(error) if classify(&error) == ErrorClass::NotFound => Ok(()),
                computer => {
                    let exists = computer.map_err(unknown)?.metadata.uid.as_ref() == Some(&target.uid);
                    if exists { not_released("exists") } else { Ok(()) }
                }
            };
        };
        if (&record.namespace, &record.computer) != (&target.namespace, &target.name) {
            let why = format!("UID {} is that of Computer {}/{}", target.uid, record.namespace, record.computer);
            return Err(Stop::Mismatch(why));
        }
        if record.state.phase != RecordPhase::Released {
            return not_released("exists, or its deletion is not complete");
        }
        let receipt = record.state.deletion.and_then(|deletion| deletion.receipt);
        let stored = receipt.is_some_and(|receipt| receipt.store_key.is_some());
        let why = || Stop::NoReceipt(format!("the deletion of UID {} has no receipt in the archive store", target.uid));
        stored.then_some(()).ok_or_else(why)
    }

    /// Writes the status if it has changed, unless another leader has written it meanwhile.
    async fn publish(&self, erasure: &mut ArchiveErasure, state: &State, progress: &Progress) -> Result<(), CallError> {
        let status = status::compute(erasure, state, progress, self.sources.now());
        if erasure.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut patch = patch::status(&erasure.metadata, json!(status));
        patch.0.insert(0, patch::same_version(&erasure.metadata));
        let api: Api<ArchiveErasure> = Api::all(self.client.clone());
        *erasure = call(api.patch_status(&erasure.name_any(), &PatchParams::default(), &Patch::<()>::Json(patch))).await?;
        Ok(())
    }
}

/// What is asked before each destruction: whether the erasure still exists (deleting it withdraws it also while it is executed), whether the computer is
/// still released, and the holds.
struct Asked<'a> {
    reconciler: &'a Reconciler,
    pass: AsyncMutex<Pass<'a>>,
}

/// An erasure that is executed.
struct Pass<'a> {
    erasure: &'a mut ArchiveErasure,
    /// Whether its status says so.
    announced: bool,
}

#[async_trait]
impl Holds for Asked<'_> {
    async fn permit(&self, archive: &Subject) -> Result<(), Stop> {
        let (pass, reconciler) = (&mut *self.pass.lock().await, self.reconciler);
        match reconciler.live(pass.erasure).await {
            Ok(Some(_)) => {}
            Ok(None) => return Err(Stop::Withdrawn("the ArchiveErasure was deleted, or another leader has completed it".to_owned())),
            Err(error) => return Err(Stop::ApiServer(format!("cannot read whether the ArchiveErasure still exists: {error}"))),
        }
        reconciler.released(pass.erasure).await?;
        reconciler.holds.permit(archive).await?;
        if !pass.announced {
            // Nobody may read that it is blocked while it removes.
            let written = reconciler.publish(pass.erasure, &State::erasing(), &Progress::default()).await;
            written.map_err(|error| Stop::ApiServer(format!("the status of the ArchiveErasure cannot be written: {error}")))?;
            pass.announced = true;
            // Writing it may have taken long.
            reconciler.holds.permit(archive).await?;
        }
        Ok(())
    }
}

/// What an erasure asks for.
fn request(erasure: &ArchiveErasure) -> Request {
    let (spec, meta) = (&erasure.spec, &erasure.metadata);
    let computer = &spec.computer;
    Request {
        target: Target {
            namespace: computer.namespace.clone(),
            namespace_uid: None,
            name: computer.name.clone(),
            uid: computer.uid.clone(),
        },
        decision: Decision {
            kind: "ArchiveErasure".to_owned(),
            name: erasure.name_any(),
            uid: meta.uid.clone().unwrap_or_default(),
            requested_by: spec.requested_by.clone(),
            requested_at: meta.creation_timestamp.as_ref().map(|at| at.0),
            reason: spec.reason.clone(),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
