//! Bounds the memory of lists. Tenants decide how large their objects are and how many they have, and all tenants share this server's memory. So a page is
//! bounded in bytes, whatever its objects contain; only a few pages are in memory at a time; and of an object only the fields that are used are
//! deserialized. Lists of one namespace queue among themselves first: a list of another namespace must never wait for all of them (L3).

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use futures::AsyncReadExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{ListParams, ObjectList};
use kube::{Client, Resource};
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::runtime::client::{CallError, call};

/// Maximum number of pages of one kind in memory, and maximum number of concurrent lists of one namespace.
const PAGES: usize = 2;
/// Number of objects that a list asks for first. A page that turns out to be too large is requested again with half as many.
const OBJECTS: u32 = 50;
/// Maximum size of a page in bytes. The API server stores no object larger than 1.5 MiB.
const PAGE: usize = 2 * 1024 * 1024;
/// Maximum memory of all pages in bytes: computers and sessions, and each page up to three times while its buffer grows and while it is deserialized.
pub const MEMORY: usize = 2 * PAGES * 3 * PAGE;

/// The metadata that lists use. The rest (labels, annotations, finalizers, managed fields) has no useful bound, and it is many times larger once it is
/// deserialized.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

impl From<ListedMetadata> for ObjectMeta {
    fn from(listed: ListedMetadata) -> Self {
        let ListedMetadata { name, namespace, uid, generation, creation_timestamp, deletion_timestamp } = listed;
        Self { name, namespace, uid, generation, creation_timestamp, deletion_timestamp, ..Self::default() }
    }
}

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
    /// Lists the objects `K` of a namespace, deserialized as `L`, and returns what `pick` selects.
    ///
    /// # Errors
    /// If the request for a page fails, or if a single object is larger than a page.
    pub async fn list<K, L, T>(&self, client: &Client, namespace: &str, pick: impl Fn(L) -> Option<T>) -> Result<Vec<T>, CallError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        L: Clone + DeserializeOwned,
    {
        self.list_for::<K, L, T>(client, namespace, (namespace, ""), pick).await
    }

    /// As [`Self::list`], for the tenant of a namespace, the objects of another one that the field selector selects.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn list_for<K, L, T>(
        &self,
        client: &Client,
        tenant: &str,
        (namespace, fields): (&str, &str),
        pick: impl Fn(L) -> Option<T>,
    ) -> Result<Vec<T>, CallError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        L: Clone + DeserializeOwned,
    {
        let own = self.of_namespace(tenant);
        // The semaphores are never closed.
        let _turn = own.acquire().await;
        let path = K::url_path(&(), Some(namespace));
        let (mut objects, mut from, mut picked) = (OBJECTS, String::new(), Vec::new());
        loop {
            let _page = self.common.acquire().await;
            let mut params = ListParams::default().limit(objects);
            if !fields.is_empty() {
                params = params.fields(fields);
            }
            if !from.is_empty() {
                params = params.continue_token(&from);
            }
            let Some(page) = call(page::<L>(client, &path, &params)).await? else {
                if objects == 1 {
                    return Err(too_large(K::plural(&()).as_ref(), namespace).into());
                }
                objects /= 2;
                continue;
            };
            picked.extend(page.items.into_iter().filter_map(&pick));
            from = page.metadata.continue_.unwrap_or_default();
            if from.is_empty() {
                return Ok(picked);
            }
        }
    }

    fn of_namespace(&self, namespace: &str) -> Arc<Semaphore> {
        let mut all = self.of_namespaces.lock();
        // A running list holds a reference; namespaces without one are removed.
        all.retain(|_, turns| Arc::strong_count(turns) > 1);
        Arc::clone(all.entry(namespace.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(PAGES))))
    }
}

