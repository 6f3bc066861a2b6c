//! The command line of the single binary: the operator, the HTTP API, the archive pod's program, the chart's hooks, and the tools to read archives
//! and verify keys.

use clap::{Parser, Subcommand};
use computer_operator::{archive, credentials, http, install, operator, runtime};

#[derive(Parser)]
#[command(name = "computer-operator", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator.
    Run(Box<runtime::config::Config>),
    /// Serve the HTTP API.
    Api(Box<http::config::Config>),
    /// Pack the sessions of a home and upload them to the operator. Runs in the archive pod.
    Archive,
    /// List, show, verify, export and restore archives, and print receipts.
    #[command(long_about = archive::cli::ABOUT)]
    Archives(archive::cli::Args),
    /// Verify keys of computers and tokens of ApiKeys.
    Keys(credentials::cli::Args),
    /// Print the CustomResourceDefinitions, or apply them.
    Crds(install::crds::Args),
    /// Fail if any Computer, `ApiKey` or unfinished deletion remains. Runs before `helm uninstall`.
    UninstallCheck(install::uninstall::Args),
    /// Check that every kind is served, every replica is ready, and the archive store can be used. Runs in `helm test`.
    InstallCheck(install::check::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<std::process::ExitCode> {
    // kube and reqwest share one TLS provider. Without a default the first handshake would panic.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    match cli.command {
        Command::Run(config) => {
            runtime::telemetry::init(config.log_json);
            operator::run(*config).await?;
        }
        Command::Api(config) => {
            runtime::telemetry::init(config.log_json);
            http::run(*config).await?;
        }
        Command::Archive => return Ok(archive::pod_program::main().await),
        Command::Archives(args) => return archive::cli::run(args).await,
        Command::Keys(args) => return credentials::cli::run(args).await,
        Command::Crds(args) => install::crds::run(args).await?,
        Command::UninstallCheck(args) => return Ok(install::uninstall::run(args).await),
        Command::InstallCheck(args) => install::check::run(args).await?,
    }
    Ok(std::process::ExitCode::SUCCESS)
}
