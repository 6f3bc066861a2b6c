//! Bounds the memory of lists. A page may be large, so only a few are in memory at a time. A namespace decides how many pages it has and how large they
//! are, so lists of one namespace queue among themselves first; a list of another namespace must never wait for all of them (L3).

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use kube::api::Api;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::runtime::client::{CallError, list_in_turn};

/// Maximum number of pages of one kind in memory, and maximum number of concurrent lists of one namespace.
const PAGES: usize = 2;

/// Limits the lists of one kind.
pub struct Pages {
    /// One permit for each page in memory.
    pub(super) common: Semaphore,
    of_namespaces: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Default for Pages {
    fn default() -> Self {
        Self { common: Semaphore::new(PAGES), of_namespaces: Mutex::default() }
    }
}

impl Pages {
    /// Lists the objects of a namespace and returns what `pick` selects.
    ///
    /// # Errors
    /// See [`list_in_turn`].
    pub async fn list<K, T>(&self, api: &Api<K>, namespace: &str, page: u32, pick: impl Fn(K) -> Option<T>) -> Result<Vec<T>, CallError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let own = self.of_namespace(namespace);
        // The semaphore is never closed.
        let _turn = own.acquire().await;
        list_in_turn(api, page, &self.common, pick).await
    }

    fn of_namespace(&self, namespace: &str) -> Arc<Semaphore> {
        let mut all = self.of_namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        // A running list holds a reference; namespaces without one are removed.
        all.retain(|_, turns| Arc::strong_count(turns) > 1);
        Arc::clone(all.entry(namespace.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(PAGES))))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use axum::http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;
    use tokio::task::JoinSet;
    use tokio::time::Instant;

    use super::*;
    use crate::resources::Computer;

    const SECOND: Duration = Duration::from_secs(1);

    /// Found in a security review: a tenant with its share of the requests in flight delayed all other lists by 64 pages.
    #[tokio::test(start_paused = true)]
    async fn many_lists_of_one_namespace_do_not_delay_other_namespaces() {
        // Each page takes a second, and the lists of the greedy namespace never end.
        let service = tower::service_fn(|request: Request<Body>| async move {
            tokio::time::sleep(SECOND).await;
            let more = if request.uri().path().contains("/greedy/") { "more" } else { "" };
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"continue": more}, "items": []});
            Ok::<_, Infallible>(Response::new(Body::from(list.to_string().into_bytes())))
        });
        let client = Client::new(service, "t");
        let (pages, mut greedy) = (Arc::new(Pages::default()), JoinSet::new());
        for _ in 0..64 {
            let (pages, api) = (Arc::clone(&pages), Api::<Computer>::namespaced(client.clone(), "greedy"));
            greedy.spawn(async move { pages.list(&api, "greedy", 50, Some).await.map(drop) });
        }
        tokio::time::sleep(SECOND / 2).await;
        let began = Instant::now();
        for other in ["a", "b", "c"] {
            let api = Api::<Computer>::namespaced(client.clone(), other);
            pages.list(&api, other, 50, Some).await.unwrap();
        }
        assert!(began.elapsed() < 7 * SECOND, "L3: {:?}", began.elapsed());
        drop(greedy);
        drop(pages.of_namespace("x"));
        assert!(pages.of_namespaces.lock().unwrap().len() <= 2);
    }
}