/// Reads one page; `None` if it is larger than [`PAGE`].
async fn page<L: Clone + DeserializeOwned>(client: &Client, path: &str, params: &ListParams) -> Result<Option<ObjectList<L>>, kube::Error> {
    let request = kube::core::Request::new(path).list(params).map_err(kube::Error::BuildRequest)?;
    let body = pin!(client.request_stream(request).await?);
    let mut bytes = Vec::new();
    body.take(PAGE as u64 + 1).read_to_end(&mut bytes).await.map_err(|error| kube::Error::Service(error.into()))?;
    if bytes.len() > PAGE {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(kube::Error::SerdeError)
}

fn too_large(plural: &str, namespace: &str) -> kube::Error {
    let mib = PAGE / 1024 / 1024;
    kube::Error::Service(
        format!("one of the {plural} in namespace {namespace} is larger than {mib} MiB: find and shrink it, it prevents all lists").into(),
    )
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use axum::http::{Request, Response};
    use bytes::Bytes;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
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
            let (pages, client) = (Arc::clone(&pages), client.clone());
            greedy.spawn(async move { pages.list::<Computer, Computer, _>(&client, "greedy", Some).await.map(drop) });
        }
        tokio::time::sleep(SECOND / 2).await;
        let began = Instant::now();
        for other in ["a", "b", "c"] {
            pages.list::<Computer, Computer, _>(&client, other, Some).await.unwrap();
        }
        assert!(began.elapsed() < 7 * SECOND, "L3: {:?}", began.elapsed());
        drop(greedy);
        drop(pages.of_namespace("x"));
        assert!(pages.of_namespaces.lock().len() <= 2);
    }

    #[derive(Clone, serde::Deserialize)]
    struct Named {
        metadata: ListedMetadata,
    }

    /// An API server with `count` objects of this size. It counts the bytes that were read of the largest page.
    fn large_objects(count: usize, size: usize, most: Arc<AtomicUsize>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let of = |key: &str| {
                let query = request.uri().query().unwrap_or_default().split('&');
                query.filter_map(|p| p.split_once('=')).find(|(name, _)| *name == key).and_then(|(_, value)| value.parse().ok())
            };
            let (from, limit): (usize, usize) = (of("continue").unwrap_or(0), of("limit").unwrap());
            let to = count.min(from + limit);
            let next = if to < count { to.to_string() } else { String::new() };
            let item = |n| json!({"metadata": {"name": format!("c{n}"), "labels": {"a": "x".repeat(size)}}, "spec": {}});
            let items: Vec<_> = (from..to).map(item).collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"continue": next}, "items": items}).to_string();
            let (bytes, most, mut read) = (Bytes::from(list), Arc::clone(&most), 0);
            let chunks = (0..bytes.len().div_ceil(CHUNK)).map(move |n| {
                let chunk = bytes.slice(n * CHUNK..bytes.len().min((n + 1) * CHUNK));
                read += chunk.len();
                most.fetch_max(read, Ordering::Relaxed);
                Ok::<_, Infallible>(Frame::data(chunk))
            });
            async move { Ok::<_, Infallible>(Response::new(StreamBody::new(futures::stream::iter(chunks)))) }
        });
        Client::new(service, "t")
    }

    const CHUNK: usize = 16 * 1024;

    /// Found in a hostile review: 50 objects with 1.4 MiB of labels each were one page of 70 MiB, and two such pages exceeded the memory of the process.
    #[tokio::test]
    async fn a_page_is_bounded_whatever_its_objects_contain() {
        let most = Arc::new(AtomicUsize::new(0));
        for (size, count) in [(1_400_000, 7), (300_000, 60), (100, 120)] {
            let client = large_objects(count, size, Arc::clone(&most));
            let names = Pages::default().list::<Computer, Named, _>(&client, "t", |c| c.metadata.name).await.unwrap();
            assert_eq!(names, (0..count).map(|n| format!("c{n}")).collect::<Vec<_>>(), "each object once");
        }
        assert!(most.load(Ordering::Relaxed) <= PAGE + CHUNK, "{} bytes of a page were read", most.load(Ordering::Relaxed));
        let client = large_objects(2, PAGE, most);
        let error = Pages::default().list::<Computer, Named, _>(&client, "t", |c| c.metadata.name).await.unwrap_err();
        assert!(error.to_string().contains("computers in namespace t is larger than 2 MiB"), "a list must not be incomplete: {error}");
    }
}
