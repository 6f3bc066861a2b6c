//! Authorization. RBAC is the only policy: one `SubjectAccessReview` for the verb on the object. An object that the caller may not see must be
//! indistinguishable from a missing one: 404 with the same body.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

use super::Shared;
use super::auth::{Caller, User};
use super::error::ApiError;
use crate::credentials::ComputerId;
use crate::resources::GROUP;
use crate::runtime::client::call;

/// The object of a request: one of the operator's resources in a namespace, by name or all of them.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// `computers` or `sessions`, or `computers/archive`.
    pub resource: &'static str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name; `None` for all objects or a new one.
    pub name: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// One computer.
    pub fn computer(id: &'a ComputerId) -> Self {
        Self { resource: "computers", namespace: &id.namespace, name: Some(&id.name) }
    }
}

/// Requires that the caller may do `verb`.
///
/// # Errors
/// 404 if the caller may not see the object, 403 if it may see it but not do this, 500 if the review failed.
pub async fn require(shared: &Shared, caller: &Caller, verb: &'static str, target: Target<'_>) -> Result<(), ApiError> {
    if may(shared, caller, verb, target).await? {
        return Ok(());
    }
    let seen = verb != "get" && (target.name.is_none() || may(shared, caller, "get", target).await?);
    Err(if seen { ApiError::forbidden(verb, target.resource) } else { ApiError::not_found(singular(target.resource)) })
}

/// Whether the caller may do `verb`. A computer's key is not a user of the cluster; its permissions are defined here.
///
/// # Errors
/// 500 if the review failed.
pub async fn may(shared: &Shared, caller: &Caller, verb: &'static str, target: Target<'_>) -> Result<bool, ApiError> {
    let user = match caller {
        Caller::Computer(id) => return Ok(own(id, verb, target)),
        Caller::User(user) => user,
    };
    let api: Api<SubjectAccessReview> = Api::all(shared.client.clone());
    let review = SubjectAccessReview { spec: spec(user, verb, target), ..SubjectAccessReview::default() };
    match call(api.create(&PostParams::default(), &review)).await {
        Ok(review) => Ok(review.status.is_some_and(|s| s.allowed && s.denied != Some(true))),
        Err(error) => {
            tracing::error!(%error, verb, resource = target.resource, namespace = target.namespace, "SubjectAccessReview failed");
            Err(ApiError::internal(
                "your permissions could not be checked because the Kubernetes API did not respond as expected. Retry the request",
            ))
        }
    }
}

/// The permissions of a computer's key: the computer itself and sessions of its namespace. The handlers restrict the latter to its own sessions.
fn own(id: &ComputerId, verb: &str, target: Target<'_>) -> bool {
    let here = target.namespace == id.namespace;
    match target.resource {
        "computers" => here && target.name == Some(&id.name) && matches!(verb, "get" | "patch" | "delete"),
        "sessions" => here,
        _ => false,
    }
}

fn spec(user: &User, verb: &str, target: Target<'_>) -> SubjectAccessReviewSpec {
    let (resource, subresource) = target.resource.split_once('/').map_or((target.resource, None), |(r, s)| (r, Some(s.to_owned())));
    SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: user.uid.clone(),
        groups: Some(user.groups.clone()),
        extra: Some(user.extra.clone()),
        resource_attributes: Some(ResourceAttributes {
            group: Some(GROUP.to_owned()),
            version: Some("v1alpha1".to_owned()),
            resource: Some(resource.to_owned()),
            subresource,
            namespace: Some(target.namespace.to_owned()),
            name: target.name.map(str::to_owned),
            verb: Some(verb.to_owned()),
            ..ResourceAttributes::default()
        }),
        non_resource_attributes: None,
    }
}

fn singular(resource: &'static str) -> &'static str {
    resource.trim_end_matches('s')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_computers_key_can_access_only_itself() {
        let id = ComputerId { namespace: "team".into(), name: "box".into(), uid: "u".into() };
        let target = |resource, namespace, name| Target { resource, namespace, name };
        for verb in ["get", "patch", "delete"] {
            assert!(own(&id, verb, target("computers", "team", Some("box"))));
            assert!(!own(&id, verb, target("computers", "team", Some("other"))));
            assert!(!own(&id, verb, target("computers", "other", Some("box"))));
            assert!(!own(&id, verb, target("computers", "team", None)));
        }
        for verb in ["create", "list", "watch", "deletecollection"] {
            assert!(!own(&id, verb, target("computers", "team", Some("box"))));
        }
        assert!(!own(&id, "get", target("computers/archive", "team", Some("box"))));
        assert!(!own(&id, "get", target("secrets", "team", Some("box"))));
        assert!(!own(&id, "get", target("sessions", "other", None)));
    }
}
