//! The signature over `SHA256SUMS`: Ed25519 with a key pair in PEM, as `openssl genpkey -algorithm ed25519` writes it and
//! `openssl pkeyutl -verify -rawin` checks it.
//!
//! It must never write or print a private key.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;

/// How to make a key pair.
pub const MAKE_KEY: &str = "(umask 077; openssl genpkey -algorithm ed25519 -out release-key.pem)";

/// The key pair that signs a release.
pub struct Key(KeyPair);

impl Key {
    /// Reads the private key from a PEM file that only its owner can read.
    ///
    /// # Errors
    /// When the file is missing, others may read it, or it is not an Ed25519 key.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let file = fs::metadata(path).with_context(|| format!("read {name}. To make a key pair: {MAKE_KEY}"))?;
        let mode = file.permissions().mode() & 0o777;
        ensure!(mode & !0o700 == 0, "others may read {name} (mode {mode:o}): run `chmod 600 {name}`");
        Self::parse(&fs::read_to_string(path).with_context(|| format!("read {name}"))?).with_context(|| format!("{name} is not usable"))
    }

    /// The key pair from the text of a PEM file.
    ///
    /// # Errors
    /// When it is not an Ed25519 key.
    pub fn parse(pem: &str) -> Result<Self> {
        // The error of the parser is left out: it must not repeat a part of the key.
        let key = KeyPair::from_pem(pem).map_err(|_| anyhow!("not a private key in PEM. To make a key pair: {MAKE_KEY}"))?;
        ensure!(key.is_compatible(&PKCS_ED25519), "not an Ed25519 key. To make a key pair: {MAKE_KEY}");
        Ok(Self(key))
    }

    /// The signature over a message: 64 bytes.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.0.sign(message).context("sign")
    }

    /// The public key in PEM.
    pub fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }
}

/// Checks a signature with a public key in PEM.
///
/// # Errors
/// When the key cannot be read or the signature is not its signature over the message.
pub fn verify(public_pem: &str, message: &[u8], signature: &[u8]) -> Result<()> {
    let key =
        SubjectPublicKeyInfoDer::from_pem_slice(public_pem.as_bytes()).map_err(|error| anyhow!("not a public key in PEM: {error}"))?;
    UnparsedPublicKey::new(&ED25519, key.as_ref())
        .verify(message, signature)
        .map_err(|_| anyhow!("the signature does not belong to this text and this key"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    fn pair() -> KeyPair {
        KeyPair::generate_for(&PKCS_ED25519).unwrap()
    }

    #[test]
    fn a_signature_belongs_to_one_text_and_one_key() {
        let key = Key::parse(&pair().serialize_pem()).unwrap();
        let signature = key.sign(b"sums").unwrap();
        assert_eq!(signature.len(), 64);
        verify(&key.public_pem(), b"sums", &signature).unwrap();
        assert!(verify(&key.public_pem(), b"Sums", &signature).is_err());
        assert!(verify(&Key(pair()).public_pem(), b"sums", &signature).is_err());
        assert!(verify("no key", b"sums", &signature).is_err());
        let mut changed = signature;
        changed[0] ^= 1;
        assert!(verify(&key.public_pem(), b"sums", &changed).is_err());
    }

    #[test]
    fn another_kind_of_key_and_a_file_that_others_may_read_are_refused() {
        let error = Key::parse(&KeyPair::generate().unwrap().serialize_pem()).map(drop).unwrap_err();
        assert!(error.to_string().contains("not an Ed25519 key"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let error = Key::read(&path).map(drop).unwrap_err().to_string();
        assert!(error.contains("openssl genpkey"), "{error}");
        fs::write(&path, pair().serialize_pem()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Key::read(&path).map(drop).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Key::read(&path).unwrap();
    }

    /// The commands of docs/releases.md. A machine without openssl can check the rest.
    #[test]
    fn openssl_makes_the_key_and_checks_the_signature() {
        let folder = tempfile::tempdir().unwrap();
        let run = |line: &str| Command::new("sh").args(["-c", line]).current_dir(folder.path()).output().unwrap();
        if !run("openssl version").status.success() {
            eprintln!("openssl is not installed: not checked");
            return;
        }
        let page = include_str!("../../../docs/releases.md");
        let made = run(MAKE_KEY);
        assert!(page.contains(MAKE_KEY) && made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let key = Key::read(&folder.path().join("release-key.pem")).unwrap();
        fs::write(folder.path().join("release-key.pub.pem"), key.public_pem()).unwrap();
        fs::write(folder.path().join("SHA256SUMS"), "sums\n").unwrap();
        fs::write(folder.path().join("SHA256SUMS.sig"), key.sign(b"sums\n").unwrap()).unwrap();
        let check = page.lines().find(|line| line.starts_with("openssl pkeyutl -verify")).unwrap();
        let checked = run(check);
        assert!(checked.status.success(), "{check}: {}", String::from_utf8_lossy(&checked.stderr));
        let public = String::from_utf8(run("openssl pkey -in release-key.pem -pubout").stdout).unwrap();
        assert_eq!(public, key.public_pem());
        fs::write(folder.path().join("SHA256SUMS"), "Sums\n").unwrap();
        assert!(!run(check).status.success());
    }
}
