//! Logs as text or JSON, filtered by `RUST_LOG` (default `info`). A log must never contain a token or the contents of a session.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, filter};

/// Starts logging to standard error.
pub fn init(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours only in a terminal; files and log collectors get plain text.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::registry().with(layer(json, colours, filter, std::io::stderr)).init();
}

fn layer<S, W>(json: bool, colours: bool, filter: EnvFilter, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    use filter::FilterExt;
    let filter = filter.and(filter::filter_fn(harmless));
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer);
    if json { lines.json().with_filter(filter).boxed() } else { lines.with_filter(filter).boxed() }
}

/// Filters a warning of kube, which logs the whole body of a response that it cannot deserialize. The body may be a Secret with a key or a TokenReview with
/// a token. `RUST_LOG` cannot enable it; the error itself is reported to the caller.
fn harmless(event: &Metadata<'_>) -> bool {
    event.target() != "kube_client::client" || *event.level() <= LevelFilter::ERROR
}

#[cfg(test)]
pub(crate) mod tests {
    use std::convert::Infallible;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use k8s_openapi::api::core::v1::Secret;
    use kube::Client;
    use kube::api::Api;
    use kube::client::Body;
    use tracing::instrument::WithSubscriber;

    use super::*;

    /// What was logged.
    #[derive(Clone, Default)]
    pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

    /// Call this before the subscriber of a test is made, and keep the result. A line that another test logs for the first time at that moment, without a
    /// subscriber, would otherwise be disabled for all of them: tracing computes whether a line is wanted before it lists the line.
    pub(crate) fn any_subscriber() -> tracing::Dispatch {
        tracing::Dispatch::new(tracing_subscriber::registry())
    }

    impl Lines {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_secret_in_an_invalid_response_is_never_logged() {
        for json in [false, true] {
            let lines = Lines::default();
            let writer = lines.clone();
            let subscriber = tracing_subscriber::registry().with(layer(json, false, EnvFilter::new("trace"), move || writer.clone()));
            async {
                let broken = r#"{"kind":"Secret","metadata":{"name":"s"},"data":{"token":"cok_NEVER"},"type":7}"#;
                let service = tower::service_fn(move |_: Request<Body>| async move {
                    Ok::<_, Infallible>(Response::new(Body::from(broken.as_bytes().to_vec())))
                });
                let error = Api::<Secret>::namespaced(Client::new(service, "t"), "t").get("s").await.unwrap_err();
                tracing::info!(%error, "a line of the operator");
            }
            .with_subscriber(subscriber)
            .await;
            let text = lines.text();
            assert!(text.contains("a line of the operator") && !text.contains("NEVER"), "{text}");
        }
    }
}
