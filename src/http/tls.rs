//! The TLS certificate of the API. It is reloaded from files when they change (cert-manager renews them in place), without closing connections. An invalid
//! pair is logged and must never replace a valid one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Interval of the checks for a new certificate. A projected Secret changes through a symlink, which an inotify watch on the file would miss.
const POLL: Duration = Duration::from_secs(30);

/// The current certificate.
#[derive(Debug)]
pub struct Current {
    cert: PathBuf,
    key: PathBuf,
    pair: RwLock<(Vec<u8>, Arc<CertifiedKey>)>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.pair.read().ok().map(|pair| Arc::clone(&pair.1))
    }
}

impl Current {
    /// Reads the pair.
    ///
    /// # Errors
    /// When a file cannot be read, or certificate and key do not match.
    pub fn load(cert: &Path, key: &Path) -> anyhow::Result<Arc<Self>> {
        let pair = RwLock::new(read(cert, key)?);
        Ok(Arc::new(Self { cert: cert.to_owned(), key: key.to_owned(), pair }))
    }

    /// An acceptor that always uses the current certificate.
    pub fn acceptor(self: &Arc<Self>) -> TlsAcceptor {
        let resolver = Arc::clone(self) as Arc<dyn ResolvesServerCert>;
        let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// Reloads the certificate when it changes, until `stop` is cancelled.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(POLL) => {} }
            self.reload();
        }
    }

    fn reload(&self) {
        match read(&self.cert, &self.key) {
            Ok(new) => {
                let Ok(mut pair) = self.pair.write() else { return };
                if pair.0 != new.0 {
                    tracing::info!(file = %self.cert.display(), "reloaded the TLS certificate");
                    *pair = new;
                }
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "cannot load the TLS certificate; still using the previous one");
            }
        }
    }
}

fn read(cert: &Path, key: &Path) -> anyhow::Result<(Vec<u8>, Arc<CertifiedKey>)> {
    let file = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (cert_pem, key_pem) = (file(cert)?, file(key)?);
    let chain = CertificateDer::pem_slice_iter(&cert_pem)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{} is not valid PEM", cert.display()))?;
    anyhow::ensure!(!chain.is_empty(), "{} does not contain a certificate", cert.display());
    let der = PrivateKeyDer::from_pem_slice(&key_pem).with_context(|| format!("{} does not contain a private key", key.display()))?;
    let pair = CertifiedKey::new(chain, any_supported_type(&der)?);
    pair.keys_match()
        .with_context(|| format!("the private key in {} does not match the certificate in {}", key.display(), cert.display()))?;
    Ok((cert_pem, Arc::new(pair)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_new_pair_is_loaded_and_a_mismatched_one_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        assert!(Current::load(&cert, &key).is_err());
        write(folder.path(), "a");
        let current = Current::load(&cert, &key).unwrap();
        let first = current.pair.read().unwrap().0.clone();
        write(folder.path(), "b");
        current.reload();
        let second = current.pair.read().unwrap().0.clone();
        assert_ne!(first, second);
        std::fs::write(&cert, &first).unwrap();
        current.reload();
        assert_eq!(current.pair.read().unwrap().0, second);
    }
}
