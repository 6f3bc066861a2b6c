//! The address of the ingest endpoint. Its host is a name, an IP address, or a variable in the form `$(NAME)`, which the kubelet replaces in
//! each archive pod with the address that the Service has by then. An address that the operator once resolved would be wrong as soon as the
//! Service is created again.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Checks a URL, and adds the brackets around an IPv6 address: the variable of a Service contains none.
///
/// # Errors
/// When the URL is not `https://HOST:PORT`.
pub fn parse(text: &str) -> Result<String, String> {
    let authority = text.strip_prefix("https://").unwrap_or_default();
    if variable(text).is_some() {
        return Ok(text.to_owned());
    }
    if authority.is_empty() || authority.starts_with([':', '/']) || authority.contains(['/', '?', '#', '@', ' ', '$']) {
        return Err("use https://HOST:PORT without a path; archive pods connect only with TLS".to_owned());
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => Ok(format!("https://[{host}]:{port}")),
        _ => Ok(text.to_owned()),
    }
}

/// The URL in an archive pod, where the kubelet has replaced the variable.
///
/// # Errors
/// When there was no such Service, or the URL cannot be used.
pub fn resolved(text: &str) -> Result<String, String> {
    match variable(text) {
        Some(name) => Err(format!(
            "INGEST_URL contains $({name}), so the Service of the ingest endpoint did not exist when this pod started. Create the Service; the \
             operator creates the next archive pod"
        )),
        None => parse(text),
    }
}

/// The variable that is the host of a URL.
pub fn variable(url: &str) -> Option<&str> {
    let (name, rest) = url.strip_prefix("https://$(")?.split_once(')')?;
    let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let port = rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    (valid && port).then_some(name)
}

/// The socket address of a URL whose host is an IP address.
pub fn socket(url: &str) -> Option<SocketAddr> {
    let (host, port) = url.strip_prefix("https://")?.trim_end_matches('/').rsplit_once(':')?;
    let host: IpAddr = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    Some(SocketAddr::new(host, port.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_service_is_accepted_as_its_variable_contains_it() {
        for (given, expected) in [
            ("https://192.0.2.7:8443", "https://192.0.2.7:8443"),
            ("https://2001:db8::7:8443", "https://[2001:db8::7]:8443"),
            ("https://[2001:db8::7]:8443", "https://[2001:db8::7]:8443"),
            ("https://operator-ingest.ns.svc:8443", "https://operator-ingest.ns.svc:8443"),
        ] {
            assert_eq!((parse(given), resolved(given)), (Ok(expected.to_owned()), Ok(expected.to_owned())));
        }
        assert_eq!(socket("https://[2001:db8::7]:8443"), Some("[2001:db8::7]:8443".parse().unwrap()));
        assert_eq!(socket("https://192.0.2.7:8443"), Some("192.0.2.7:8443".parse().unwrap()));
        assert_eq!(socket("https://operator-ingest.ns.svc:8443"), None);
    }

    #[test]
    fn a_variable_is_for_archive_pods() {
        let url = "https://$(OPERATOR_INGEST_SERVICE_HOST):8443";
        assert_eq!(parse(url).unwrap(), url);
        assert!(resolved(url).unwrap_err().contains("$(OPERATOR_INGEST_SERVICE_HOST)"));
        for other in
            ["https://$(A B):8443", "https://$():8443", "https://$(A)", "https://x$(A):8443", "https://$(A):8443/path", "http://$(A):1"]
        {
            assert!(parse(other).is_err(), "{other}");
        }
    }
}
