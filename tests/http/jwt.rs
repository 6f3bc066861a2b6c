//! A corpus of JWTs that must not authenticate, most of them signed with the cluster's own key: expired, not valid yet, of another issuer, without an
//! audience, tampered with, with another algorithm, very long.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use aws_lc_rs::{encoding::AsDer as _, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::Scenario;
use crate::client::Ask;
use crate::harness::{AUDIENCE, Bench, CLUSTER_AUDIENCE};

pub fn all() -> Vec<Scenario> {
    xtask::scenarios![no_jwt_of_the_corpus_authenticates]
}

/// The key that signs the tokens of ServiceAccounts.
struct Signer {
    pair: RsaKeyPair,
    public_pem: Vec<u8>,
}

impl Signer {
    fn of(bench: &Bench) -> Result<Self> {
        let pki = bench.cluster_folder()?.join("pki");
        let pem = std::fs::read_to_string(pki.join("service-accounts.key"))?;
        let der = STANDARD.decode(pem.lines().filter(|l| !l.starts_with('-')).collect::<String>())?;
        let pair = RsaKeyPair::from_pkcs8(&der).ok().context("the cluster's key")?;
        Ok(Self { pair, public_pem: std::fs::read(pki.join("service-accounts.pub"))? })
    }

    fn sign(&self, header: &Value, claims: &Value) -> Result<String> {
        let body = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        let random = SystemRandom::new();
        self.pair.sign(&RSA_PKCS1_SHA256, &random, body.as_bytes(), &mut signature).ok().context("signing")?;
        Ok(format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Algorithm confusion: the public key used as the secret of a symmetric signature.
    fn confused(&self, claims: &Value) -> String {
        let header = json!({"alg": "HS256", "typ": "JWT"});
        let body = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.public_pem), body.as_bytes());
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag))
    }
}

fn part(token: &str, i: usize) -> Result<Value> {
    let word = token.split('.').nth(i).context("a part")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(word)?)?)
}

fn with(claims: &Value, changes: &Value) -> Value {
    let mut all = claims.clone();
    for (name, value) in changes.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    all
}

async fn no_jwt_of_the_corpus_authenticates(bench: Arc<Bench>) -> Result<()> {
    let (namespace, good) = bench.tenant("jwt").await?;
    let signer = Signer::of(&bench)?;
    let (header, claims) = (part(&good, 0)?, part(&good, 1)?);
    // The signer works: an unchanged token that it signs is accepted.
    bench.send(Ask::get("/api/v0/computers").by(&signer.sign(&header, &claims)?)).await?.is(200)?;
    for (kind, token) in corpus(&signer, &good, &header, &claims, &namespace)? {
        let began = Instant::now();
        let answer = bench.send_to(0, Ask::get("/api/v0/computers").by(&token)).await?.is(401);
        answer.with_context(|| kind.to_owned())?;
        ensure!(began.elapsed().as_secs() < 10, "{kind} kept the server busy");
    }
    // The valid token still authenticates afterwards.
    bench.send(Ask::get("/api/v0/computers").by(&good)).await?.is(200)?;
    Ok(())
}

/// Tokens that must not authenticate.
fn corpus(signer: &Signer, good: &str, header: &Value, claims: &Value, namespace: &str) -> Result<Vec<(&'static str, String)>> {
    let mut all = claims_of_the_corpus(signer, header, claims, namespace)?;
    let word = |i: usize| good.split('.').nth(i).unwrap_or_default().to_owned();
    let unsigned = |alg: &str| {
        let body = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "typ": "JWT"}).to_string());
        [format!("{body}.{}.", word(1)), format!("{body}.{}.{}", word(1), word(2))]
    };
    let (mut tampered, mut other_account) = (word(2), claims.clone());
    tampered.replace_range(10..11, if &tampered[10..11] == "A" { "B" } else { "A" });
    other_account["sub"] = json!("system:serviceaccount:kube-system:default");
    let other_body = URL_SAFE_NO_PAD.encode(other_account.to_string());
    all.extend([
        ("a signature that was changed", format!("{}.{}.{tampered}", word(0), word(1))),
        ("claims that were changed", format!("{}.{other_body}.{}", word(0), word(2))),
        ("the public key as a secret", signer.confused(claims)),
        ("another key's name", signer.sign(&with(header, &json!({"kid": "../../../dev/null"})), claims)?),
        ("a key in the header", signer.sign(&json!({"alg": "RS256", "jwk": {"kty": "oct", "k": "AA"}}), &json!({}))?),
        ("claims that are not an object", signer.sign(header, &json!([]))?),
        ("empty parts", "..".to_owned()),
        ("not base64", "a!.b!.c!".to_owned()),
        ("four parts", format!("{good}.x")),
        ("two parts", format!("{}.{}", word(0), word(1))),
        ("longer than any token", format!("{}.{}.{}", word(0), "A".repeat(20_000), word(2))),
        ("deeply nested", format!("{}.{}.{}", word(0), URL_SAFE_NO_PAD.encode("[".repeat(9000)), word(2))),
    ]);
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        all.extend(unsigned(alg).map(|token| ("no algorithm", token)));
    }
    all.push(("another key", another_signer()?.sign(header, claims)?));
    Ok(all)
}

/// Tokens with a valid signature and wrong claims.
fn claims_of_the_corpus(signer: &Signer, header: &Value, claims: &Value, namespace: &str) -> Result<Vec<(&'static str, String)>> {
    let now = jiff::Timestamp::now().as_second();
    let sign = |changes: Value| signer.sign(header, &with(claims, &changes));
    Ok(vec![
        ("expired", sign(json!({"exp": now - 60, "iat": now - 4000, "nbf": now - 4000}))?),
        ("not valid yet", sign(json!({"nbf": now + 3600, "exp": now + 7200}))?),
        ("without an expiry in time", sign(json!({"exp": 0}))?),
        ("another issuer", sign(json!({"iss": "https://evil.example"}))?),
        ("no issuer", sign(json!({"iss": null}))?),
        ("no audience", sign(json!({"aud": []}))?),
        ("another audience", sign(json!({"aud": ["other"]}))?),
        ("an audience that begins like ours", sign(json!({"aud": [format!("{AUDIENCE}.evil")]}))?),
        ("the API server's audience", sign(json!({"aud": [CLUSTER_AUDIENCE]}))?),
        ("an account that never existed", sign(account(namespace, "ghost", "0"))?),
        ("another account's UID", sign(account(namespace, "owner", "0b4f9f3e-5d1c-4a53-8a0e-3a9c0f8f6f11"))?),
        ("an account of a namespace that does not exist", sign(account("nowhere", "owner", "0"))?),
        ("15 KB long", sign(json!({"pad": "x".repeat(11_000)}))? + "A"),
    ])
}

/// A signer with a key pair of the caller.
fn another_signer() -> Result<Signer> {
    let own = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).ok().context("a key")?;
    Ok(Signer {
        public_pem: own.as_der().ok().map(|d: aws_lc_rs::encoding::Pkcs8V1Der<'_>| d.as_ref().to_vec()).unwrap_or_default(),
        pair: own,
    })
}

fn account(namespace: &str, name: &str, uid: &str) -> Value {
    json!({
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}},
    })
}
