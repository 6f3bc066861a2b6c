//! Logs: text or JSON, filtered by `RUST_LOG` (default `info`). Never a token, never session content.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::config::Config;

/// Starts logging to standard error.
pub fn init(config: &Config) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    if config.log_json {
        builder.json().init();
    } else {
        builder.init();
    }
}
