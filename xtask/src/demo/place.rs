//! Where the story runs: on a cluster that the demo starts and removes, or on a given one. Everything that differs between them is here; the story
//! must never ask which it is.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::given::{Given, TEAMS};
use super::images::{Images, LOADED};
use super::loading::{Loading, Wanted};
use super::plan::Plan;
use super::stop::Stop;
use super::story::Story;
use super::target::Target;
use super::{CLUSTER, Options, ensure_free};
use crate::chart::{self, Helm};
use crate::cluster::{self, Cluster, Profile};
use crate::node;
use crate::tools::{self, Tool};

/// A cluster for the story.
pub(super) enum Place {
    /// One that the demo starts.
    Own {
        /// Leave it up.
        keep: bool,
        cluster: Option<Cluster>,
    },
    /// One that exists.
    Given {
        file: PathBuf,
        target: Target,
        loading: Loading,
        yes: bool,
        /// After it was checked and confirmed.
        open: Option<Box<Given>>,
    },
}

impl Place {
    /// Where these options say. Connects to nothing.
    pub fn of(options: Options) -> Result<Self> {
        let Some(file) = options.kubeconfig else {
            if let Some(obstacle) = node::obstacle() {
                bail!(
                    "the demo needs a real node, and none can run here: {obstacle}. To run it on a cluster that exists: cargo xtask demo --kubeconfig FILE"
                );
            }
            ensure_free()?;
            return Ok(Self::Own { keep: options.keep, cluster: None });
        };
        let file = std::path::absolute(file)?;
        let wanted = Wanted { loader: options.load, cluster: options.load_cluster, registry: options.registry };
        let (target, loading) = Given::loading(&file, options.context.as_deref(), &wanted)?;
        Ok(Self::Given { file, target, loading, yes: options.yes, open: None })
    }

    /// Its name in the recorded durations.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Own { .. } => "own",
            Self::Given { loading, .. } => loading.name(),
        }
    }

    /// The programs that it needs.
    pub fn tools(&self) -> Vec<Tool> {
        match self {
            Self::Own { .. } => [Profile::Node { count: 1 }.tools(), vec![Tool::Helm]].concat(),
            Self::Given { .. } => vec![Tool::Kubectl, Tool::Helm],
        }
    }

    pub fn opening(&self) -> String {
        match self {
            Self::Own { .. } => "Start a real Kubernetes".into(),
            Self::Given { target, .. } => format!("Check the cluster of context {}; nothing is changed yet", target.context),
        }
    }

    pub fn loading(&self) -> String {
        match self {
            Self::Own { .. } => "Load the image into the node, without a registry".into(),
            Self::Given { loading: Loading::Push(prefix), .. } => format!("Push the images to {prefix}"),
            Self::Given { loading, .. } => format!("Load the images with {}", loading.name()),
        }
    }

    /// What happens at the end. None: nothing.
    pub fn leaving(&self) -> Option<String> {
        match self {
            Self::Own { keep, .. } => (!keep).then(|| "Remove the cluster".into()),
            Self::Given { .. } => Some("Remove everything that the demo made".into()),
        }
    }

    /// Starts the cluster, or checks the given one.
    pub async fn open(&mut self) -> Result<()> {
        match self {
            Self::Own { keep, cluster } => {
                // Without --keep it also ends when this process is killed.
                let options = cluster::Options { bound: !*keep, ..cluster::Options::default() };
                *cluster = Some(Cluster::up_with(CLUSTER, Profile::Node { count: 1 }, options).await?);
            }
            Self::Given { file, target, loading, yes, open } => {
                *open = Some(Box::new(Given::open(file, target, loading.clone(), *yes).await?));
            }
        }
        Ok(())
    }

    /// The first part of the images' names, and whether the image of the machines is needed too.
    pub fn images(&self) -> (String, bool) {
        match self {
            Self::Own { .. } => (LOADED.to_owned(), false),
            Self::Given { loading, .. } => (loading.prefix().to_owned(), true),
        }
    }

    /// Brings the images to the nodes. Returns the story, ready to begin.
    pub fn load(&mut self, images: &Images, stop: Stop, start: Instant) -> Result<Story> {
        let images_values = images.values()?;
        let (kubeconfig, teams, run, values) = match self {
            Self::Own { cluster, .. } => {
                let cluster = cluster.as_ref().context("the cluster is not started")?;
                images.all().try_for_each(|image| cluster.load_image(&image.archive))?;
                let values = vec!["--values".to_owned(), chart::demo_values().display().to_string()];
                (cluster.kubeconfig().to_owned(), ["team-a", "team-b", "team-c"], CLUSTER.to_owned(), values)
            }
            Self::Given { open, .. } => {
                let given = open.as_mut().context("the cluster is not checked")?;
                if images.machine.is_none() {
                    println!("   no static busybox on this machine: the cluster pulls the machine's image of the chart's default class");
                }
                given.load(images, &stop)?;
                // The archives of the demo are removed with the cluster's other traces of it.
                let small = "archive.local.size=1Gi,archive.local.retainVolume=false,defaultClass.storage.size=1Gi";
                (given.kubeconfig(), TEAMS, given.run.clone(), vec!["--set".to_owned(), small.to_owned()])
            }
        };
        Ok(Story {
            kubectl: tools::ensure(&[Tool::Kubectl])?.path(Tool::Kubectl).to_owned(),
            helm: Helm::new(Some(&kubeconfig))?,
            kubeconfig,
            stop,
            start,
            teams: teams.map(str::to_owned),
            run,
            values: [values, images_values].concat(),
            uid: String::new(),
            sessions: Vec::new(),
        })
    }

    /// Removes what the demo made.
    pub async fn leave(&mut self, plan: &mut Plan) -> Result<()> {
        match self {
            Self::Own { keep: true, .. } => println!(
                "\nThe cluster is still running. To use it: eval \"$(cargo xtask cluster env --name {CLUSTER})\"; to remove it: cargo xtask cluster down --name {CLUSTER}"
            ),
            Self::Own { cluster, .. } => {
                if let Some(cluster) = cluster.take() {
                    plan.leave()?;
                    cluster.down().await?;
                    plan.done();
                }
            }
            Self::Given { open, .. } => {
                // Before the images are loaded, nothing was made.
                if let Some(given) = open.as_mut().filter(|given| given.touched) {
                    plan.leave()?;
                    given.leave().await?;
                    plan.done();
                }
            }
        }
        Ok(())
    }
}
