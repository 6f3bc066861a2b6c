//! The commands that the chart's hooks run: apply the definitions, check before an uninstall, test an installation. Each runs once, with its own
//! permissions, and reports on standard error what to do. [`rbac`] is the source of all RBAC rules of the chart. This module must never reconcile anything.

pub mod check;
pub mod crds;
pub mod rbac;
pub mod uninstall;

use kube::api::{Api, DynamicObject, ListParams, ObjectList};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Client, ResourceExt};

use crate::resources::{GROUP, crds as definitions};
use crate::runtime::client::{CallError, call};

/// Lists at most `limit` objects of a kind.
async fn list(client: &Client, kind: &str, plural: &str, limit: u32) -> Result<ObjectList<DynamicObject>, CallError> {
    let kind = GroupVersionKind::gvk(GROUP, "v1alpha1", kind);
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural));
    call(api.list(&ListParams::default().limit(limit))).await
}

/// Kind and plural of each of the operator's definitions.
fn kinds() -> Vec<(String, String)> {
    definitions::all().into_iter().map(|crd| (crd.spec.names.kind, crd.spec.names.plural)).collect()
}

/// The first ten names, for a message.
fn some<K: kube::Resource>(objects: &[K]) -> String {
    const FEW: usize = 10;
    let mut names: Vec<String> =
        objects.iter().take(FEW).map(|o| format!("{}/{}", o.namespace().unwrap_or_default(), o.name_any())).collect();
    if objects.len() > FEW {
        names.push("…".to_owned());
    }
    names.join(", ")
}
