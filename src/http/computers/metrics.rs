//! `GET /api/v0/computers/{computerId}/metrics`, based on the cluster's metrics API (metrics-server) and the limits of the pod.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::credentials::ComputerId;
use crate::http::Shared;
use crate::http::auth::Authenticated;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::{Id, Params};
use crate::resources::{Provider, quantity};
use crate::runtime::client::{ErrorClass, call, classify};

/// Parameters of the metrics.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MetricsParams {
    /// Only samples from this time on, in ISO 8601. The metrics API keeps no history, so there is at most one sample.
    #[param(format = DateTime)]
    start: Option<String>,
}

/// One sample.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// Time of the sample in ISO 8601.
    pub timestamp: String,
    /// CPU usage in percent of `cpuCount`, or of one CPU if it is not limited.
    pub cpu_used_pct: f64,
    /// CPU limit of the pod; 0 if it is not limited.
    pub cpu_count: f64,
    /// Memory usage in bytes.
    pub mem_used: f64,
    /// Memory limit of the pod in bytes; 0 if it is not limited.
    pub mem_total: f64,
    /// Always 0: the metrics API does not report disks.
    pub disk_used: f64,
    /// Always 0: the metrics API does not report disks.
    pub disk_total: f64,
}

/// Get computer metrics
#[utoipa::path(
    get, path = "/api/v0/computers/{computerId}/metrics", operation_id = "getComputerMetrics", tag = "Computers",
    params(("computerId" = String, Path, description = "Computer ID"), MetricsParams),
    responses(
        (status = 200, description = "The samples; empty while the computer is not running", body = Vec<Metric>),
        (status = 400, description = "`start` is invalid, or the computer is not managed by this cluster", body = ErrorBody),
        (status = 404, description = "The computer does not exist, or the caller may not see it", body = ErrorBody),
        (status = 501, description = "The cluster has no metrics API", body = ErrorBody),
    )
)]
pub async fn get_computer_metrics(
    State(shared): State<Arc<Shared>>,
    by: Authenticated,
    Id(id): Id,
    Params(params): Params<MetricsParams>,
) -> Result<Json<Vec<Metric>>, ApiError> {
    let start = match params.start.as_deref().map(str::parse::<Timestamp>) {
        None => None,
        Some(Ok(start)) => Some(start),
        Some(Err(_)) => return Err(ApiError::invalid("start is invalid: it must be a time such as 2026-01-31T12:00:00Z")),
    };
    let computer = super::living_permitted(&shared, by, "get", &id).await?;
    if computer.spec.provider == Provider::BYOM {
        return Err(ApiError::invalid("the computer has provider BYOM, so this cluster has no metrics of its machine"));
    }
    let pod = computer.status.and_then(|s| s.children).and_then(|c| c.pods.last().map(|p| p.name.clone()));
    let Some(pod) = pod else { return Ok(Json(Vec::new())) };
    let metric = read(&shared, &id, &pod).await?;
    let since = |m: &Metric| start.is_none_or(|s| m.timestamp.parse::<Timestamp>().is_ok_and(|t| t >= s));
    Ok(Json(metric.into_iter().filter(since).collect()))
}

/// Reads the sample of a pod; `None` if there is none yet.
async fn read(shared: &Shared, id: &ComputerId, pod: &str) -> Result<Option<Metric>, ApiError> {
    let kind = GroupVersionKind::gvk("metrics.k8s.io", "v1beta1", "PodMetrics");
    let readings: Api<DynamicObject> =
        Api::namespaced_with(shared.client.clone(), &id.namespace, &ApiResource::from_gvk_with_plural(&kind, "pods"));
    let pods: Api<Pod> = Api::namespaced(shared.client.clone(), &id.namespace);
    let (reading, pod) = tokio::join!(call(readings.get(pod)), call(pods.get(pod)));
    let reading = match reading {
        Ok(reading) => reading,
        Err(error) if classify(&error) == ErrorClass::NotFound => return Ok(None),
        Err(_) => {
            let detail = "the metrics API of the cluster is not available: ask its admin to install metrics-server";
            return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, detail));
        }
    };
    let pod = match pod {
        Ok(pod) => pod,
        Err(error) if classify(&error) == ErrorClass::NotFound => return Ok(None),
        Err(error) => return Err(ApiError::from_call(&error, "computer", "reading the pod")),
    };
    Ok(Some(metric(&reading.data, &pod)))
}

/// Sums a sample over the containers.
fn metric(reading: &Value, pod: &Pod) -> Metric {
    let used = |resource: &str| -> f64 {
        let containers = reading["containers"].as_array().into_iter().flatten();
        let quantities = containers.filter_map(|c| c["usage"][resource].as_str()).map(|q| Quantity(q.to_owned()));
        quantities.filter_map(|q| quantity::value(&q)).sum()
    };
    let limit = |resource: &str| -> f64 {
        let containers = pod.spec.iter().flat_map(|s| &s.containers);
        let limits: Vec<_> = containers.map(|c| quantity::value(c.resources.as_ref()?.limits.as_ref()?.get(resource)?)).collect();
        // If one container has no limit, the pod has none.
        limits.into_iter().sum::<Option<f64>>().unwrap_or_default()
    };
    let (cpu, count) = (used("cpu"), limit("cpu"));
    Metric {
        timestamp: reading["timestamp"].as_str().unwrap_or_default().to_owned(),
        cpu_used_pct: 100.0 * cpu / if count > 0.0 { count } else { 1.0 },
        cpu_count: count,
        mem_used: used("memory"),
        mem_total: limit("memory"),
        disk_used: 0.0,
        disk_total: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    #[allow(clippy::float_cmp)] // small whole numbers
    fn a_sample_is_summed_over_the_containers() {
        let reading = json!({"timestamp": "2026-01-01T00:00:00Z", "containers": [
            {"usage": {"cpu": "250m", "memory": "1Mi"}}, {"usage": {"cpu": "250000000n", "memory": "1024Ki"}},
        ]});
        let limited = json!({"name": "c", "resources": {"limits": {"cpu": "1", "memory": "2Mi"}}});
        let pod = |containers: Value| serde_json::from_value::<Pod>(json!({"spec": {"containers": containers}})).unwrap();
        let got = metric(&reading, &pod(json!([limited, limited])));
        assert_eq!((got.cpu_used_pct, got.cpu_count, got.mem_used, got.mem_total), (25.0, 2.0, 2_097_152.0, 4_194_304.0));
        let unlimited = metric(&reading, &pod(json!([limited, {"name": "d"}])));
        assert_eq!((unlimited.cpu_used_pct, unlimited.cpu_count, unlimited.mem_total), (50.0, 0.0, 0.0));
    }
}
