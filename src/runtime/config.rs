//! Settings of `computer-operator run`: flags, each with an environment variable. They must not contain secrets: the credentials of the store come from
//! the folder that `credentials_folder` in its URL names (a mounted Secret), otherwise from `AWS_*` or the pod's cloud identity (`archive/store/bucket.rs`). The chart sets the variables in `templates/controller/deployment.yaml`; it builds the URL of the store in `_helpers.tpl`.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::lease::Timing;
use super::settings::ArchivePod;
use crate::resources::quantity;

/// Run the operator.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Namespace of the operator, which contains records, custody claims, archive pods and the lease
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system", value_parser = namespace)]
    pub namespace: String,
    /// Image of the archive pod; use the operator's own image
    #[arg(long, env = "OPERATOR_IMAGE", value_parser = image)]
    pub image: String,
    /// ServiceAccount of the archive pod, in the operator's namespace
    #[arg(long, env = "ARCHIVE_SERVICE_ACCOUNT", default_value = "computer-operator-archive")]
    pub archive_service_account: String,
    /// ServiceAccount of the HTTP API, in the operator's namespace: its pods may read archives at the ingest endpoint. Without it, none may
    #[arg(long, env = "API_SERVICE_ACCOUNT")]
    pub api_service_account: Option<String>,
    /// Archive pods, as JSON: `resources`, `priorityClassName`, `nodeSelector`, `imagePullPolicy`
    #[arg(long, env = "ARCHIVE_POD", default_value = "{}", value_parser = archive_pod)]
    pub archive_pod: ArchivePod,
    /// Archive store: `file:///path`, or `s3://bucket/prefix?endpoint=URL&region=R&allow_http=true&ca_file=PATH&credentials_folder=PATH`. Without
    /// `credentials_folder` the credentials come from AWS_* or the pod's cloud identity
    #[arg(long, env = "ARCHIVE_STORE", default_value = "file:///var/lib/computer-operator/store", value_parser = store)]
    pub store: String,
    /// Most bytes that an archive may have in the store, if its class does not set `archive.maxBytes`: a quantity. `0`: any number
    #[arg(long, env = "ARCHIVE_MAX_BYTES", default_value = "1Ti", value_parser = size)]
    pub archive_max_bytes: u64,
    /// Remove leftovers of crashes and aborted archive attempts from the store, a day after a deletion has ended. Archives and receipts are never removed
    #[arg(long, env = "ARCHIVE_COLLECT_LEFTOVERS", default_value_t = true, action = clap::ArgAction::Set)]
    pub archive_collect_leftovers: bool,
    /// `PersistentVolumeClaim` of the embedded store in the operator's namespace, whose volume is set to `Retain`
    #[arg(long, env = "RETAIN_STORE_CLAIM")]
    pub retain_store_claim: Option<String>,
    /// URL at which archive pods reach the ingest endpoint, for example `https://computer-operator-ingest.NAMESPACE.svc:8443`. The host may be
    /// a variable `$(NAME)` of the archive pods
    #[arg(long, env = "INGEST_URL", value_parser = super::ingest_url::parse)]
    pub ingest_url: String,
    /// URL at which machines reach the HTTP API, for example `https://computers.example.com`. Machines of a class with `key.mountPath` get it in the
    /// file `url` and in `COMPUTER_API_URL`. Empty: they get none
    #[arg(long, env = "API_URL", default_value = "", value_parser = api_url)]
    pub api_url: String,
    /// Address that the ingest endpoint listens on
    #[arg(long, env = "INGEST_BIND", default_value = "[::]:8443")]
    pub ingest_bind: SocketAddr,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, env = "METRICS_BIND", default_value = "[::]:8080")]
    pub metrics_bind: SocketAddr,
    /// Use leader election, so that only one of several replicas reconciles. `false` is safe, but duplicates work
    #[arg(long, env = "LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_election: bool,
    /// Duration of the lease in seconds. Another replica may take over a lease that has not been renewed for that long
    #[arg(long, env = "LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(5..=300))]
    pub lease_seconds: u32,
    /// Seconds after the last renewal after which a leader stops. Must be shorter than the lease; defaults to two thirds of it
    #[arg(long, env = "LEASE_RENEW_SECONDS", value_parser = clap::value_parser!(u32).range(1..=299))]
    pub lease_renew_seconds: Option<u32>,
    /// Seconds between attempts to acquire or renew the lease. Defaults to a seventh of the lease
    #[arg(long, env = "LEASE_RETRY_SECONDS", value_parser = clap::value_parser!(u32).range(1..=60))]
    pub lease_retry_seconds: Option<u32>,
    /// Number of computers that are reconciled concurrently, 1 to 1000. Each uses at most one connection
    #[arg(long, env = "CONCURRENCY", default_value_t = 32, value_parser = concurrency)]
    pub concurrency: usize,
    /// Write log lines as JSON instead of text
    #[arg(long, env = "LOG_JSON", default_value_t = false, action = clap::ArgAction::Set)]
    pub log_json: bool,
}

