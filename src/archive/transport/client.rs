//! The HTTP client of the store. It trusts the authorities of a file, which is read again when it has changed, so a renewed certificate authority
//! needs no restart. A file that cannot be used never replaces one that could.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use object_store::{ClientConfigKey as Key, ClientOptions};
use parking_lot::Mutex;
use reqwest::{Certificate, NoProxy, Proxy};

/// How often the file is read, while requests are made.
const LOOK: Duration = Duration::from_secs(10);

/// A client that follows its file of certificate authorities.
#[derive(Debug)]
pub(super) struct Client {
    options: ClientOptions,
    ca_file: Option<PathBuf>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    pem: Vec<u8>,
    client: reqwest::Client,
    looked: Instant,
}

impl Client {
    /// # Errors
    /// When the options or the file cannot be used.
    pub fn new(options: ClientOptions, ca_file: Option<PathBuf>) -> Result<Self, String> {
        let (client, pem) = match &ca_file {
            Some(path) => {
                let pem = std::fs::read(path).map_err(|e| format!("the file of certificate authorities {}: {e}", path.display()))?;
                (trusting(&options, &pem)?, pem)
            }
            None => (client(&options, Vec::new()).map_err(|e| e.to_string())?, Vec::new()),
        };
        let current = Mutex::new(Current { pem, client, looked: Instant::now() });
        Ok(Self { options, ca_file, current })
    }

    /// The client with the present authorities.
    pub fn current(&self) -> reqwest::Client {
        // A new value is complete before it is stored.
        let mut current = self.current.lock();
        if let Some(path) = self.ca_file.as_ref().filter(|_| current.looked.elapsed() >= LOOK) {
            current.looked = Instant::now();
            match std::fs::read(path) {
                Ok(pem) if pem == current.pem => {}
                Ok(pem) => match trusting(&self.options, &pem) {
                    Ok(client) => (current.client, current.pem) = (client, pem),
                    Err(error) => tracing::error!(error, "keeping the certificate authorities that were read before"),
                },
                Err(error) => tracing::error!(path = %path.display(), %error, "keeping the certificate authorities that were read before"),
            }
        }
        current.client.clone()
    }
}

fn trusting(options: &ClientOptions, pem: &[u8]) -> Result<reqwest::Client, String> {
    let authorities = Certificate::from_pem_bundle(pem).map_err(|e| format!("the file of certificate authorities: {e}"))?;
    if authorities.is_empty() {
        return Err("the file of certificate authorities contains no certificate: it must be PEM".to_owned());
    }
    client(options, authorities).map_err(|e| e.to_string())
}

/// A client with the options of `object_store`, except its time limits and its choice of addresses. The client of `object_store` cannot be
/// used: it does not show how much of a body was accepted.
fn client(options: &ClientOptions, authorities: Vec<Certificate>) -> reqwest::Result<reqwest::Client> {
    let text = |key| options.get_config_value(&key).filter(|value| !value.is_empty());
    let on = |key| text(key).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "true" | "1" | "on" | "yes" | "y"));
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(5))
        // `Idle` has the limits for a store that reads nothing.
        .tcp_user_timeout(None)
        .https_only(!on(Key::AllowHttp))
        .danger_accept_invalid_certs(on(Key::AllowInvalidCertificates))
        .tls_certs_merge(authorities)
        // The length of an answer is that of the object.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate();
    if on(Key::Http1Only) {
        builder = builder.http1_only();
    }
    if let Some(proxy) = text(Key::ProxyUrl) {
        if let Some(certificate) = text(Key::ProxyCaCertificate) {
            builder = builder.tls_certs_merge([Certificate::from_pem(certificate.as_bytes())?]);
        }
        let excludes = text(Key::ProxyExcludes).and_then(|excludes| NoProxy::from_string(&excludes));
        builder = builder.proxy(Proxy::all(proxy)?.no_proxy(excludes));
    }
    builder.build()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_an_error_and_never_replaces_one() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        let open = || Client::new(ClientOptions::new(), Some(path.clone()));
        assert!(open().unwrap_err().contains("ca.crt"), "it does not exist");
        std::fs::write(&path, "not PEM").unwrap();
        assert!(open().unwrap_err().contains("PEM"));
        let signed = rcgen::generate_simple_self_signed(["store".to_owned()]).unwrap();
        std::fs::write(&path, signed.cert.pem()).unwrap();
        let client = open().unwrap();
        let change = |content: &str| {
            std::fs::write(&path, content).unwrap();
            client.current.lock().looked = Instant::now().checked_sub(LOOK).unwrap();
            client.current();
            client.current.lock().pem.clone()
        };
        for unusable in ["damaged", ""] {
            assert_eq!(change(unusable), signed.cert.pem().into_bytes(), "{unusable:?}");
        }
        let other = rcgen::generate_simple_self_signed(["store".to_owned()]).unwrap();
        assert_eq!(change(&other.cert.pem()), other.cert.pem().into_bytes());
    }
}
