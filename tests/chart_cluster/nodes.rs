//! Nodes come and go. Machines' pods stay until the operator has seen that they have stopped, and the operator's own store is on one node: a
//! drain of that node must end nevertheless, whether or not another node takes pods.

use anyhow::{Context as _, Result, ensure};

use crate::world::{FULL, SYSTEM, World, eventually};

const NAMESPACE: &str = "nodes";
/// Computers whose homes are on the operator's node.
const NAMES: [&str; 2] = ["one", "two"];

/// The operator's node and the other one.
fn nodes(world: &World) -> Result<(String, String)> {
    world.kubectl(&["rollout", "status", &format!("deployment/{FULL}"), "-n", SYSTEM, "--timeout=120s"])?;
    let pods = world.get(&["pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=controller"])?;
    let running = pods["items"].as_array().into_iter().flatten().find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let own = running.and_then(|pod| pod["spec"]["nodeName"].as_str()).context("the operator runs on no node")?;
    let other = xtask::node::NAMES.iter().find(|name| **name != own).context("another node")?;
    Ok((own.to_owned(), (*other).to_owned()))
}

fn drain(world: &World, node: &str) -> Result<()> {
    let output = world.kubectl(&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"])?;
    ensure!(output.contains("drained"), "{output}");
    let left = world.kubectl(&["get", "pods", "-n", NAMESPACE, "--field-selector", &format!("spec.nodeName={node}"), "-o", "name"])?;
    ensure!(left.is_empty(), "the drain left machines on {node}: {left}");
    Ok(())
}

/// The machine runs again, in its old home and with its old key.
fn is_back(world: &World, name: &str, token: &str) -> Result<()> {
    world.active(NAMESPACE, name)?;
    let home = world.script(NAMESPACE, name, "cat $HOME/.codex/sessions/one.jsonl")?;
    ensure!(home == "work\n", "the home of {name} was lost: {home:?}");
    ensure!(world.key_is_valid(token)?, "the key of {name} does not authenticate any more");
    Ok(())
}

/// Drains the operator's node while another node takes pods, and while none does: as on a cluster of a single node.
pub fn a_drain_ends_and_the_machines_come_back(world: &World) -> Result<()> {
    world.namespace(NAMESPACE)?;
    let (own, other) = nodes(world)?;
    world.kubectl(&["cordon", &other])?;
    NAMES.iter().try_for_each(|name| world.create(NAMESPACE, name, &serde_json::json!({})))?;
    let script = "mkdir -p $HOME/.codex/sessions && echo work > $HOME/.codex/sessions/one.jsonl";
    let mut tokens = Vec::new();
    for name in NAMES {
        world.active(NAMESPACE, name)?;
        world.script(NAMESPACE, name, script)?;
        tokens.push(world.token(NAMESPACE, name)?);
    }
    for others in ["uncordon", "cordon"] {
        world.kubectl(&[others, &other])?;
        drain(world, &own)?;
        for name in NAMES {
            eventually(&format!("{name} says why it does not run"), || {
                let ready = world.condition(&["computer", name, "-n", NAMESPACE], "Ready")?;
                let message = ready["message"].as_str().unwrap_or_default();
                ensure!(ready["reason"] == "PodUnschedulable" && message.contains("unschedulable"), "{ready}");
                Ok(())
            })?;
        }
        ensure!(tokens.iter().all(|token| world.key_is_valid(token).unwrap_or(false)), "a key does not authenticate during the drain");
        world.kubectl(&["uncordon", &own])?;
        NAMES.iter().zip(&tokens).try_for_each(|(name, token)| is_back(world, name, token))?;
    }
    world.kubectl(&["uncordon", &other]).map(drop)
}

/// People empty a node by deleting what is on it. The home is on that node only, so its archive pod must run there: beside a machine that still
/// runs, and after a drain has ended the machine.
pub fn computers_of_a_cordoned_node_can_be_deleted(world: &World) -> Result<()> {
    let (own, other) = nodes(world)?;
    let uids = NAMES.iter().map(|name| world.uid(NAMESPACE, name)).collect::<Result<Vec<_>>>()?;
    let delete = |name: &str| world.kubectl(&["delete", "computer", name, "-n", NAMESPACE, "--timeout=120s"]);
    world.kubectl(&["cordon", &other])?;
    world.kubectl(&["cordon", &own])?;
    delete(NAMES[0]).context("a cordoned node")?;
    drain(world, &own)?;
    delete(NAMES[1]).context("a drained node")?;
    let cordoned = world.kubectl(&["get", "node", &own, "-o", "jsonpath={.spec.unschedulable}"])?;
    ensure!(cordoned == "true", "the node was not cordoned any more: {cordoned:?}");
    uids.iter().try_for_each(|uid| world.finished(uid))?;
    world.kubectl(&["uncordon", &own])?;
    world.kubectl(&["uncordon", &other]).map(drop)
}
