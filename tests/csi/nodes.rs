//! Nodes come and go, and an attachable volume moves with its pods.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use crate::Scenario;
use crate::harness::{LONG, eventually};
use crate::life::{computer, ended};
use crate::world::World;

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![archived_on_the_other_node, a_machine_moves_with_its_home]
}

/// The machine may run on one node only, which is drained for an upgrade. Its archive is read where the volume can be attached.
async fn archived_on_the_other_node(world: Arc<World>) -> Result<()> {
    let [first, second] = xtask::node::NAMES;
    world.class_of("first-node", "late", first).await?;
    let namespace = world.namespace("upgrade").await?;
    let (uid, volume) = computer(&world, &namespace, "first-node").await?;
    world.kubectl(&["taint", "node", first, "upgrade=now:NoSchedule"], "").await?;
    let outcome = async {
        world.kubectl(&["drain", first, "--ignore-daemonsets", "--timeout=120s"], "").await?;
        world.delete(&namespace, "box", "background").await?;
        ended(&world, &uid, &volume).await
    }
    .await;
    world.kubectl(&["uncordon", first], "").await?;
    world.kubectl(&["taint", "node", first, "upgrade-"], "").await?;
    let history = outcome?;
    let attached: Vec<_> = history.iter().filter(|call| call.starts_with("attach")).collect();
    ensure!(attached == [&format!("attach {first}"), &format!("attach {second}")], "{history:?}");
    Ok(())
}

/// A drain moves the machine: its home is detached, attached to the other node, and unchanged.
async fn a_machine_moves_with_its_home(world: Arc<World>) -> Result<()> {
    world.class_of("moves", "late", "").await?;
    let namespace = world.namespace("moves").await?;
    let (uid, volume) = computer(&world, &namespace, "moves").await?;
    let (_, old) = world.attachment(&volume).await?;
    let drained = world.kubectl(&["drain", &old, "--ignore-daemonsets", "--timeout=120s"], "").await;
    let moved = eventually("the machine runs on the other node", LONG, || async {
        let node = world.node_of(&namespace, &uid).await?;
        ensure!(node != old, "it is on {node}");
        let home = world.shell(&namespace, &uid, "cat $HOME/.factory/sessions/one.jsonl").await?;
        ensure!(home == "one\n", "S1: the home has changed: {home:?}");
        Ok(Some(node))
    })
    .await;
    world.kubectl(&["uncordon", &old], "").await?;
    drained.context("the drain")?;
    let (_, now) = world.attachment(&volume).await?;
    ensure!(now == moved?, "{volume} is attached to {now}");
    world.delete(&namespace, "box", "background").await?;
    world.archived(&uid, 3).await?;
    world.nothing_left(&volume).await
}
