//! Settings of `computer-operator api`: flags, each with an environment variable. No secrets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::tenant_limits;
use crate::runtime::health;
use crate::runtime::server::Limits;

/// Kernel buffers of a connection, to receive and to send.
const SOCKET: (usize, usize) = (16 * 1024, 32 * 1024);
/// The process without any connection.
const BASE: usize = 24 * 1024 * 1024;
/// The headers of a request as a map, beside the bytes that they point into, which count for the connection.
const HEADERS: usize = 16 * 1024;
/// Pages of lists that are read from the API server: two of computers and two of sessions, three times each.
const LISTS: usize = 24 * 1024 * 1024;
/// Two bodies that are taken apart at the same moment: values take up to 72 bytes for each two of JSON.
const PARSING: usize = 2 * 10 * 1024 * 1024;

/// Serve the HTTP API.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Namespace of the operator, where the records are.
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system", value_parser = crate::runtime::config::namespace)]
    pub namespace: String,
    /// Where the API listens.
    #[arg(long, env = "API_BIND", default_value = "0.0.0.0:8000")]
    pub bind: SocketAddr,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "METRICS_BIND", default_value = "0.0.0.0:8080")]
    pub metrics_bind: SocketAddr,
    /// PEM file with the server's certificate chain; read again when it changes. Without it and the key the API speaks plain HTTP,
    /// for use behind an ingress that ends TLS.
    #[arg(long, env = "TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the key of the certificate.
    #[arg(long, env = "TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Audience that a ServiceAccount's token must be for (`kubectl create token NAME --audience=...`).
    #[arg(long, env = "TOKEN_AUDIENCE", default_value = "computer-operator")]
    pub audience: String,
    /// The API server's own audience, which its OIDC authenticators answer with.
    #[arg(long, env = "CLUSTER_AUDIENCE", default_value = "https://kubernetes.default.svc.cluster.local")]
    pub cluster_audience: String,
    /// Open connections, 1 to 65536. One more takes the place of the connection that has waited longest for a request. Each can take up
    /// to 248 KiB of memory.
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_connections: u32,
    /// Requests in flight, 1 to 10000; more are answered 503 at once.
    #[arg(long, env = "MAX_IN_FLIGHT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_in_flight: u32,
    /// Longest request body, bytes.
    #[arg(long, env = "MAX_BODY_BYTES", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1024..=10_485_760))]
    pub max_body_bytes: u32,
    /// Seconds for which a connection is kept between two requests, 1 to 3600: longer than a proxy in front keeps it, or the proxy sends
    /// requests into connections that are just being closed.
    #[arg(long, env = "IDLE_SECONDS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub idle_seconds: u32,
    /// Seconds within which a request's header, and then its body, must have arrived.
    #[arg(long, env = "READ_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=300))]
    pub read_seconds: u32,
    /// Seconds after SIGTERM for which new connections are still served, 0 to 60: `/readyz` is false from the beginning, but those who
    /// send the requests hear of it later. Then what is under way has 25 s to finish.
    #[arg(long, env = "SHUTDOWN_DELAY_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=60))]
    pub shutdown_delay_seconds: u32,
    /// Log lines as JSON instead of text.
    #[arg(long, env = "LOG_JSON", default_value_t = false, action = clap::ArgAction::Set)]
    pub log_json: bool,
}

impl Config {
    /// Time between the signal to end and the end of accepting.
    pub fn shutdown_delay(&self) -> Duration {
        Duration::from_secs(u64::from(self.shutdown_delay_seconds))
    }

    /// Bounds of the API's connections.
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

    /// Most memory that the API takes with these settings, bytes: a sum of bounds, not an estimate of what is usual.
    /// `docs/memory.md` explains each term.
    pub fn memory(&self) -> usize {
        let request = self.max_body_bytes as usize + HEADERS + 2 * tenant_limits::SMALL;
        // A vector of JSON can be reserved up to twice as long as it is.
        BASE + self.limits().memory(true)
            + health::LIMITS.memory(false)
            + self.max_in_flight as usize * request
            + 2 * tenant_limits::ANSWERS
            + LISTS
            + PARSING
    }

    /// Time for a header, and for a body.
    pub fn read_limit(&self) -> Duration {
        Duration::from_secs(u64::from(self.read_seconds))
    }
}
