//! The certificates of one cluster: one authority, a serving certificate each for the API server and the kubelets, and
//! client credentials packed into kubeconfig files.
//!
//! Keys are readable by their owner only and must never leave the cluster's folder, except inside a kubeconfig that the caller requests.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256, RsaKeySize, SanType, date_time_ymd,
};
use serde_json::json;

/// The address that the Service `kubernetes` gets: the first of [`crate::control_plane::SERVICE_RANGE`].
const FIRST_SERVICE_IP: &str = "203.0.113.1";

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// The authority of one cluster and the folder of its certificates.
pub struct Pki {
    dir: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Creates the authority, the API server's certificates and the service account keys in `dir`, or loads the existing authority.
    /// `node_ip` is the API server's address for pods and nodes, if there are any.
    ///
    /// # Errors
    /// When a file cannot be written or read.
    pub fn create_or_load(dir: &Path, node_ip: Option<IpAddr>) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let (ca, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        if ca.exists() && key.exists() {
            let issuer =
                Issuer::new(authority(), KeyPair::from_pem(&fs::read_to_string(&key)?).with_context(|| format!("read {}", key.display()))?);
            let ca_pem = fs::read_to_string(&ca)?;
            return Ok(Self { dir: dir.to_owned(), ca_pem, issuer });
        }
        let pair = KeyPair::generate()?;
        let ca_pem = authority().self_signed(&pair)?.pem();
        write_private(&key, &pair.serialize_pem())?;
        let pki = Self { dir: dir.to_owned(), ca_pem, issuer: Issuer::new(authority(), pair) };
        let mut names: Vec<SanType> = Vec::new();
        for name in ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"] {
            names.push(SanType::DnsName(name.try_into()?));
        }
        names.push(SanType::IpAddress(IpAddr::from([127, 0, 0, 1])));
        names.push(SanType::IpAddress(FIRST_SERVICE_IP.parse()?));
        names.extend(node_ip.map(SanType::IpAddress));
        pki.sign("apiserver", "kube-apiserver", &[], names)?;
        pki.sign("apiserver-kubelet", "kube-apiserver-kubelet-client", &["system:masters"], Vec::new())?;
        let accounts = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        write_private(&dir.join("service-accounts.key"), &accounts.serialize_pem())?;
        fs::write(dir.join("service-accounts.pub"), accounts.public_key_pem())?;
        // Written last: a folder that has it is complete.
        fs::write(&ca, &pki.ca_pem)?;
        Ok(pki)
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The authority's key, for the controller manager's signer.
    pub fn ca_key(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    /// The API server's serving certificate.
    pub fn apiserver(&self) -> Pair {
        self.pair("apiserver")
    }

    /// The API server's client certificate for kubelets.
    pub fn apiserver_to_kubelet(&self) -> Pair {
        self.pair("apiserver-kubelet")
    }

    /// Signs (`service-accounts.key`) and verifies (`service-accounts.pub`) service account tokens.
    pub fn service_accounts(&self) -> Pair {
        Pair { certificate: self.dir.join("service-accounts.pub"), key: self.dir.join("service-accounts.key") }
    }

    /// A kubelet's serving certificate.
    ///
    /// # Errors
    /// When the name is not a DNS name or a file cannot be written.
    pub fn node_cert(&self, node: &str, ip: IpAddr) -> Result<Pair> {
        let names = vec![SanType::DnsName(node.try_into()?), SanType::IpAddress(ip), SanType::IpAddress(IpAddr::from([127, 0, 0, 1]))];
        self.sign(&format!("{node}-serving"), &format!("system:node:{node}"), &["system:nodes"], names)
    }

    /// Writes a kubeconfig with a new client certificate of `user` and `groups` to `path` (readable by its owner only).
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn client_kubeconfig(&self, user: &str, groups: &[&str], server_url: &str, path: &Path) -> Result<()> {
        let (certificate, key) = self.issue(user, groups, Vec::new())?;
        let encode = |pem: &str| STANDARD.encode(pem);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "computer-operator",
                "cluster": { "server": server_url, "certificate-authority-data": encode(&self.ca_pem) },
            }],
            "users": [{
                "name": user,
                "user": { "client-certificate-data": encode(&certificate), "client-key-data": encode(&key) },
            }],
            "contexts": [{
                "name": "computer-operator",
                "context": { "cluster": "computer-operator", "user": user },
            }],
            "current-context": "computer-operator",
        });
        write_private(path, &serde_json::to_string_pretty(&config)?)
    }

    fn pair(&self, name: &str) -> Pair {
        Pair { certificate: self.dir.join(format!("{name}.crt")), key: self.dir.join(format!("{name}.key")) }
    }

    fn sign(&self, name: &str, user: &str, groups: &[&str], names: Vec<SanType>) -> Result<Pair> {
        let (certificate, key) = self.issue(user, groups, names)?;
        let pair = self.pair(name);
        write_private(&pair.key, &key)?;
        fs::write(&pair.certificate, certificate)?;
        Ok(pair)
    }

    /// A new key and its certificate, for clients and servers alike, as PEM.
    fn issue(&self, user: &str, groups: &[&str], names: Vec<SanType>) -> Result<(String, String)> {
        let mut params = named(user, groups);
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn authority() -> CertificateParams {
    let mut params = named("computer-operator test cluster", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// Kubernetes reads the user from the common name and one group from each organization.
fn named(user: &str, groups: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    params.distinguished_name = name;
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2045, 1, 1);
    params
}

/// Writes a file that only its owner may read. Replaces an existing file.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(file.write_all(content.as_bytes())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_authority_is_loaded_again_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::create_or_load(dir.path(), None).unwrap();
        let second = Pki::create_or_load(dir.path(), None).unwrap();
        assert_eq!(first.ca_pem, second.ca_pem);
        let pair = second.node_cert("node1", IpAddr::from([127, 0, 0, 1])).unwrap();
        for key in [pair.key, second.ca_key(), second.service_accounts().key] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o077, 0);
        }
    }

    #[test]
    fn a_kubeconfig_names_its_server_and_context() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::create_or_load(dir.path(), None).unwrap();
        let path = dir.path().join("kubeconfig");
        pki.client_kubeconfig("admin", &["system:masters"], "https://127.0.0.1:1", &path).unwrap();
        let config = kube::config::Kubeconfig::read_from(&path).unwrap();
        assert_eq!(config.current_context.as_deref(), Some("computer-operator"));
        assert_eq!(config.clusters[0].cluster.as_ref().unwrap().server.as_deref(), Some("https://127.0.0.1:1"));
    }
}
