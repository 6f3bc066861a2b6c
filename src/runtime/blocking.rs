//! Work that takes long without waiting for anything: digests and compression of chunks. It must not keep the threads that answer requests.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinError;

/// Does the work on a thread for such work. A runtime with one thread does it at once: there, it is a test or the simulator, whose runs can be repeated
/// only if nothing happens beside them.
///
/// # Errors
/// When the work panics, or the runtime ends.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(work()),
        _ => tokio::task::spawn_blocking(work).await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_does_not_keep_a_thread_of_the_runtime() {
        let (send, receive) = std::sync::mpsc::channel();
        let work = tokio::spawn(run(move || receive.recv().unwrap()));
        // The only thread of the runtime is free while the work waits for this.
        tokio::spawn(async move { send.send(7).unwrap() }).await.unwrap();
        assert_eq!(work.await.unwrap().unwrap(), 7);
    }
}
