//! The settings that plans need to build objects: a few values of [`super::config`], which holds the flags, and the certificate authority of the ingest
//! endpoint. It must not contain what only the process needs.

/// Settings of the operator that plans need.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Namespace of the operator, which contains records, custody claims and archive pods.
    pub namespace: String,
    /// Image of the archive pod, which is the operator's own image.
    pub image: String,
    /// ServiceAccount of the archive pod.
    pub archive_service_account: String,
    /// Most bytes of an archive whose class names no bound. Zero: any number.
    pub archive_max_bytes: u64,
    /// Address of the ingest endpoint.
    pub ingest_url: String,
    /// Certificate authority of the ingest endpoint in PEM.
    pub ingest_ca: String,
    /// URL of the HTTP API for machines; empty if there is none.
    pub api_url: String,
}
