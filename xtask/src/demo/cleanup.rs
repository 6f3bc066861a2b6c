//! The removal of what the demo made in a given cluster: the order, and what belongs to the demo.
//!
//! It must never remove an object that existed before, or that another client made meanwhile: a namespace is the demo's if it has the label of this
//! run, a volume if its claim is in such a namespace and it did not exist before.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Namespace, PersistentVolume};
use kube::ResourceExt as _;
use serde_json::{Value, json};

/// The label of the demo's namespaces. Its value is the run.
pub(super) const LABEL: &str = "demo.computer-operator.dev/run";

/// What is removed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The namespaces of the teams. The operator, which still runs, completes the deletions of their computers.
    Teams,
    /// The Helm release with its policies. Afterwards nothing protects the operator's finalizers.
    Release,
    /// The finalizers of the operator on what it could not complete.
    Finalizers,
    /// The reclaim policy of the volumes, so that their storage is removed with them.
    Volumes,
    /// The namespace of the operator with the archives, and the volumes.
    Namespaces,
    /// The CRDs with all their objects.
    Definitions,
    /// Objects of the chart that Helm has not removed.
    Rest,
    /// The images on the nodes.
    Images,
}

impl Part {
    /// The order. A namespace is removed while the operator runs, the operator before its finalizers, and the CRDs after their objects.
    pub const ORDER: [Self; 8] =
        [Self::Teams, Self::Release, Self::Finalizers, Self::Volumes, Self::Namespaces, Self::Definitions, Self::Rest, Self::Images];

    /// For messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Teams => "the namespaces of the teams",
            Self::Release => "the Helm release",
            Self::Finalizers => "finalizers of the operator",
            Self::Volumes => "the reclaim policy of the volumes",
            Self::Namespaces => "the namespace of the operator and the volumes",
            Self::Definitions => "the CRDs",
            Self::Rest => "other objects of the chart",
            Self::Images => "the images",
        }
    }
}

/// Where parts are removed.
pub(super) trait Ground {
    /// Removes one part. A part that does not exist is not an error.
    async fn remove(&mut self, part: Part) -> anyhow::Result<()>;
}

/// Removes every part, also after a failure, and returns what failed.
pub(super) async fn remove(ground: &mut impl Ground) -> Vec<String> {
    let mut failed = Vec::new();
    for part in Part::ORDER {
        if let Err(error) = ground.remove(part).await {
            println!("   {}: {error:#}", part.name());
            failed.push(format!("{}: {error:#}", part.name()));
        }
    }
    failed
}

/// Whether a namespace belongs to this run.
pub(super) fn is_of(run: &str, namespace: &Namespace) -> bool {
    namespace.labels().get(LABEL).is_some_and(|value| value == run)
}

/// The names of the volumes whose claim is in one of these namespaces, without those that existed before.
pub(super) fn volumes(all: &[PersistentVolume], namespaces: &[String], before: &BTreeSet<String>) -> Vec<String> {
    let ours = all.iter().filter(|volume| {
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let namespace = claim.and_then(|claim| claim.namespace.as_ref());
        let new = volume.uid().is_some_and(|uid| !before.contains(&uid));
        new && namespace.is_some_and(|namespace| namespaces.contains(namespace))
    });
    ours.map(kube::ResourceExt::name_any).collect()
}

/// A patch that removes the operator's finalizers, tied to what was read. None: it has none.
pub(super) fn without_finalizers(object: &impl kube::ResourceExt) -> Option<Value> {
    let (ours, others): (Vec<_>, Vec<_>) =
        object.finalizers().iter().partition(|finalizer| finalizer.split('/').next() == Some(super::survey::GROUP));
    if ours.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"uid": object.uid(), "resourceVersion": object.resource_version(), "finalizers": others}}))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log {
        removed: Vec<Part>,
        fails: Vec<Part>,
    }

    impl Ground for Log {
        async fn remove(&mut self, part: Part) -> anyhow::Result<()> {
            self.removed.push(part);
            anyhow::ensure!(!self.fails.contains(&part), "no answer");
            Ok(())
        }
    }

    fn position(part: Part) -> usize {
        Part::ORDER.iter().position(|other| *other == part).unwrap()
    }

    #[tokio::test]
    async fn every_part_is_removed_in_an_order_in_which_nothing_blocks() {
        let mut log = Log::default();
        assert_eq!(remove(&mut log).await, Vec::<String>::new());
        assert_eq!(log.removed, Part::ORDER);
        // The operator completes the deletions; its policies then no longer protect its finalizers; a namespace waits for them; the policy of a volume
        // decides when its claim goes; objects go before their definitions; an image is used until its pods are gone.
        for (first, then) in [
            (Part::Teams, Part::Release),
            (Part::Release, Part::Finalizers),
            (Part::Release, Part::Volumes),
            (Part::Finalizers, Part::Namespaces),
            (Part::Volumes, Part::Namespaces),
            (Part::Namespaces, Part::Definitions),
            (Part::Namespaces, Part::Images),
        ] {
            assert!(position(first) < position(then), "{first:?} before {then:?}");
        }
    }

    #[tokio::test]
    async fn a_failure_does_not_stop_the_removal_of_the_rest() {
        let mut log = Log { fails: vec![Part::Teams, Part::Images], ..Log::default() };
        let failed = remove(&mut log).await;
        assert_eq!(log.removed, Part::ORDER);
        assert_eq!(failed, ["the namespaces of the teams: no answer", "the images: no answer"]);
    }

    #[test]
    fn only_a_namespace_with_the_label_of_this_run_is_ours() {
        let namespace = |labels: Value| serde_json::from_value::<Namespace>(json!({"metadata": {"name": "a", "labels": labels}})).unwrap();
        assert!(is_of("r1", &namespace(json!({LABEL: "r1"}))));
        assert!(!is_of("r1", &namespace(json!({LABEL: "r2"}))));
        assert!(!is_of("r1", &namespace(json!({}))));
    }

    #[test]
    fn only_new_volumes_of_our_namespaces_are_ours() {
        let volume = |name: &str, namespace: &str| {
            let claim = json!({"namespace": namespace, "name": "c"});
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": {"claimRef": claim}})).unwrap()
        };
        let unbound = serde_json::from_value(json!({"metadata": {"name": "free", "uid": "free"}, "spec": {}})).unwrap();
        let all = [volume("new", "demo-team-a"), volume("old", "demo-team-a"), volume("foreign", "team-a"), unbound];
        assert_eq!(volumes(&all, &["demo-team-a".into()], &["old".to_owned()].into()), ["new"]);
    }

    #[test]
    fn finalizers_of_others_stay() {
        let pod = |finalizers: Value| {
            let metadata = json!({"name": "p", "uid": "u", "resourceVersion": "7", "finalizers": finalizers});
            serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(json!({"metadata": metadata})).unwrap()
        };
        let patch = without_finalizers(&pod(json!(["computer-operator.dev/stopped", "example.com/theirs"]))).unwrap();
        assert_eq!(patch, json!({"metadata": {"uid": "u", "resourceVersion": "7", "finalizers": ["example.com/theirs"]}}));
        assert_eq!(without_finalizers(&pod(json!(["example.com/theirs", "not-computer-operator.dev/x"]))), None);
    }
}
