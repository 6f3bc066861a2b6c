//! Which admission plugin of a namespace refused an object. They all answer 403, and only the wording of their messages distinguishes them.

/// An admission plugin that depends on objects of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// A `ResourceQuota` is exceeded, or requires a field that is missing.
    Quota,
    /// A `LimitRange` does not allow the resources.
    LimitRange,
    /// The namespace does not have the `ServiceAccount`.
    ServiceAccount,
    /// The Pod Security level of the namespace does not allow the pod.
    PodSecurity,
}

/// The plugin whose message this is.
pub fn plugin(message: &str) -> Option<Plugin> {
    let has = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    // A webhook may use the same words about something else.
    if message.contains("admission webhook") || !message.contains(" is forbidden: ") {
        return None;
    }
    if has(&["exceeded quota: ", "failed quota: ", "status unknown for quota: "]) {
        return Some(Plugin::Quota);
    }
    if has(&[" usage per Container is ", " usage per Pod is ", " max limit to request ratio per "]) {
        return Some(Plugin::LimitRange);
    }
    if message.contains(" is forbidden: violates PodSecurity ") {
        return Some(Plugin::PodSecurity);
    }
    message.contains("error looking up service account ").then_some(Plugin::ServiceAccount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_namespace_are_distinguished_from_others() {
        let forbidden = |why: &str| plugin(&format!("pods \"x\" is forbidden: {why} (403)"));
        for (why, expected) in [
            ("exceeded quota: q, requested: cpu=1, used: cpu=1, limited: cpu=1", Some(Plugin::Quota)),
            ("failed quota: q: must specify limits.cpu for: a", Some(Plugin::Quota)),
            ("maximum memory usage per Container is 512Mi, but limit is 1Gi", Some(Plugin::LimitRange)),
            ("[minimum cpu usage per Pod is 1.  No request is specified]", Some(Plugin::LimitRange)),
            ("cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000", Some(Plugin::LimitRange)),
            ("error looking up service account op/sa: serviceaccount \"sa\" not found", Some(Plugin::ServiceAccount)),
            ("violates PodSecurity \"restricted:latest\": runAsNonRoot != true", Some(Plugin::PodSecurity)),
            ("no PriorityClass with name quota was found", None),
        ] {
            assert_eq!(forbidden(why), expected, "{why}");
        }
        assert_eq!(plugin("admission webhook \"quota.example\" denied the request: pods \"x\" is forbidden: exceeded quota: q"), None);
    }
}
