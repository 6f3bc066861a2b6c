//! `create`: a Computer from flags, and a wait with live steps until it can be used.

use anyhow::Result;
use computer_operator_api::Computer;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, PostParams};
use serde_json::{Value, json};

use crate::args::Create;
use crate::cluster::{Cluster, explained, typed};
use crate::outcome::Outcome;
use crate::progress::{Goal, Progress, State};
use crate::screen;
use crate::text::quoted;
use crate::wait::{End, Wait};
use crate::why;

/// The object.
pub fn object(create: &Create) -> Value {
    let mut spec = json!({});
    if create.byom {
        spec["provider"] = json!("BYOM");
    }
    if let Some(class) = &create.class {
        spec["className"] = json!(class);
    }
    if let Some(size) = &create.size {
        spec["storage"] = json!({"size": size});
    }
    if let Some(ttl) = create.ttl {
        spec["timeToLiveSeconds"] = json!(ttl.as_secs());
    }
    json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": {"name": create.name}, "spec": spec})
}

/// The command.
///
/// # Errors
/// When the API server refuses the computer, or the wait fails.
pub async fn run(cluster: &Cluster, create: &Create) -> Result<Outcome> {
    let object: DynamicObject = serde_json::from_value(object(create))?;
    let api = cluster.api::<Computer>(Some(&cluster.namespace));
    let created: Computer = typed(api.create(&PostParams::default(), &object).await.map_err(explained)?)?;
    if create.waiting.wait {
        return until_ready(cluster, &created, Wait::new(&create.waiting)).await;
    }
    screen::out(&format!("computer/{} created. Follow it: kubectl computer why {}", created.name_any(), place(&created)));
    Ok(Outcome::Done)
}

fn place(computer: &Computer) -> String {
    format!("{} -n {}", quoted(&computer.name_any()), quoted(&computer.namespace().unwrap_or_default()))
}

/// Waits until a computer can be used as its present spec says.
///
/// # Errors
/// When the wait fails.
pub async fn until_ready(cluster: &Cluster, computer: &Computer, mut wait: Wait) -> Result<Outcome> {
    let (namespace, name) = (computer.namespace().unwrap_or_default(), computer.name_any());
    let uid = computer.uid().unwrap_or_default();
    let mut progress = Progress::new(Goal::Ready(computer.metadata.generation.unwrap_or_default()), &uid);
    let end = wait.computer(cluster, &namespace, &name, &mut progress).await?;
    let (outcome, text) = match (end, &progress.state) {
        (End::Settled, State::Lost(what)) => {
            (Outcome::Failed, format!("error: Computer {namespace}/{name} does not become ready: {what}."))
        }
        (End::Settled, _) => {
            (Outcome::Done, format!("Computer {namespace}/{name} is ready. Open a shell: kubectl computer shell {}", place(computer)))
        }
        (End::Interrupted, _) => (
            Outcome::Timeout,
            format!("Interrupted. The computer is not changed by this. See how far it is: kubectl computer why {}", place(computer)),
        ),
        (End::Blocked | End::Timeout, _) => {
            let why = why::explain(&cluster.observe(&name).await?).text();
            let (outcome, word) = if end == End::Blocked { (Outcome::Blocked, "It is blocked") } else { (Outcome::Timeout, "Timeout") };
            (outcome, format!("{word}. The operator continues, and the computer becomes ready when the cause is gone.\n\n{why}"))
        }
    };
    Ok(wait.finish(outcome, &text, &json!({"uid": uid})))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Args, Command};

    fn created(flags: &str) -> Value {
        let line = format!("kubectl-computer create box {flags}");
        let Command::Create(create) = Args::try_parse_from(line.split_whitespace()).unwrap().command else { panic!("another command") };
        object(&create)["spec"].clone()
    }

    #[test]
    fn the_flags_become_the_spec() {
        assert_eq!(created(""), json!({}));
        assert_eq!(
            created("--class agents --size 20Gi --ttl 8h"),
            json!({"className": "agents", "storage": {"size": "20Gi"}, "timeToLiveSeconds": 28_800})
        );
        assert_eq!(created("--byom"), json!({"provider": "BYOM"}));
        assert!(Args::try_parse_from(["kubectl-computer", "create", "box", "--byom", "--size", "1Gi"]).is_err());
    }
}
