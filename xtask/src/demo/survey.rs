//! What is in a given cluster before the demo touches it, and the reasons to refuse it. It only reads.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};

use crate::image;

/// The group of the operator's kinds.
pub(super) const GROUP: &str = "computer-operator.dev";
/// The oldest Kubernetes that the chart accepts.
const OLDEST: (u32, u32) = (1, 34);
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// What every object of the chart has.
const OF_THE_CHART: &str = "app.kubernetes.io/name=computer-operator";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Objects of an installation, or of an earlier one.
    pub installed: Vec<String>,
    /// Namespaces that the demo would create, and that exist.
    pub taken: Vec<String>,
    pub version: (u32, u32),
    /// Whether the user may do everything.
    pub admin: bool,
    pub default_storage_class: bool,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Their architectures.
    pub architectures: BTreeSet<String>,
    /// UIDs of the volumes that existed before.
    pub volumes: BTreeSet<String>,
}

impl Survey {
    /// Reads the cluster. `namespaces`: those that the demo would create.
    pub async fn of(client: &Client, namespaces: &[String]) -> Result<Self> {
        let version = client.apiserver_version().await.context("the cluster does not answer")?;
        let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or_default();
        let admin = may_do_everything(client).await?;
        let mut survey = Self { version: (number(&version.major), number(&version.minor)), admin, ..Self::default() };
        if !admin {
            // The rest may not be readable.
            return Ok(survey);
        }
        survey.installed = installed(client).await?;
        let existing: Api<Namespace> = Api::all(client.clone());
        for name in namespaces {
            survey.taken.extend(existing.get_opt(name).await?.map(|found| found.name_any()));
        }
        let classes: Api<StorageClass> = Api::all(client.clone());
        let is_default = |class: &StorageClass| class.annotations().get(DEFAULT_CLASS).is_some_and(|value| value == "true");
        survey.default_storage_class = classes.list(&ListParams::default()).await?.iter().any(is_default);
        for node in Api::<Node>::all(client.clone()).list(&ListParams::default()).await? {
            survey.nodes.push(node.name_any());
            survey.architectures.extend(node.status.and_then(|status| status.node_info).map(|info| info.architecture));
        }
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        survey.volumes = volumes.list(&ListParams::default()).await?.iter().filter_map(kube::ResourceExt::uid).collect();
        Ok(survey)
    }

    /// Why the demo must not run here, with what to do.
    pub fn refusal(&self) -> Option<String> {
        let (major, minor) = self.version;
        if self.version < OLDEST {
            return Some(format!("it runs Kubernetes {major}.{minor}, and computer-operator needs {}.{} or newer", OLDEST.0, OLDEST.1));
        }
        if !self.admin {
            return Some(
                "its user may not do everything, and the demo installs cluster-wide objects: use a context of a cluster admin".into(),
            );
        }
        if !self.installed.is_empty() {
            return Some(format!(
                "computer-operator, or a part of an earlier installation, is in it: {}. The demo would change it. Use another cluster, or remove \
                 everything first (docs/book/src/install.md, Remove everything)",
                self.installed.join(", ")
            ));
        }
        if !self.taken.is_empty() {
            let names = self.taken.join(", ");
            return Some(format!("it has namespaces that the demo would create and remove: {names}. Delete them, or use another cluster"));
        }
        if !self.default_storage_class {
            return Some("it has no default StorageClass, and homes and archives need volumes".into());
        }
        let own = image::architecture();
        let other = self.architectures.iter().find(|architecture| *architecture != own)?;
        Some(format!("it has a node with architecture {other}, and the image built on this machine is for {own}"))
    }
}

async fn may_do_everything(client: &Client) -> Result<bool> {
    let any = Some("*".to_owned());
    let attributes = ResourceAttributes { verb: any.clone(), group: any.clone(), resource: any, ..ResourceAttributes::default() };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SelfSubjectAccessReviewSpec::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status: k8s_openapi::api::authorization::v1::SubjectAccessReviewStatus| status.allowed))
}

/// The kinds of which the chart or its hooks install objects that do not belong to a namespace, and Deployments in any.
const KINDS: [(&str, &str, &str, &str); 10] = [
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings"),
    ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
    ("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings"),
    ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
    ("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses"),
    ("apps", "v1", "Deployment", "deployments"),
];

/// Every object of the chart outside of namespaces, and every Deployment of it.
pub(super) async fn of_the_chart(client: &Client) -> Result<Vec<(ApiResource, DynamicObject)>> {
    let mut found = Vec::new();
    for (group, version, kind, plural) in KINDS {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let objects = Api::<DynamicObject>::all_with(client.clone(), &resource).list(&ListParams::default().labels(OF_THE_CHART)).await;
        match objects {
            Ok(objects) => found.extend(objects.items.into_iter().map(|object| (resource.clone(), object))),
            // Not every cluster serves every kind.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| format!("list {plural}")),
        }
    }
    Ok(found)
}

/// The names of the operator's CRDs.
pub(super) async fn definitions(client: &Client) -> Result<Vec<DynamicObject>> {
    let all = Api::<DynamicObject>::all_with(client.clone(), &definition_kind()).list_metadata(&ListParams::default()).await?;
    let mut found = Vec::new();
    for object in all {
        if is_ours(&object.name_any()) {
            let mut named = DynamicObject::new(&object.name_any(), &definition_kind());
            named.metadata = object.metadata;
            found.push(named);
        }
    }
    Ok(found)
}

pub(super) fn definition_kind() -> ApiResource {
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    ApiResource::from_gvk_with_plural(&kind, "customresourcedefinitions")
}

fn is_ours(definition: &str) -> bool {
    definition.split_once('.').is_some_and(|(_, group)| group == GROUP)
}

async fn installed(client: &Client) -> Result<Vec<String>> {
    let mut found: Vec<String> = definitions(client).await?.iter().map(|object| format!("CRD {}", object.name_any())).collect();
    for (resource, object) in of_the_chart(client).await? {
        let namespace = object.namespace().map(|namespace| format!("{namespace}/")).unwrap_or_default();
        found.push(format!("{} {namespace}{}", resource.kind, object.name_any()));
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn good() -> Survey {
        Survey {
            version: OLDEST,
            admin: true,
            default_storage_class: true,
            architectures: [image::architecture().to_owned()].into(),
            ..Survey::default()
        }
    }

    #[test]
    fn an_empty_cluster_is_accepted() {
        assert_eq!(good().refusal(), None);
    }

    #[test]
    fn a_cluster_is_refused_with_the_reason() {
        let refused = |survey: Survey| survey.refusal().unwrap();
        let installed = refused(Survey { installed: vec!["CRD computers.computer-operator.dev".into()], ..good() });
        assert!(installed.contains("CRD computers.computer-operator.dev") && installed.contains("Remove everything"), "{installed}");
        let taken = refused(Survey { taken: vec!["demo-team-a".into()], ..good() });
        assert!(taken.contains("demo-team-a"), "{taken}");
        assert!(refused(Survey { version: (1, 33), ..good() }).contains("needs 1.34 or newer"));
        assert!(refused(Survey { admin: false, ..good() }).contains("cluster admin"));
        assert!(refused(Survey { default_storage_class: false, ..good() }).contains("StorageClass"));
        assert!(refused(Survey { architectures: ["riscv64".to_owned()].into(), ..good() }).contains("riscv64"));
    }

    #[test]
    fn only_definitions_of_the_operators_group_count() {
        assert!(is_ours("computers.computer-operator.dev"));
        assert!(!is_ours("computers.computer-operator.dev.example.com"));
        assert!(!is_ours("things.other-computer-operator.dev"));
    }
}
