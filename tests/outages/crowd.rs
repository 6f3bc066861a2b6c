//! Many computers that are deleted over some time, and the check of every promise for each of them at the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use computer_operator::resources::{RecordPhase, UID_LABEL};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, PropagationPolicy};
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::harness::{Bench, LONG, eventually};

/// Computers that are created at once: real pods, on two cores.
const AT_ONCE: usize = 6;
/// Sessions that [`Bench::work`] writes.
const SESSIONS: usize = 3;

/// One computer.
#[derive(Clone)]
pub struct Member {
    pub name: String,
    pub uid: String,
    /// Whether it has a pod, a home, and sessions to archive.
    pub managed: bool,
}

/// Computers of one namespace.
pub struct Crowd {
    pub namespace: String,
    pub members: Vec<Member>,
}

impl Crowd {
    /// Creates them in a separate namespace; returns when all are ready and every managed one has sessions.
    pub async fn born(bench: &Arc<Bench>, what: &str, byom: usize, managed: usize) -> Result<Self> {
        let namespace = bench.namespace(what).await?;
        let all = (0..byom + managed).map(|i| born(Arc::clone(bench), namespace.clone(), i, i >= byom));
        let members = futures::stream::iter(all).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(Self { namespace, members })
    }

    /// Deletes all of them in random order, with each of the three propagation policies and pauses of up to `pause`. Once a delete is
    /// accepted the key does not authenticate (S2), whatever is killed at that moment.
    pub async fn delete(&self, bench: &Bench, random: &mut StdRng, pause: Duration) -> Result<()> {
        let mut all = self.members.clone();
        all.shuffle(random);
        for member in all {
            self.delete_one(bench, &member, random).await?;
            tokio::time::sleep(pause.mul_f64(random.random())).await;
        }
        Ok(())
    }

    async fn delete_one(&self, bench: &Bench, member: &Member, random: &mut StdRng) -> Result<()> {
        let ways = [PropagationPolicy::Background, PropagationPolicy::Foreground, PropagationPolicy::Orphan];
        let params = DeleteParams { propagation_policy: Some(ways[random.random_range(0..3)].clone()), ..DeleteParams::default() };
        eventually("the delete is accepted", LONG, || async {
            match bench.computers(&self.namespace).delete(&member.name, &params).await {
                // The answer may have been lost: then the computer is being deleted, or gone.
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(Some(())),
                answer => answer.map(|_| Some(())).map_err(Into::into),
            }
        })
        .await?;
        dead(bench, &member.uid).await
    }

    /// Waits for the end of all deletions and checks the promises: no owned object is left, every archive is complete, no key authenticates.
    pub async fn ended(&self, bench: &Bench) -> Result<()> {
        for member in &self.members {
            if member.managed {
                bench.archived(&member.uid, SESSIONS).await?;
            } else {
                bench.clean(&member.uid).await?;
            }
        }
        eventually("nothing is left in the namespace", LONG, || async {
            ensure!(bench.computers(&self.namespace).list(&ListParams::default()).await?.items.is_empty(), "Computers are left");
            none::<Pod>(bench, &self.namespace).await?;
            none::<PersistentVolumeClaim>(bench, &self.namespace).await?;
            none::<Secret>(bench, &self.namespace).await.map(Some)
        })
        .await
    }

    /// How many have been released so far.
    pub async fn released(&self, bench: &Bench) -> Result<usize> {
        let mut count = 0;
        for member in &self.members {
            let record = bench.record(&member.uid).await?;
            count += usize::from(record.is_some_and(|r| r.spec.state.phase == RecordPhase::Released));
        }
        Ok(count)
    }
}

async fn born(bench: Arc<Bench>, namespace: String, number: usize, managed: bool) -> Result<Member> {
    let name = format!("box-{number}");
    let spec = if managed { json!({"className": "standard"}) } else { json!({"provider": "BYOM"}) };
    let uid = bench.ready(&namespace, &name, spec).await?;
    if managed {
        bench.work(&namespace, &uid).await?;
    }
    Ok(Member { name, uid, managed })
}

/// Checks that the key of a computer does not authenticate. A failed request is repeated until there is an answer.
pub async fn dead(bench: &Bench, uid: &str) -> Result<()> {
    let token = bench.token_of(uid)?;
    let lives = eventually("an answer about the key", LONG, || async { bench.authenticates(&token).await.map(Some) }).await?;
    ensure!(!lives, "S2: the key of {uid} authenticates");
    Ok(())
}

/// Checks that no object with the operator's label is left in a namespace.
async fn none<K>(bench: &Bench, namespace: &str) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let ours = ListParams::default().labels(UID_LABEL);
    let left = Api::<K>::namespaced(bench.client.clone(), namespace).list(&ours).await?.items.len();
    ensure!(left == 0, "S6: {left} of kind {} are left", K::kind(&()));
    Ok(())
}

/// A duration for the report.
pub fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}
