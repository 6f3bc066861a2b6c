//! What the operator knows of its own installation, for those who build objects from it.

/// Operator settings that plans need.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Namespace of the operator: records, custody claims, archive pods.
    pub namespace: String,
    /// Image of the archive pod: the operator's own.
    pub image: String,
    /// ServiceAccount of the archive pod.
    pub archive_service_account: String,
    /// Address of the ingest endpoint.
    pub ingest_url: String,
    /// PEM of its certificate authority.
    pub ingest_ca: String,
}
