//! The command line. One binary: the operator, the archive pod's program, and the tools to read archives and check keys.

use clap::{Parser, Subcommand};
use computer_operator::{archive, credentials, http, resources, runtime};

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
    /// Pack the sessions of a home and send them to the operator. Runs in the archive pod.
    Archive,
    /// List, show, verify and restore archives.
    Archives(archive::cli::Args),
    /// Check keys of computers and tokens of ApiKeys.
    Keys(credentials::cli::Args),
    /// Print the CustomResourceDefinitions.
    Crds,
}

#[tokio::main]
async fn main() -> anyhow::Result<std::process::ExitCode> {
    // kube and reqwest share one TLS provider; without this the first handshake would panic.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    match cli.command {
        Command::Run(config) => {
            runtime::telemetry::init(config.log_json);
            runtime::operator::run(*config).await?;
        }
        Command::Api(config) => {
            runtime::telemetry::init(config.log_json);
            http::run(*config).await?;
        }
        Command::Archive => return Ok(archive::pod::main().await),
        Command::Archives(args) => return archive::cli::run(args).await,
        Command::Keys(args) => return credentials::cli::run(args).await,
        Command::Crds => resources::crds::files()?.into_iter().for_each(|(_, yaml)| println!("---\n{yaml}")),
    }
    Ok(std::process::ExitCode::SUCCESS)
}
