//! Requests to the API server, with the caller's kubeconfig and rights. Every answer is made plain (`text::plain_json`) before anything else
//! sees it. It must never read a Secret.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;

use crate::args::Global;
use crate::text::{plain, plain_json};

/// Where the chart's instructions install the operator.
pub const USUAL_NAMESPACE: &str = "computer-operator-system";
/// Objects in one answer of a list.
const PAGE: u32 = 500;

/// An answer that may be refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer<T> {
    /// It exists.
    Found(T),
    /// The API server says that it does not exist.
    Absent,
    /// The caller has no right to know; the missing right.
    Denied(String),
}

impl<T> Answer<T> {
    /// What was found.
    pub fn found(self) -> Option<T> {
        match self {
            Self::Found(found) => Some(found),
            Self::Absent | Self::Denied(_) => None,
        }
    }

    /// The same by reference.
    pub fn as_found(&self) -> Option<&T> {
        match self {
            Self::Found(found) => Some(found),
            Self::Absent | Self::Denied(_) => None,
        }
    }
}

/// A kind that this program reads.
pub trait Kind: Resource<DynamicType = ()> + DeserializeOwned {}
impl<K: Resource<DynamicType = ()> + DeserializeOwned> Kind for K {}

/// A connection.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The namespace of the computer.
    pub namespace: String,
    /// The caller's flags.
    pub global: Global,
}

impl Cluster {
    /// Connects as the kubeconfig and the flags say.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn connect(global: &Global) -> Result<Self> {
        // There is one provider in the program, and another part may have installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &global.kubeconfig {
            Some(file) => Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &options).await?,
            None if global.context.is_none() => Config::infer().await.context("find a kubeconfig")?,
            None => Config::from_kubeconfig(&options).await?,
        };
        if let Some(user) = &global.as_user {
            config.auth_info.impersonate = Some(user.clone());
        }
        if !global.as_group.is_empty() {
            config.auth_info.impersonate_groups = Some(global.as_group.clone());
        }
        let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self { client: Client::try_from(config)?, namespace, global: global.clone() })
    }

    /// The API of a kind in a namespace, or in all.
    pub fn api<K: Kind>(&self, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<K>(&());
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// One object.
    ///
    /// # Errors
    /// When the API server does not answer, or the object cannot be understood.
    pub async fn get<K: Kind>(&self, namespace: Option<&str>, name: &str) -> Result<Answer<K>> {
        // It becomes a part of the path of a request, and perhaps an argument of kubectl.
        ensure!(valid(name), "{name:?} is not a name: names consist of lower-case letters, digits, '-' and '.'");
        answer::<_, K>("get", namespace, self.api::<K>(namespace).get(name).await)?.and_then(typed)
    }

    /// All objects that match, in pages.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    pub async fn list<K: Kind>(&self, namespace: Option<&str>, parameters: ListParams) -> Result<Answer<Vec<K>>> {
        let api = self.api::<K>(namespace);
        let mut parameters = parameters.limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = match answer::<_, K>("list", namespace, api.list(&parameters).await)? {
                Answer::Found(page) => page,
                Answer::Absent => return Ok(Answer::Absent),
                Answer::Denied(right) => return Ok(Answer::Denied(right)),
            };
            for object in page.items {
                all.push(typed(object)?);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => return Ok(Answer::Found(all)),
            }
        }
    }

    /// The events about an object, the oldest first. Empty if the caller may not list them.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    pub async fn events(&self, namespace: &str, uid: &str) -> Result<Vec<Event>> {
        let about = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        let mut events: Vec<Event> = self.list(Some(namespace), about).await?.found().unwrap_or_default();
        events.sort_by_key(when);
        Ok(events)
    }

    /// Whether the caller has a right.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn may(&self, verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> Result<bool> {
        let (resource, subresource) = resource.split_once('/').map_or((resource, None), |(r, s)| (r, Some(s.to_owned())));
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource,
            namespace: namespace.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SelfSubjectAccessReviewSpec::default() };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(explained)?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

