//! The Helm chart: its generated files, and the real Helm to render and install it. Nothing here may depend on the chart's content.

pub mod readme;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use computer_operator::install::rbac;

use crate::tools::{self, Tool};

/// Release and namespace of the demo and of the tests.
pub const RELEASE: &str = "computer-operator";

/// The chart's folder.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("charts").join("computer-operator")
}

/// Values for a local cluster: images that are loaded without a registry.
pub fn demo_values() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-values.yaml")
}

/// Every generated file of the chart, with its path in it.
///
/// # Errors
/// When the README or the values cannot be read.
pub fn generated() -> Result<Vec<(&'static str, String)>> {
    let read = |name: &str| std::fs::read_to_string(folder().join(name)).with_context(|| format!("reading the chart's {name}"));
    Ok(vec![("files/rbac.yaml", rbac::chart_file()?), ("README.md", readme::with_table(&read("README.md")?, &read("values.yaml")?)?)])
}

/// What the chart installs except the programs: accounts, rights, admission policies. For tests that run their own programs, with those
/// rights and under those policies.
///
/// # Errors
/// When Helm cannot be built or refuses.
pub fn without_programs(namespace: &str) -> Result<String> {
    let shown = [
        "accounts",
        "rbac",
        "rbac-people",
        "admission/computers",
        "admission/finalizer",
        "admission/reserved",
        "admission/volumes",
        "admission/children",
        "admission/secrets",
        "admission/records",
        "admission/sessions",
        "admission/api-keys",
    ];
    let only: Vec<String> = shown.iter().flat_map(|t| ["--show-only".to_owned(), format!("templates/{t}.yaml")]).collect();
    let api = ["--api-versions", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"];
    let arguments: Vec<&str> = only.iter().map(String::as_str).chain(api).collect();
    Helm::new(None)?.template(RELEASE, namespace, &arguments)
}

/// The real Helm, without the user's settings and plugins.
pub struct Helm {
    program: PathBuf,
    home: tempfile::TempDir,
    kubeconfig: Option<PathBuf>,
}

impl Helm {
    /// Builds it first if necessary. `kubeconfig`: the cluster to use. None: Helm can only render.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn new(kubeconfig: Option<&Path>) -> Result<Self> {
        let program = tools::ensure(&[Tool::Helm])?.path(Tool::Helm).to_owned();
        Ok(Self { program, home: tempfile::tempdir()?, kubeconfig: kubeconfig.map(Path::to_owned) })
    }

    /// The command with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(Stdio::null());
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.home.path());
        }
        match &self.kubeconfig {
            Some(path) => command.env("KUBECONFIG", path),
            None => command.env("KUBECONFIG", self.home.path().join("none")),
        };
        command
    }

    /// Runs it; its output.
    ///
    /// # Errors
    /// When it fails; the error contains its output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output().context("run helm")?;
        let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "helm {}: {out}{}", arguments.join(" "), errors.trim());
        Ok(out.into_owned())
    }

    /// The chart as YAML; `more`: further arguments.
    ///
    /// # Errors
    /// When the values are refused.
    pub fn template(&self, release: &str, namespace: &str, more: &[&str]) -> Result<String> {
        let chart = folder().display().to_string();
        self.run(&[&["template", release, &chart, "--namespace", namespace], more].concat())
    }
}
