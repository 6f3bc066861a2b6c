//! A given cluster: what the demo checks before it touches it, and how it removes what it made.
//!
//! It must never change a cluster that is refused or not confirmed, and never an object that the demo has not made.

use std::ffi::OsString;
use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::cleanup::{self, Ground, Part};
use super::images::{Images, Packed};
use super::loading::{Loading, Wanted};
use super::stop::Stop;
use super::survey::{self, GROUP, Survey};
use super::target::Target;
use super::{LIMIT, SYSTEM};
use crate::chart::{Helm, RELEASE};
use crate::cluster::{self, Cluster, Profile, Status};

/// The namespaces of the story. Their names are not ones that a team would choose.
pub(super) const TEAMS: [&str; 3] = ["demo-team-a", "demo-team-b", "demo-team-c"];

/// The kinds on which the operator sets finalizers: group, version, kind, plural.
const HELD: [(&str, &str, &str, &str); 8] = [
    (GROUP, "v1alpha1", "Computer", "computers"),
    (GROUP, "v1alpha1", "ComputerRecord", "computerrecords"),
    (GROUP, "v1alpha1", "Session", "sessions"),
    (GROUP, "v1alpha1", "ApiKey", "apikeys"),
    (GROUP, "v1alpha1", "ApiKeyRecord", "apikeyrecords"),
    ("", "v1", "Pod", "pods"),
    ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    ("", "v1", "Secret", "secrets"),
];

/// A cluster that the demo may use.
pub(super) struct Given {
    cluster: Cluster,
    client: Client,
    pub loading: Loading,
    /// Identifies what this run makes.
    pub run: String,
    survey: Survey,
    helm: Helm,
    /// The images that were loaded, or whose loading began.
    loaded: Vec<Packed>,
    /// Whether the demo has begun to make something.
    pub touched: bool,
    /// Volumes that must be gone at the end.
    volumes: Vec<String>,
}

