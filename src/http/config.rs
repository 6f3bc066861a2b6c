//! Settings of `computer-operator api`: flags, each with an environment variable. They must not contain secrets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{page_limits, tenant_limits};
use crate::archive::remote::{self, Endpoint, Remote};
use crate::runtime::health;
use crate::runtime::server::Limits;

/// Receive and send buffers of a connection in the kernel.
const SOCKET: (usize, usize) = (16 * 1024, 32 * 1024);
/// Memory of the process without connections.
const BASE: usize = 24 * 1024 * 1024;
/// The header map of a request; the bytes that it refers to count for the connection.
const HEADERS: usize = 16 * 1024;
/// Two bodies that are deserialized at the same time: values take up to 72 bytes for each 2 bytes of JSON.
const PARSING: usize = 2 * 10 * 1024 * 1024;

/// Serve the HTTP API.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Namespace of the operator, which contains the records
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system", value_parser = crate::runtime::config::namespace)]
    pub namespace: String,
    /// Address that the API listens on; `[::]` accepts IPv4 and IPv6
    #[arg(long, env = "API_BIND", default_value = "[::]:8000")]
    pub bind: SocketAddr,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, env = "METRICS_BIND", default_value = "[::]:8080")]
    pub metrics_bind: SocketAddr,
    /// PEM file with the certificate chain of the server. It is reloaded when it changes. Without certificate and key the API serves plain HTTP, for use
    /// behind an ingress that terminates TLS
    #[arg(long, env = "TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of the certificate
    #[arg(long, env = "TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Audience that a ServiceAccount's token must have (`kubectl create token NAME --audience=...`)
    #[arg(long, env = "TOKEN_AUDIENCE", default_value = "computer-operator")]
    pub audience: String,
    /// Audience of the Kubernetes API server itself, which it reports for OIDC tokens
    #[arg(long, env = "CLUSTER_AUDIENCE", default_value = "https://kubernetes.default.svc.cluster.local")]
    pub cluster_audience: String,
    /// Maximum number of open connections, 1 to 65536. A further connection replaces the one that has been idle longest. Each can use up to 248 KiB of
    /// memory
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_connections: u32,
    /// Maximum number of requests in flight, 1 to 10000. Further requests receive 503 at once
    #[arg(long, env = "MAX_IN_FLIGHT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_in_flight: u32,
    /// Maximum size of a request body in bytes
    #[arg(long, env = "MAX_BODY_BYTES", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1024..=10_485_760))]
    pub max_body_bytes: u32,
    /// Seconds an idle connection is kept open, 1 to 3600. Use a longer time than the proxy in front of the API; otherwise the proxy sends requests on
    /// connections that are being closed. The default is longer than that of a Google Cloud load balancer (600 s), AWS ALB (60 s) and nginx (60 s)
    // It costs no memory: the number of connections is bounded, and an idle one gives way to a new one.
    #[arg(long, env = "IDLE_SECONDS", default_value_t = 620, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub idle_seconds: u32,
    /// Seconds within which the header of a request, and then its body, must have been received
    #[arg(long, env = "READ_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=300))]
    pub read_seconds: u32,
    /// Seconds after SIGTERM during which new connections are still accepted, 0 to 60. `/readyz` fails at once, but clients notice it later. Then requests
    /// in flight have 25 s to finish
    #[arg(long, env = "SHUTDOWN_DELAY_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=60))]
    pub shutdown_delay_seconds: u32,
    /// The operator's ingest endpoint, at which archives are read: `HOST:PORT`, or `service/NAME:PORT` for a Service in the operator's namespace. Without
    /// it the API does not send archives
    #[arg(long, env = "ARCHIVES_ENDPOINT", requires_all = ["archives_ca", "archives_token"], value_parser = archives_endpoint)]
    pub archives_endpoint: Option<String>,
    /// PEM file with the certificate of that endpoint. It may appear later, and change
    #[arg(long, env = "ARCHIVES_CA")]
    pub archives_ca: Option<PathBuf>,
    /// File with a token of this API's ServiceAccount for the audience `computer-operator.dev/archive-read`, bound to its pod
    #[arg(long, env = "ARCHIVES_TOKEN")]
    pub archives_token: Option<PathBuf>,
    /// Write log lines as JSON instead of text
    #[arg(long, env = "LOG_JSON", default_value_t = false, action = clap::ArgAction::Set)]
    pub log_json: bool,
}

impl Config {
    /// Time between the signal and the end of accepting new connections.
    pub fn shutdown_delay(&self) -> Duration {
        Duration::from_secs(u64::from(self.shutdown_delay_seconds))
    }

    /// Where archives are read.
    pub(super) fn archives(&self, client: &kube::Client) -> Option<Remote> {
        let (ca, token) = (self.archives_ca.clone()?, self.archives_token.clone()?);
        let endpoint = Endpoint::parse(self.archives_endpoint.as_ref()?, client, &self.namespace).ok()?;
        Some(Remote::new(endpoint, ca, token))
    }

    /// Limits of the API's connections.
    pub fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections as usize,
            head: super::HEAD,
            socket: SOCKET,
            header: self.read_limit(),
            idle: Duration::from_secs(u64::from(self.idle_seconds)),
            single: None,
            drain: super::DRAIN,
            refusal: Some(super::middleware::refusal),
        }
    }

    /// Maximum memory of the API with these settings in bytes: a sum of bounds, not an estimate of typical use. `docs/memory.md` explains each term.
    pub fn memory(&self) -> usize {
        let request = self.max_body_bytes as usize + HEADERS + 2 * tenant_limits::SMALL;
        // The capacity of a vector of JSON can be twice its length.
        BASE + self.limits().memory(true)
            + health::LIMITS.memory(false)
            + self.max_in_flight as usize * request
            + 2 * tenant_limits::ANSWERS
            + page_limits::MEMORY
            + tenant_limits::EXPORTS
            + PARSING
    }

    /// Time limit for a request header, and for a request body.
    pub fn read_limit(&self) -> Duration {
        Duration::from_secs(u64::from(self.read_seconds))
    }
}

fn archives_endpoint(text: &str) -> Result<String, String> {
    remote::port(text).map(|_| text.to_owned())
}