/// Whether this may be the name of an object.
fn valid(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=253).contains(&name.len())
        && name.starts_with(inner)
        && name.ends_with(inner)
        && name.chars().all(|c| inner(c) || c == '-' || c == '.')
}

/// When an event was last seen.
pub fn when(event: &Event) -> Option<jiff::Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let time = event.last_timestamp.as_ref().or(event.first_timestamp.as_ref()).map(|time| time.0);
    series.or(time).or(event.event_time.as_ref().map(|time| time.0))
}

impl<T> Answer<T> {
    fn and_then<U>(self, next: impl FnOnce(T) -> Result<U>) -> Result<Answer<U>> {
        Ok(match self {
            Self::Found(found) => Answer::Found(next(found)?),
            Self::Absent => Answer::Absent,
            Self::Denied(right) => Answer::Denied(right),
        })
    }
}

/// The object with plain texts.
///
/// # Errors
/// When it has a form that this version does not know.
pub fn typed<K: Kind>(object: DynamicObject) -> Result<K> {
    let name = plain(&object.metadata.name.clone().unwrap_or_default());
    let value = plain_json(serde_json::to_value(object)?);
    serde_json::from_value(value).with_context(|| {
        format!(
            "{} {name} has a form that this version of kubectl-computer does not understand: install the operator's version",
            K::kind(&())
        )
    })
}

/// A refusal is an answer; any other failure is an error.
fn answer<T, K: Kind>(verb: &str, namespace: Option<&str>, result: Result<T, kube::Error>) -> Result<Answer<T>> {
    match result {
        Ok(found) => Ok(Answer::Found(found)),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let named = status.details.as_ref().is_some_and(|details| !details.name.is_empty());
            ensure!(named, "the cluster does not serve the kind {}: `kubectl computer check` says what is installed", K::kind(&()));
            Ok(Answer::Absent)
        }
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let place = namespace.map_or("all namespaces".to_owned(), |namespace| format!("namespace {namespace}"));
            let group = K::group(&());
            let dot = if group.is_empty() { "" } else { "." };
            Ok(Answer::Denied(format!("{verb} {}{dot}{group} in {place}", K::plural(&()))))
        }
        Err(error) => Err(explained(error)),
    }
}

/// An error of the API server as a person reads it: its message, without the form of the answer.
pub fn explained(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("the API server refuses the request: {}", plain(&status.message)),
        other => anyhow::Error::new(other).context("the request to the API server failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_to_another_object_or_be_a_flag() {
        assert!(valid("box") && valid("a.b-c") && valid("0b4f1c1e-6f0e-4a39-9a3b-111111111111"));
        for name in ["", "../secrets/x", "a/b", "-n", "a?b", "A", "a b", "a\u{1b}", ".."] {
            assert!(!valid(name), "{name:?}");
        }
    }

    #[test]
    fn a_missing_right_is_an_answer_and_names_itself() {
        let refused = |code: u16, name: &str| {
            let status = serde_json::json!({"status": "Failure", "message": "m", "reason": "x", "code": code, "details": {"name": name}});
            kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
        };
        let denied = answer::<(), Event>("list", Some("team-a"), Err(refused(403, ""))).unwrap();
        assert_eq!(denied, Answer::Denied("list events in namespace team-a".to_owned()));
        assert_eq!(answer::<(), Event>("get", None, Err(refused(404, "box"))).unwrap(), Answer::Absent);
        let error = answer::<(), computer_operator_api::Computer>("list", None, Err(refused(404, ""))).unwrap_err().to_string();
        assert!(error.contains("does not serve the kind Computer"), "{error}");
        assert!(answer::<(), Event>("get", None, Err(refused(500, ""))).is_err(), "an unknown outcome is an error");
    }
}
