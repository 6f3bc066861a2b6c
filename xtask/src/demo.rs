//! `cargo xtask demo`: creates, uses and deletes a `Computer` on a real cluster and explains each step. The story is one list of steps
//! ([`story::STEPS`]); what differs between a cluster of its own and a given one is in [`place::Place`].
//!
//! It must never change anything of a given cluster that it has not made, and never leave anything of its own there.

mod cleanup;
mod given;
mod http;
mod images;
mod loading;
mod place;
mod plan;
mod stop;
mod story;
mod survey;
mod target;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::durations::{Durations, clock};
use crate::{image, tools};
pub use loading::Loader;
use place::Place;
use plan::{Plan, Planned};
use stop::Stop;
use story::STEPS;

const SYSTEM: &str = "computer-operator-system";
/// Name of the demo's own cluster.
pub const CLUSTER: &str = "demo";
/// Longest time for one condition.
const LIMIT: Duration = Duration::from_secs(180);

/// Where and how the demo runs.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Leave the cluster up at the end.
    #[arg(long)]
    pub keep: bool,
    /// Start no cluster: run on the one that this file names, and remove everything that the demo made there.
    #[arg(long, conflicts_with = "keep")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig. Default: its current one.
    #[arg(long, requires = "kubeconfig")]
    pub context: Option<String>,
    /// Install without asking into a cluster that does not look like one on this machine.
    #[arg(long, requires = "kubeconfig")]
    pub yes: bool,
    /// Load the images with this tool. Default: the one that the context belongs to.
    #[arg(long, value_enum, requires = "kubeconfig", conflicts_with = "registry")]
    pub load: Option<Loader>,
    /// Name of the cluster for that tool (minikube: the profile). Default: from the context.
    #[arg(long, requires = "kubeconfig")]
    pub load_cluster: Option<String>,
    /// Push the images to this registry (HOST/PATH), from which the nodes must be able to pull.
    #[arg(long, requires = "kubeconfig")]
    pub registry: Option<String>,
}

/// Runs the demo.
///
/// # Errors
/// When no cluster can be started or used, a step fails, the demo is interrupted, or something that it made cannot be removed.
pub async fn run(workspace: &'static Path, options: Options) -> Result<()> {
    let start = Instant::now();
    let mut place = Place::of(options)?;
    let builds = tools::to_build(&place.tools())?;
    let mut plan = Plan::new(steps(&place), Durations::open());
    println!("Remaining time of the demo: {}", plan.remaining(&builds));
    tools::ensure(&place.tools())?;

    plan.begin()?;
    place.open().await?;
    plan.done();

    // Until here, and during the build, the demo has made nothing that outlives this process: a signal ends it.
    plan.begin()?;
    let (prefix, machine) = place.images();
    let folder = tools::cache_folder()?.join("images");
    let packed = tokio::task::spawn_blocking(move || images::pack(workspace, &folder, &prefix, machine)).await?;
    let result = match packed {
        Ok(images) => {
            plan.done();
            perform(&mut place, &images, &mut plan, start)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = &result {
        eprintln!("\nerror: {error:#}");
    }
    let left = place.leave(&mut plan).await;
    result.and(left)?;
    println!("\nEverything above happened on a real cluster, in {}.", clock(start.elapsed().as_secs()));
    Ok(())
}

/// Loads the images and runs the story.
fn perform(place: &mut Place, images: &images::Images, plan: &mut Plan, start: Instant) -> Result<()> {
    let stop = Stop::on_signals()?;
    plan.begin()?;
    tokio::task::block_in_place(|| {
        let mut story = place.load(images, stop, start)?;
        plan.done();
        for step in &STEPS {
            plan.begin()?;
            (step.run)(&mut story).with_context(|| format!("step {}", step.id))?;
            plan.done();
        }
        Ok(())
    })
}

/// Every step of a run, in order.
fn steps(place: &Place) -> Vec<Planned> {
    let name = place.name();
    let step = |id: &str, title: String| Planned { record: format!("demo {name} {id}"), title };
    // Where cargo puts it, if it was built before.
    let built = std::env::current_exe().is_ok_and(|own| own.with_file_name(image::SHARED_PROGRAM).exists());
    let how = if built { "again" } else { "first" };
    let mut steps = vec![
        step("open", place.opening()),
        Planned {
            record: format!("demo image {how}"),
            title: "Build the operator's image, with the dependencies that are already compiled for xtask".into(),
        },
        step("load", place.loading()),
    ];
    steps.extend(STEPS.iter().map(|story| step(story.id, story.title.to_owned())));
    steps.extend(place.leaving().map(|title| step("leave", title)));
    steps
}

/// Where the demo runs must be free.
fn ensure_free() -> Result<()> {
    ensure!(
        !crate::cluster::is_up(CLUSTER)?,
        "the cluster of an earlier demo is still running. Remove it first: cargo xtask cluster down --name {CLUSTER}"
    );
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_story_is_the_same_on_every_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        let kind = r#"{"current-context":"kind-dev","contexts":[{"name":"kind-dev","context":{"cluster":"c","user":"u"}}],
            "clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],"users":[]}"#;
        std::fs::write(&file, kind).unwrap();
        let given = Place::of(Options { kubeconfig: Some(file), ..Options::default() }).unwrap();
        let own = Place::Own { keep: false, cluster: None };
        let titles = |place: &Place| steps(place).into_iter().map(|step| step.title).collect::<Vec<_>>();
        assert_eq!(titles(&given).len(), titles(&own).len());
        assert_eq!(titles(&given)[3..11], titles(&own)[3..11]);
        assert!(steps(&given).iter().any(|step| step.record == "demo kind install"));
        assert!(steps(&own).iter().any(|step| step.record == "demo own install"));
        // A kept cluster is not removed.
        assert_eq!(steps(&Place::Own { keep: true, cluster: None }).len(), titles(&own).len() - 1);
    }
}