impl Config {
    /// Timing of the lease. [`super::lease::run_while_leading`] rejects an invalid one.
    pub fn lease(&self) -> Timing {
        let seconds = |s: u32| Duration::from_secs(u64::from(s));
        let lease = seconds(self.lease_seconds);
        Timing {
            lease,
            renew_deadline: self.lease_renew_seconds.map_or(lease * 2 / 3, seconds),
            retry: self.lease_retry_seconds.map_or(lease / 7, seconds),
        }
    }
}

/// Parses the name of a namespace.
///
/// # Errors
/// If the name is invalid; the error says which names are valid.
pub(crate) fn namespace(text: &str) -> Result<String, String> {
    let fits = (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !fits || text.starts_with('-') || text.ends_with('-') {
        return Err("a namespace must have 1 to 63 characters of a-z, 0-9 and '-', and must not begin or end with '-'".to_owned());
    }
    Ok(text.to_owned())
}

/// Without a slash at the end, so that a client can add the path.
fn api_url(text: &str) -> Result<String, String> {
    let url = text.trim_end_matches('/');
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
    let fits = !host.is_empty() && !host.starts_with([':', '/']) && !host.contains(['?', '#', '@']);
    if url.is_empty() || (fits && url.len() <= 1024 && url.bytes().all(|b| b.is_ascii_graphic())) {
        return Ok(url.to_owned());
    }
    Err("use http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH] without credentials and parameters".to_owned())
}

fn image(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().any(char::is_whitespace) {
        return Err("use the operator's own image, which archive pods run, for example registry.example/computer-operator:1.0".to_owned());
    }
    Ok(text.to_owned())
}

fn store(text: &str) -> Result<String, String> {
    // Errors show only the part before the query, because users may put credentials into the query.
    let place = text.split('?').next().unwrap_or_default();
    let named = |rest: &str, sign: &str| !rest.is_empty() && !rest.starts_with(sign);
    match (place.strip_prefix("file://"), place.strip_prefix("s3://")) {
        (Some(path), _) if path.starts_with('/') && path.len() > 1 => {}
        (_, Some(bucket)) if named(bucket, "/") => {}
        _ => return Err(format!("{place:?} is not the URL of a store: use file:///absolute/path or s3://bucket/prefix?region=...")),
    }
    let secret = |key: &str| key.to_ascii_lowercase().contains("secret") || key.to_ascii_lowercase().contains("token");
    if text.split(['?', '&']).skip(1).filter_map(|pair| pair.split('=').next()).any(secret) {
        return Err("the URL must not contain credentials, because it is not kept secret: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            .to_owned());
    }
    Ok(text.to_owned())
}

fn archive_pod(text: &str) -> Result<ArchivePod, String> {
    let pod: ArchivePod =
        serde_json::from_str(text).map_err(|error| format!("{error}: use for example {{\"priorityClassName\": \"high\"}}"))?;
    let (requests, limits) = (pod.resources.requests.clone().unwrap_or_default(), pod.resources.limits.clone().unwrap_or_default());
    let value = |name: &str, quantity: &Quantity| {
        quantity::value(quantity).ok_or_else(|| format!("resources: {name} is {:?}: use a quantity, for example 256Mi", quantity.0))
    };
    for (name, limit) in &limits {
        let (limit, request) = (value(name, limit)?, requests.get(name).map(|request| value(name, request)).transpose()?);
        if request.is_some_and(|request| request > limit) {
            return Err(format!("resources: the request of {name} is above its limit, so the API server would reject every archive pod"));
        }
    }
    requests.iter().try_for_each(|(name, request)| value(name, request).map(drop))?;
    Ok(pod)
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = quantity::bytes(&Quantity(text.to_owned()));
    bytes.ok_or_else(|| "use a quantity, for example 500Gi; 0 is any number of bytes".to_owned())
}

fn concurrency(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=1000).contains(n)).ok_or_else(|| "use a number from 1 to 1000".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    const NEEDED: [&str; 5] = ["run", "--image", "img:1", "--ingest-url", "https://10.0.0.1:8443"];

    fn parse(more: &[&str]) -> Result<Config, String> {
        Cli::try_parse_from(NEEDED.iter().chain(more)).map(|c| c.config).map_err(|e| e.to_string())
    }

    #[test]
    fn resources_that_the_api_server_would_reject_are_named() {
        for (resources, word) in [
            (r#"{"limits": {"memory": "256MB"}}"#, "256MB"),
            (r#"{"requests": {"cpu": "two"}}"#, "two"),
            (r#"{"requests": {"memory": "1Gi"}, "limits": {"memory": "256Mi"}}"#, "above its limit"),
        ] {
            let error = parse(&["--archive-pod", &format!("{{\"resources\": {resources}}}")]).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let pod = parse(&["--archive-pod", r#"{"resources": {"limits": {"memory": "1Gi"}}}"#]).unwrap().archive_pod;
        assert_eq!(pod.resources.limits.unwrap()["memory"].0, "1Gi");
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = parse(&[]).unwrap();
        assert!(config.lease().validate().is_ok() && config.leader_election);
        assert!(config.archive_max_bytes == 1 << 40 && config.archive_collect_leftovers);
        for seconds in [5, 15, 60, 300] {
            assert!(parse(&["--lease-seconds", &seconds.to_string()]).unwrap().lease().validate().is_ok(), "{seconds}");
        }
        assert_eq!(parse(&["--api-url", "https://computers.example.com/"]).unwrap().api_url, "https://computers.example.com");
        let set = parse(&["--lease-seconds", "15", "--lease-renew-seconds", "10", "--lease-retry-seconds", "2"]).unwrap().lease();
        assert_eq!((set.renew_deadline, set.retry), (Duration::from_secs(10), Duration::from_secs(2)));
    }

    #[test]
    fn invalid_values_are_rejected_with_a_remedy() {
        for (flag, values, hint) in [
            ("--namespace", vec!["", "Big", "a.b", "-a", "a/b"], "a-z"),
            ("--store", vec!["", "/tmp", "file://", "file:///", "file://rel", "s3://", "s3:///p", "gs://b"], "use file:///absolute/path"),
            ("--store", vec!["s3://b/p?aws_secret_access_key=x", "s3://b?region=r&session_token=x"], "AWS_SECRET_ACCESS_KEY"),
            ("--ingest-url", vec!["", "http://h:1", "https://", "https://h/path", "https://:1", "https://u:p@h"], "https://HOST:PORT"),
            (
                "--api-url",
                vec!["api", "ftp://h", "http://", "https://:1", "https://u:p@h", "https://h?a=b", "https://h h"],
                "https://HOST[:PORT]",
            ),
            ("--archive-max-bytes", vec!["", "lots", "-1", "1 Gi"], "500Gi"),
            ("--concurrency", vec!["0", "1001", "many", "-1"], "1 to 1000"),
            ("--image", vec!["", "a b"], "own image"),
        ] {
            for value in values {
                // A required flag must not be repeated.
                let mut line: Vec<&str> = NEEDED.to_vec();
                if let Some(at) = line.iter().position(|w| *w == flag) {
                    line.drain(at..at + 2);
                }
                let given = format!("{flag}={value}");
                line.push(&given);
                let error = Cli::try_parse_from(line).unwrap_err().to_string();
                assert!(error.contains(hint), "{flag} {value}: {error}");
            }
        }
        assert!(parse(&["--lease-seconds", "4"]).is_err());
    }

    #[test]
    fn urls_of_both_kinds_of_stores_are_accepted() {
        for url in ["file:///var/lib/x", "s3://bucket", "s3://bucket/prefix?endpoint=http://127.0.0.1:7070&region=r&allow_http=true"] {
            assert_eq!(parse(&["--store", url]).unwrap().store, url);
        }
    }
}