impl Given {
    /// Checks the cluster, and asks before anything is installed into one that does not look local. Changes nothing.
    pub async fn open(file: &Path, target: &Target, loading: Loading, yes: bool) -> Result<Self> {
        let cluster = Cluster::existing(file, Some(&target.context)).await?;
        let config =
            kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(cluster.kubeconfig())?, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        if let Some(folder) = &target.folder {
            ensure!(
                matches!(cluster::status("given", Some(folder))?, Status::Ready { profile: Profile::Node { .. }, .. }),
                "the cluster in {} has no real nodes, so no computer can run in it",
                folder.display()
            );
        }
        let survey = Survey::of(&client, &namespaces()).await?;
        if let Some(refusal) = survey.refusal() {
            bail!("the demo does not run in the cluster of context {}: {refusal}", target.context);
        }
        let (major, minor) = survey.version;
        println!("   {} ({}), Kubernetes {major}.{minor}, {} node(s)", target.context, target.server, survey.nodes.len());
        println!("   computer-operator is not installed in it");
        confirm(target, yes, std::io::stdin().is_terminal(), || {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).map(|_| line)
        })?;
        let helm = Helm::new(Some(cluster.kubeconfig()))?;
        let run = hex::encode(rand::random::<[u8; 8]>());
        Ok(Self { cluster, client, loading, run, survey, helm, loaded: Vec::new(), touched: false, volumes: Vec::new() })
    }

    /// How to load images into the cluster of this context.
    pub fn loading(file: &Path, context: Option<&str>, wanted: &Wanted) -> Result<(Target, Loading)> {
        let config = Kubeconfig::read_from(file).with_context(|| format!("read {}", file.display()))?;
        let target = Target::of(file, &config, context)?;
        let loading = Loading::choose(&target, wanted)?;
        Ok((target, loading))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig().to_owned()
    }

    /// Loads the images, and remembers them for the removal.
    pub fn load(&mut self, images: &Images, stop: &Stop) -> Result<()> {
        self.touched = true;
        for image in images.all() {
            self.loaded.push(image.clone());
            self.loading.load(image, stop, &path())?;
        }
        Ok(())
    }

    /// Removes everything, and checks that nothing is left.
    pub async fn leave(&mut self) -> Result<()> {
        let mut failed = cleanup::remove(self).await;
        let after = Survey::of(&self.client, &namespaces()).await?;
        failed.extend(after.installed.into_iter().chain(after.taken.iter().map(|name| format!("Namespace {name}"))));
        ensure!(failed.is_empty(), "not everything that the demo made is removed: {}", failed.join("; "));
        println!("   nothing of the demo is left: no namespace, no volume, no CRD, no role, no policy");
        Ok(())
    }

    /// The namespaces of this run that exist.
    async fn ours(&self) -> Result<Vec<Namespace>> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let mut found = Vec::new();
        for name in namespaces() {
            found.extend(api.get_opt(&name).await?.filter(|namespace| cleanup::is_of(&self.run, namespace)));
        }
        Ok(found)
    }

    /// Deletes those of our namespaces, and waits until they are gone.
    async fn delete(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let ours = async || -> Result<Vec<Namespace>> { Ok(self.ours().await?.into_iter().filter(|ns| wanted(&ns.name_any())).collect()) };
        for namespace in ours().await? {
            println!("   deleting Namespace {}", namespace.name_any());
            delete(&api, &namespace.name_any(), namespace.uid()).await?;
        }
        until("namespaces to be gone", || async {
            let left: Vec<_> = ours().await?.iter().map(kube::ResourceExt::name_any).collect();
            Ok((!left.is_empty()).then(|| left.join(", ")))
        })
        .await
    }

    /// Fails when another client uses the operator that the demo installed.
    async fn only_ours(&self) -> Result<()> {
        let computers = Api::<DynamicObject>::all_with(self.client.clone(), &kind(HELD[0]));
        let all = match computers.list(&ListParams::default()).await {
            Ok(all) => all.items,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let other = all.iter().find(|computer| computer.namespace().is_none_or(|namespace| !namespaces().contains(&namespace)));
        if let Some(computer) = other {
            let (namespace, name) = (computer.namespace().unwrap_or_default(), computer.name_any());
            bail!("Computer {namespace}/{name} is not the demo's, and it needs this. Delete it, then uninstall (docs/book/src/install.md)");
        }
        Ok(())
    }

    async fn uninstall(&self) -> Result<()> {
        if !self.ours().await?.iter().any(|namespace| namespace.name_any() == SYSTEM) {
            return Ok(());
        }
        let arguments = ["uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found", "--wait", "--timeout", "120s"];
        println!("$ helm {}", arguments.join(" "));
        let stop = Stop::default();
        if let Err(error) = stop.text(&mut self.helm.command(&arguments), "") {
            // The guard of the chart refuses while deletions are not complete.
            println!("   {error:#}\n   again without hooks");
            stop.text(&mut self.helm.command(&[&arguments[..], &["--no-hooks"]].concat()), "")?;
        }
        Ok(())
    }

    async fn remove_finalizers(&self) -> Result<()> {
        for namespace in self.ours().await? {
            for held in HELD {
                let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &namespace.name_any(), &kind(held));
                let objects = match api.list(&ListParams::default()).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => continue,
                    objects => objects?,
                };
                for object in objects {
                    let Some(patch) = cleanup::without_finalizers(&object) else { continue };
                    println!("   removing the operator's finalizer from {} {}/{}", held.2, namespace.name_any(), object.name_any());
                    api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
                }
            }
        }
        Ok(())
    }

    async fn release_volumes(&mut self) -> Result<()> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let ours: Vec<_> = self.ours().await?.iter().map(kube::ResourceExt::name_any).collect();
        self.volumes = cleanup::volumes(&api.list(&ListParams::default()).await?.items, &ours, &self.survey.volumes);
        let patch = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
        for name in &self.volumes {
            api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        Ok(())
    }

    async fn volumes_are_gone(&self) -> Result<()> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        until("volumes to be gone", || async {
            let mut left = Vec::new();
            for name in &self.volumes {
                left.extend(api.get_opt(name).await?.map(|volume| volume.name_any()));
            }
            Ok((!left.is_empty()).then(|| left.join(", ")))
        })
        .await
    }

    async fn delete_definitions(&self) -> Result<()> {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &survey::definition_kind());
        for definition in survey::definitions(&self.client).await? {
            delete(&api, &definition.name_any(), definition.uid()).await?;
        }
        until("CRDs to be gone", || async {
            let left: Vec<_> = survey::definitions(&self.client).await?.iter().map(kube::ResourceExt::name_any).collect();
            Ok((!left.is_empty()).then(|| left.join(", ")))
        })
        .await
    }

    async fn delete_rest(&self) -> Result<()> {
        for (resource, object) in survey::of_the_chart(&self.client).await? {
            // A Deployment goes with its namespace.
            if object.namespace().is_none() {
                println!("   deleting {} {}", resource.kind, object.name_any());
                let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
                delete(&api, &object.name_any(), object.uid()).await?;
            }
        }
        Ok(())
    }

    fn unload(&self) -> Result<()> {
        let unload = |image| self.loading.unload(image, &self.survey.nodes, &Stop::default(), &path());
        let failed: Vec<String> = self.loaded.iter().filter_map(|image| unload(image).err()).map(|error| format!("{error:#}")).collect();
        ensure!(failed.is_empty(), "{}", failed.join("; "));
        Ok(())
    }
}

