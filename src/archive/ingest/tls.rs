//! The ingest endpoint's certificate: created once and stored in a Secret in the operator's namespace, so that all replicas and the archive
//! pods of a restarted operator use the same one. The key must never leave that Secret and the operator.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::runtime::client::{ErrorClass, call, classify};
use crate::runtime::ingest_url;

/// Name of the Secret.
pub const SECRET: &str = "computer-operator-ingest-tls";
/// Annotation: the host that the certificate is for.
const HOST: &str = "computer-operator.dev/host";
/// The name in the certificate, whatever address the endpoint has.
pub const SERVER_NAME: &str = "computer-operator-ingest";

/// A self-signed certificate.
#[derive(Clone)]
pub struct Certificate {
    /// PEM of the certificate that archive pods trust.
    pub ca_pem: String,
    key_pem: String,
}

impl Certificate {
    /// A new certificate for the host of `url`.
    ///
    /// # Errors
    /// When the host is not a valid name.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let host = host(url).context("the ingest URL has no host")?;
        let mut names = vec![SERVER_NAME.to_owned(), host.to_owned()];
        names.dedup();
        let mut params = rcgen::CertificateParams::new(names)?;
        if let Ok(ip) = host.parse::<IpAddr>() {
            params.subject_alt_names.push(rcgen::SanType::IpAddress(ip));
        }
        params.distinguished_name.push(rcgen::DnType::CommonName, SERVER_NAME);
        let key = rcgen::KeyPair::generate()?;
        Ok(Self { ca_pem: params.self_signed(&key)?.pem(), key_pem: key.serialize_pem() })
    }

    /// Accepts TLS connections with it.
    ///
    /// # Errors
    /// When the PEM cannot be used.
    pub fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let chain = CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?;
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// The host of a URL, without brackets and port. A variable has no address yet: archive pods expect our own name in the certificate.
fn host(url: &str) -> Option<&str> {
    if ingest_url::variable(url).is_some() {
        return Some(SERVER_NAME);
    }
    let rest = url.strip_prefix("https://")?;
    let authority = rest.split('/').next()?;
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => authority.split(':').next().filter(|h| !h.is_empty()),
    }
}

/// The stored certificate of this host, or a new one. If two replicas create one, the first wins.
///
/// # Errors
/// When the Secret can neither be read nor created.
pub async fn load_or_create(client: &Client, namespace: &str, url: &str) -> anyhow::Result<Certificate> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for _ in 0..3 {
        match call(api.get(SECRET)).await {
            Ok(secret) if secret.annotations().get(HOST).map(String::as_str) == host(url) => return read(&secret),
            // Every certificate is for our own name as well, and running archive pods may use the old address.
            Ok(secret) if host(url) == Some(SERVER_NAME) => return read(&secret),
            // The endpoint's address has changed: archive pods cannot verify the old certificate there.
            Ok(secret) => {
                let preconditions = Preconditions { uid: secret.metadata.uid, resource_version: None };
                let deleted = call(api.delete(SECRET, &DeleteParams::default().preconditions(preconditions))).await;
                if let Err(error) = deleted.map(drop) {
                    tracing::debug!(%error, "another replica created the certificate first");
                }
            }
            Err(error) if classify(&error) == ErrorClass::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("reading Secret {namespace}/{SECRET}")),
        }
        let new = Certificate::new(url)?;
        match call(api.create(&PostParams::default(), &secret(&new, host(url).unwrap_or_default()))).await {
            Ok(_) => return Ok(new),
            Err(error) if classify(&error) == ErrorClass::Conflict => {}
            Err(error) => return Err(error).with_context(|| format!("creating Secret {namespace}/{SECRET}")),
        }
    }
    anyhow::bail!("Secret {namespace}/{SECRET} is repeatedly deleted and created by another client")
}

fn secret(certificate: &Certificate, host: &str) -> Secret {
    let data = [("tls.crt", &certificate.ca_pem), ("tls.key", &certificate.key_pem)];
    let mut secret = Secret {
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data.map(|(k, v)| (k.to_owned(), ByteString(v.clone().into_bytes()))).into()),
        ..Secret::default()
    };
    secret.metadata.name = Some(SECRET.to_owned());
    secret.metadata.annotations = Some([(HOST.to_owned(), host.to_owned())].into());
    secret
}

fn read(secret: &Secret) -> anyhow::Result<Certificate> {
    let field = |key: &str| {
        let bytes = secret
            .data
            .as_ref()
            .and_then(|d| d.get(key))
            .with_context(|| format!("Secret {SECRET} has no key {key}: delete the Secret, and the operator creates it again"))?;
        Ok::<_, anyhow::Error>(String::from_utf8(bytes.0.clone())?)
    };
    Ok(Certificate { ca_pem: field("tls.crt")?, key_pem: field("tls.key")? })
}
