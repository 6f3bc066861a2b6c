//! The names, labels and owner references of a computer's children. Names are generated, and can be distinguished from other names. The
//! chart's admission policies (`children`, `secrets`, `volumes`) have the same patterns and refuse the operator access to objects with other
//! names. The policies `children` and `secrets` also refuse children in Kubernetes' own namespaces, and `children` the
//! pod and the claim of a Computer in the operator's namespace; no Rust code checks that. A name must never count as proof of ownership: the
//! children of other computers match the same patterns (S5).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::view::View;
use crate::resources::{COMPONENT_LABEL, MANAGED_BY_LABEL, MANAGER, NAME_LABEL, UID_LABEL};

/// What a name is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// The machine's pod.
    Machine,
    /// The claim of the home.
    Home,
    /// The Secret of the key.
    Key,
}

impl Child {
    fn prefix(self) -> &'static str {
        match self {
            Self::Machine => "machine-",
            Self::Home => "home-",
            Self::Key => "computer-key-",
        }
    }

    /// The name with this random suffix: 16 bytes in lower-case hexadecimal digits.
    pub fn name(self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix())
    }

    /// Whether the operator may have generated this name: see [`Child::name`].
    pub fn matches(self, name: &str) -> bool {
        let digits = name.strip_prefix(self.prefix()).unwrap_or_default();
        digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }
}

/// The operator's labels. They select objects in lists and watches and prove nothing (S5).
pub fn labels(view: &View, component: &str) -> BTreeMap<String, String> {
    [(MANAGED_BY_LABEL, MANAGER), (UID_LABEL, view.uid.as_str()), (COMPONENT_LABEL, component)]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}

/// The longest value of a label, and the longest host name.
const LABEL_LENGTH: usize = 63;

/// The labels of a child in the computer's namespace: the operator's, and [`NAME_LABEL`], by which users find it.
pub fn labels_with_name(view: &View, component: &str) -> BTreeMap<String, String> {
    let mut labels = labels(view, component);
    if view.name.len() <= LABEL_LENGTH {
        labels.insert(NAME_LABEL.to_owned(), view.name.clone());
    }
    labels
}

/// The name of a computer as the host name of its machine: the dots of a name become hyphens, and it ends after 63 characters.
pub fn host_name(computer: &str) -> String {
    let name = computer.replace('.', "-");
    name[..name.len().min(LABEL_LENGTH)].trim_end_matches('-').to_owned()
}

/// The owner reference: the garbage collector deletes the child if everything else fails. It blocks nothing.
pub fn owner(view: &View) -> Option<Vec<OwnerReference>> {
    Some(vec![OwnerReference {
        api_version: "computer-operator.dev/v1alpha1".to_owned(),
        kind: "Computer".to_owned(),
        name: view.name.clone(),
        uid: view.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn the_host_name_of_a_machine_is_valid_for_every_name_of_a_computer() {
        let long = format!("{}-b.c", "a".repeat(62));
        for (name, expected) in [("box", "box"), ("a.b", "a-b"), (long.as_str(), &long[..62])] {
            assert_eq!(host_name(name), expected);
        }
    }

    #[test]
    fn only_a_name_that_matches_completely_counts_as_generated() {
        for (child, prefix) in [(Child::Machine, "machine-"), (Child::Home, "home-"), (Child::Key, "computer-key-")] {
            assert!(child.matches(&format!("{prefix}{HEX}")));
            let upper = HEX.to_uppercase();
            for other in ["", prefix, "home-server", HEX, "home-11111111-2222-3333-4444-555555555555"] {
                assert!(!child.matches(other), "{other}");
            }
            for other in
                [format!("{prefix}{HEX}0"), format!("{prefix}{}", &HEX[1..]), format!("{prefix}{upper}"), format!("x{prefix}{HEX}")]
            {
                assert!(!child.matches(&other), "{other}");
            }
            assert!(!child.matches(&format!("{prefix}{}é", &HEX[2..])));
            assert!(!child.matches(&format!("{prefix}{HEX}\n")));
        }
        assert!(!Child::Home.matches(&format!("machine-{HEX}")));
    }
}
