//! Authorization. RBAC is the only policy: one `SubjectAccessReview` for the verb on the object. An object that the caller may not see must be
//! indistinguishable from a missing one: 404 with the same body.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

use super::Shared;
use super::auth::{Caller, User};
use super::error::ApiError;
use crate::credentials::{ComputerId, KeyRights};
use crate::resources::{GROUP, KeyRight};
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
    let seen = match caller {
        // What its class does not allow a key does not exist for it. No key may list or create all computers.
        Caller::Computer(..) => target.resource == "computers" && target.name.is_none(),
        Caller::User(_) => verb != "get" && (target.name.is_none() || may(shared, caller, "get", target).await?),
    };
    Err(if seen { ApiError::forbidden(verb, target.resource) } else { ApiError::not_found(singular(target.resource)) })
}

/// As [`require`], but what the caller may not do is 404 whether or not it may see the object: one review decides.
///
/// # Errors
/// 404, or 500 if the review failed.
pub async fn require_hidden(shared: &Shared, caller: &Caller, verb: &'static str, target: Target<'_>) -> Result<(), ApiError> {
    may(shared, caller, verb, target).await?.then_some(()).ok_or_else(|| ApiError::not_found(singular(target.resource)))
}

/// Whether the caller may do `verb`. A computer's key is not a user of the cluster; its permissions are defined here.
///
/// # Errors
/// 500 if the review failed.
pub async fn may(shared: &Shared, caller: &Caller, verb: &'static str, target: Target<'_>) -> Result<bool, ApiError> {
    let user = match caller {
        Caller::Computer(id, rights) => return Ok(own(id, rights, verb, target)),
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

/// The permissions of a computer's key: the computer itself and sessions of its namespace, as far as its class allows. The handlers restrict the
/// latter to its own sessions.
fn own(id: &ComputerId, rights: &KeyRights, verb: &str, target: Target<'_>) -> bool {
    let itself = target.namespace == id.namespace && target.name == Some(&id.name);
    let right = match (target.resource, verb) {
        ("computers", "get") if itself => KeyRight::Get,
        ("computers", "patch") if itself => KeyRight::Patch,
        ("computers", "delete") if itself => KeyRight::Delete,
        ("sessions", "get" | "list" | "create" | "patch") if target.namespace == id.namespace => KeyRight::Sessions,
        ("sessions", "delete") if target.namespace == id.namespace => KeyRight::DeleteSessions,
        _ => return false,
    };
    rights.allow(right)
}

/// Requires that a computer's key may see its computer: the list of computers and the search by name make no review for it.
///
/// # Errors
/// 404.
pub fn require_own(id: &ComputerId, rights: &KeyRights) -> Result<(), ApiError> {
    if own(id, rights, "get", Target::computer(id)) { Ok(()) } else { Err(ApiError::not_found("computer")) }
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

    const VERBS: [&str; 7] = ["get", "list", "watch", "create", "patch", "delete", "deletecollection"];

    fn allowed(words: Option<&[&str]>, target: Target<'_>) -> Vec<&'static str> {
        let id = ComputerId { namespace: "team".into(), name: "box".into(), uid: "u".into() };
        let words = words.map(|words| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let rights = KeyRights::of(words.as_deref());
        VERBS.into_iter().filter(|verb| own(&id, &rights, verb, target)).collect()
    }

    fn target<'a>(resource: &'static str, namespace: &'a str, name: Option<&'a str>) -> Target<'a> {
        Target { resource, namespace, name }
    }

    #[test]
    fn a_computers_key_can_access_only_itself() {
        assert_eq!(allowed(None, target("computers", "team", Some("box"))), ["get", "patch", "delete"]);
        assert_eq!(allowed(None, target("sessions", "team", Some("s"))), ["get", "list", "create", "patch", "delete"]);
        for other in [
            target("computers", "team", Some("other")),
            target("computers", "other", Some("box")),
            target("computers", "team", None),
            target("secrets", "team", Some("box")),
            target("computers/archive", "team", Some("box")),
            target("sessions", "other", None),
        ] {
            assert_eq!(allowed(None, other), [""; 0], "{other:?}");
        }
    }

    #[test]
    fn each_word_of_a_class_allows_one_thing() {
        for (words, computer, session) in [
            (&[][..], &[][..], &[][..]),
            (&["get"], &["get"], &[]),
            (&["patch"], &["patch"], &[]),
            (&["delete"], &["delete"], &[]),
            (&["sessions"], &[], &["get", "list", "create", "patch"]),
            (&["delete-sessions"], &[], &["delete"]),
        ] {
            assert_eq!(allowed(Some(words), target("computers", "team", Some("box"))), computer, "{words:?}");
            assert_eq!(allowed(Some(words), target("sessions", "team", Some("s"))), session, "{words:?}");
        }
    }
}
