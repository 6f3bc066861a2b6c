//! Who is measured: what each creates for one life, and which object shows that the life has begun or ended.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, ApiResource, DynamicObject};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use computer_operator::resources::Computer;

use super::CLASS;
use crate::bench::stage::TEAM;

/// The image of every pod; simulated nodes pull none.
pub const IMAGE: &str = "none:1";

/// A contender, in the order of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contender {
    /// A bare client creates and deletes pods.
    Pods,
    /// A bare client creates and deletes pods with a claim each.
    PodsWithClaims,
    /// `BYOM` computers: a record and a key, no pod.
    Byom,
    /// Managed computers: a record, a key, a pod and a claim.
    Managed,
}

/// A kind that is created, deleted or watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pod.
    Pod,
    /// A claim.
    Claim,
    /// A volume.
    Volume,
    /// A `Computer`.
    Computer,
}

impl Kind {
    /// A client of this kind, in the namespace of the computers if the kind has one.
    pub fn api(self, client: &kube::Client) -> Api<DynamicObject> {
        match self {
            Self::Pod => Api::namespaced_with(client.clone(), TEAM, &ApiResource::erase::<Pod>(&())),
            Self::Claim => Api::namespaced_with(client.clone(), TEAM, &ApiResource::erase::<PersistentVolumeClaim>(&())),
            Self::Volume => Api::all_with(client.clone(), &ApiResource::erase::<PersistentVolume>(&())),
            Self::Computer => Api::namespaced_with(client.clone(), TEAM, &ApiResource::erase::<Computer>(&())),
        }
    }

    /// The life that an object belongs to: its own name, or that of the volume's claim.
    pub fn life(self, object: &DynamicObject) -> Option<String> {
        match self {
            Self::Volume => Some(object.data["spec"]["claimRef"]["name"].as_str()?.to_owned()),
            _ => object.metadata.name.clone(),
        }
    }

    /// Whether an object shows that its life has begun.
    pub fn ready(self, object: &DynamicObject) -> bool {
        let status = &object.data["status"];
        match self {
            Self::Pod => {
                let conditions = status["conditions"].as_array();
                conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
            }
            Self::Claim | Self::Volume => status["phase"] == "Bound",
            Self::Computer => status["phase"] == "Active",
        }
    }
}

impl Contender {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pods, Self::PodsWithClaims, Self::Byom, Self::Managed];

    /// Its name in the tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "bare pods",
            Self::PodsWithClaims => "pods with claims",
            Self::Byom => "BYOM",
            Self::Managed => "managed",
        }
    }

    /// Whether the operator is measured.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Byom | Self::Managed)
    }

    /// Whose figures no operator can beat: those of a bare client that creates the same objects, or the smallest one.
    pub const fn floor(self) -> Self {
        match self {
            Self::Pods | Self::Byom => Self::Pods,
            Self::PodsWithClaims | Self::Managed => Self::PodsWithClaims,
        }
    }

    /// What the client creates for one life, in order, and deletes in the reverse order.
    pub fn objects(self, name: &str) -> Vec<(Kind, Value)> {
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        let computer = |spec: Value| {
            let metadata = json!({"name": name});
            json!({"apiVersion": "computer-operator.dev/v1alpha1", "kind": "Computer", "metadata": metadata, "spec": spec})
        };
        match self {
            Self::Pods => vec![(Kind::Pod, pod(name, false))],
            Self::PodsWithClaims => vec![(Kind::Claim, claim), (Kind::Pod, pod(name, true))],
            Self::Byom => vec![(Kind::Computer, computer(json!({"provider": "BYOM"})))],
            Self::Managed => vec![(Kind::Computer, computer(json!({"className": CLASS})))],
        }
    }

    /// The kind whose objects become ready.
    pub const fn begins(self) -> Kind {
        if self.is_ours() { Kind::Computer } else { Kind::Pod }
    }

    /// The kind whose objects disappear last.
    pub const fn ends(self) -> Kind {
        match self {
            Self::Pods => Kind::Pod,
            Self::PodsWithClaims => Kind::Volume,
            Self::Byom | Self::Managed => Kind::Computer,
        }
    }
}

fn pod(name: &str, claim: bool) -> Value {
    let mut container = json!({"name": "machine", "image": IMAGE});
    let mut spec = json!({"automountServiceAccountToken": false});
    if claim {
        container["volumeMounts"] = json!([{"name": "home", "mountPath": "/home/user"}]);
        spec["volumes"] = json!([{"name": "home", "persistentVolumeClaim": {"claimName": name}}]);
    }
    spec["containers"] = json!([container]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_object_has_the_name_of_its_life() {
        for contender in Contender::ALL {
            let objects = contender.objects("a");
            assert!(objects.iter().all(|(kind, value)| kind.life(&object(value.clone())).as_deref() == Some("a")), "{contender:?}");
            assert_eq!(objects.last().unwrap().0, contender.begins(), "{contender:?}");
        }
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pvc-1"}});
        assert_eq!(Kind::Volume.life(&object(volume.clone())), None, "a volume of no claim");
        let mut bound = volume;
        bound["spec"] = json!({"claimRef": {"name": "a"}});
        assert_eq!(Kind::Volume.life(&object(bound)).as_deref(), Some("a"));
    }

    #[test]
    fn only_a_ready_object_is_ready() {
        let with =
            |kind: &str, status: Value| object(json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "a"}, "status": status}));
        assert!(Kind::Pod.ready(&with("Pod", json!({"conditions": [{"type": "Ready", "status": "True"}]}))));
        assert!(!Kind::Pod.ready(&with("Pod", json!({"conditions": [{"type": "Ready", "status": "False"}]}))));
        assert!(!Kind::Pod.ready(&with("Pod", json!({"phase": "Running"}))));
        assert!(Kind::Computer.ready(&with("Computer", json!({"phase": "Active"}))));
        assert!(!Kind::Computer.ready(&with("Computer", json!({"phase": "Provisioning"}))));
    }
}
