//! Settings of `computer-operator run`: flags, each with an environment variable. No secrets: store credentials come from `AWS_*`.

use std::net::SocketAddr;
use std::time::Duration;

use super::lease::Timing;

/// Run the operator.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Namespace of the operator: records, custody claims, archive pods, the lease.
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system")]
    pub namespace: String,
    /// Image of the archive pod: the operator's own.
    #[arg(long, env = "OPERATOR_IMAGE")]
    pub image: String,
    /// ServiceAccount of the archive pod, in the operator's namespace.
    #[arg(long, env = "ARCHIVE_SERVICE_ACCOUNT", default_value = "computer-operator-archive")]
    pub archive_service_account: String,
    /// Archive store: `file:///path`, or `s3://bucket/prefix?endpoint=URL&region=R&allow_http=true` with credentials from AWS_*.
    #[arg(long, env = "ARCHIVE_STORE", default_value = "file:///var/lib/computer-operator/store")]
    pub store: String,
    /// Address under which archive pods reach the ingest endpoint, for example `https://computer-operator-ingest.NAMESPACE.svc:8443`.
    #[arg(long, env = "INGEST_URL")]
    pub ingest_url: String,
    /// Where the ingest endpoint listens.
    #[arg(long, env = "INGEST_BIND", default_value = "0.0.0.0:8443")]
    pub ingest_bind: SocketAddr,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "METRICS_BIND", default_value = "0.0.0.0:8080")]
    pub metrics_bind: SocketAddr,
    /// Take a lease, so that one of several replicas works and the others stand by. `false` is safe, only wasteful.
    #[arg(long, env = "LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_election: bool,
    /// Seconds after which another replica may take the lease of one that does not renew it.
    #[arg(long, env = "LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(5..=300))]
    pub lease_seconds: u32,
    /// Computers worked on at the same time; each holds at most one connection.
    #[arg(long, env = "CONCURRENCY", default_value_t = 32)]
    pub concurrency: usize,
    /// Log lines as JSON instead of text.
    #[arg(long, env = "LOG_JSON", default_value_t = false, action = clap::ArgAction::Set)]
    pub log_json: bool,
}

impl Config {
    /// Timing of the lease: renewed every seventh of it, given up after two thirds.
    pub fn lease(&self) -> Timing {
        let lease = Duration::from_secs(u64::from(self.lease_seconds));
        Timing { lease, renew_deadline: lease * 2 / 3, retry: lease / 7 }
    }
}
