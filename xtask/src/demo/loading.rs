//! How an image reaches the nodes of a given cluster: loaded by the tool that made the cluster, or pushed to a registry.
//!
//! It must never guess: a cluster whose tool is not known needs `--load` or `--registry`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use super::images::{LOADED, Packed};
use super::stop::Stop;
use super::target::Target;
use crate::node;

/// The tools that load images, as users name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loader {
    /// `kind load image-archive`
    Kind,
    /// `k3d image import`
    K3d,
    /// `minikube image load`
    Minikube,
}

/// How images get into the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Loading {
    /// Into the nodes of a cluster of `cargo xtask cluster up`, in this folder.
    Nodes(PathBuf),
    /// By a tool, for the cluster (minikube: profile) of this name.
    Tool(Loader, String),
    /// To a registry: host and path.
    Push(String),
}

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub loader: Option<Loader>,
    pub cluster: Option<String>,
    pub registry: Option<String>,
}

/// Programs that push an archive, in the order of choice. The first two leave nothing on this machine.
const PUSHERS: [&str; 4] = ["crane", "skopeo", "docker", "podman"];

impl Loading {
    /// The user's choice, or the tool that the context belongs to.
    pub fn choose(target: &Target, wanted: &Wanted) -> Result<Self> {
        if let Some(registry) = &wanted.registry {
            let prefix = registry.trim_end_matches('/');
            ensure!(
                prefix.contains('.') || prefix.contains(':') || prefix.starts_with("localhost"),
                "--registry {registry} names no registry: write HOST/PATH, for example registry.example.com/team"
            );
            return Ok(Self::Push(if prefix.contains('/') { prefix.to_owned() } else { format!("{prefix}/computer-operator") }));
        }
        if let Some(loader) = wanted.loader {
            let Some(cluster) = wanted.cluster.clone().or_else(|| target.cluster_of(loader)) else {
                bail!("context {} does not name the cluster to load into: add --load-cluster NAME", target.context)
            };
            return Ok(Self::Tool(loader, cluster));
        }
        if let Some(folder) = &target.folder {
            return Ok(Self::Nodes(folder.clone()));
        }
        for loader in [Loader::Minikube, Loader::Kind, Loader::K3d] {
            if let Some(found) = target.cluster_of(loader) {
                return Ok(Self::Tool(loader, wanted.cluster.clone().unwrap_or(found)));
            }
        }
        bail!(
            "context {} is not one of kind, k3d or minikube, so it is not known how its nodes get the operator's image. Add --registry HOST/PATH \
             to push it, or --load kind|k3d|minikube",
            target.context
        )
    }

    /// The first part of the images' names.
    pub fn prefix(&self) -> &str {
        if let Self::Push(prefix) = self { prefix } else { LOADED }
    }

    /// For messages and for the recorded durations.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Nodes(_) => "ctr",
            Self::Tool(Loader::Kind, _) => "kind",
            Self::Tool(Loader::K3d, _) => "k3d",
            Self::Tool(Loader::Minikube, _) => "minikube",
            Self::Push(_) => "push",
        }
    }

    /// Loads one image. `path`: where programs are searched.
    pub fn load(&self, image: &Packed, stop: &Stop, path: &OsString) -> Result<()> {
        match self {
            Self::Nodes(folder) => {
                println!("   {} into the nodes of {}", image.reference, folder.display());
                node::import_image(folder, &image.archive)
            }
            Self::Tool(loader, cluster) => run(&load(*loader, cluster, image), stop, path),
            Self::Push(_) => push(pusher(path)?, image).iter().try_for_each(|command| run(command, stop, path)),
        }
    }

    /// Removes one image, from the nodes with these names. A registry may keep it: many refuse deletions, and then a message says so.
    pub fn unload(&self, image: &Packed, nodes: &[String], stop: &Stop, path: &OsString) -> Result<()> {
        match self {
            Self::Nodes(folder) => node::remove_image(folder, &image.reference),
            Self::Tool(loader, cluster) => {
                unload(*loader, cluster, &image.reference, nodes).iter().try_for_each(|command| run(command, stop, path))
            }
            Self::Push(_) => {
                let pusher = pusher(path)?;
                let removed = run(&withdraw(pusher, image), stop, path);
                if removed.is_err() || !PUSHERS[..2].contains(&pusher) {
                    println!("   the registry still has {}: delete it there", image.reference);
                }
                Ok(())
            }
        }
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn load(loader: Loader, cluster: &str, image: &Packed) -> Vec<String> {
    let archive = image.archive.display().to_string();
    match loader {
        Loader::Kind => words(["kind", "load", "image-archive", &archive, "--name", cluster]),
        Loader::K3d => words(["k3d", "image", "import", &archive, "--cluster", cluster]),
        Loader::Minikube => words(["minikube", "image", "load", &archive, "--profile", cluster]),
    }
}

/// The nodes of kind and k3d are containers with the names of the nodes.
fn unload(loader: Loader, cluster: &str, reference: &str, nodes: &[String]) -> Vec<Vec<String>> {
    match loader {
        Loader::Kind | Loader::K3d => nodes.iter().map(|node| words(["docker", "exec", node, "crictl", "rmi", reference])).collect(),
        Loader::Minikube => vec![words(["minikube", "image", "rm", reference, "--profile", cluster])],
    }
}

fn pusher(path: &OsString) -> Result<&'static str> {
    let found = PUSHERS.into_iter().find(|name| std::env::split_paths(path).any(|folder| folder.join(name).is_file()));
    let Some(found) = found else { bail!("nothing on the PATH can push an image: install one of {}", PUSHERS.join(", ")) };
    Ok(found)
}

fn push(pusher: &str, image: &Packed) -> Vec<Vec<String>> {
    let (archive, reference) = (image.archive.display().to_string(), image.reference.as_str());
    match pusher {
        "crane" => vec![words(["crane", "push", &archive, reference])],
        "skopeo" => vec![words(["skopeo", "copy", &format!("docker-archive:{archive}"), &format!("docker://{reference}")])],
        other => vec![words([other, "load", "--input", &archive]), words([other, "push", reference])],
    }
}

/// `docker` and `podman` remove only their own copy.
fn withdraw(pusher: &str, image: &Packed) -> Vec<String> {
    match pusher {
        "crane" => words(["crane", "delete", &image.reference]),
        "skopeo" => words(["skopeo", "delete", &format!("docker://{}", image.reference)]),
        other => words([other, "image", "rm", &image.reference]),
    }
}

fn run(command: &[String], stop: &Stop, path: &OsString) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    println!("$ {}", command.join(" "));
    let Some(found) = std::env::split_paths(path).map(|folder| folder.join(program)).find(|file| file.is_file()) else {
        bail!("{program} is not on the PATH")
    };
    stop.text(Command::new(found).args(arguments).env("PATH", path), "").map(drop)
}

#[cfg(test)]
#[path = "loading_tests.rs"]
mod tests;
