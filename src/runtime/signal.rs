//! Signals of the process: SIGTERM and SIGINT start a graceful shutdown.
//!
//! What a shutdown does is in `operator.rs`, `runtime/lease.rs` and `http/mod.rs`.

use tokio_util::sync::CancellationToken;

/// Cancels `stop` at the first SIGTERM or SIGINT.
pub fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    tokio::spawn(async move {
        if let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("received a termination signal, shutting down");
        } else {
            tracing::error!("cannot install signal handlers, shutting down");
        }
        stop.cancel();
    });
}