impl Ground for Given {
    async fn remove(&mut self, part: Part) -> Result<()> {
        if matches!(part, Part::Release | Part::Finalizers | Part::Namespaces | Part::Definitions | Part::Rest) {
            self.only_ours().await?;
        }
        match part {
            Part::Teams => self.delete(|name| name != SYSTEM).await,
            Part::Release => self.uninstall().await,
            Part::Finalizers => self.remove_finalizers().await,
            Part::Volumes => self.release_volumes().await,
            Part::Namespaces => {
                self.delete(|_| true).await?;
                self.volumes_are_gone().await
            }
            Part::Definitions => self.delete_definitions().await,
            Part::Rest => self.delete_rest().await,
            Part::Images => self.unload(),
        }
    }
}

/// Where programs are searched.
fn path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

/// Every namespace that the demo makes.
fn namespaces() -> Vec<String> {
    std::iter::once(SYSTEM).chain(TEAMS).map(str::to_owned).collect()
}

fn kind((group, version, kind, plural): (&str, &str, &str, &str)) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// Deletes the object with this UID. One that is gone is not an error.
async fn delete<K>(api: &Api<K>, name: &str, uid: Option<String>) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let preconditions = Preconditions { uid, resource_version: None };
    match api.delete(name, &DeleteParams::default().preconditions(preconditions)).await {
        Ok(_) => Ok(()),
        // Gone, or another object with that name.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("delete {name}")),
    }
}

/// Waits until nothing is left.
async fn until<F: Future<Output = Result<Option<String>>>>(what: &str, left: impl Fn() -> F) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while let Some(left) = left().await? {
        ensure!(Instant::now() < deadline, "waiting for {what}: {left} not within {} s", LIMIT.as_secs());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// Asks before the demo installs into a cluster that does not look local.
fn confirm(target: &Target, yes: bool, terminal: bool, answer: impl FnOnce() -> std::io::Result<String>) -> Result<()> {
    if yes || target.looks_local() {
        return Ok(());
    }
    let (context, server) = (&target.context, &target.server);
    ensure!(
        terminal,
        "context {context} ({server}) does not look like a cluster on this machine. The demo would install CRDs, roles and policies there and remove \
         them at the end: add --yes to confirm"
    );
    println!(
        "   This does not look like a cluster on this machine. The demo installs CRDs, roles and policies and removes them at the end."
    );
    println!("   Type the name of the context to continue:");
    ensure!(answer()?.trim() == context, "not confirmed: nothing was changed");
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn remote() -> Target {
        Target { context: "prod".into(), server: "https://203.0.113.7:6443".into(), ..Target::default() }
    }

    #[test]
    fn a_cluster_that_does_not_look_local_needs_a_confirmation() {
        let never = || -> std::io::Result<String> { panic!("asked") };
        confirm(&remote(), true, false, never).unwrap();
        let refused = confirm(&remote(), false, false, never).unwrap_err().to_string();
        assert!(refused.contains("prod (https://203.0.113.7:6443)") && refused.contains("--yes"), "{refused}");
        confirm(&remote(), false, true, || Ok("prod\n".into())).unwrap();
        for wrong in ["y\n", "", "production\n"] {
            assert!(confirm(&remote(), false, true, || Ok(wrong.into())).is_err(), "{wrong:?}");
        }
        let local = Target { context: "kind-dev".into(), server: "https://127.0.0.1:1".into(), ..Target::default() };
        confirm(&local, false, false, never).unwrap();
    }

    #[test]
    fn every_namespace_of_the_story_is_checked_and_removed() {
        assert_eq!(namespaces(), ["computer-operator-system", "demo-team-a", "demo-team-b", "demo-team-c"]);
    }
}
