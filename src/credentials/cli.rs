//! `computer-operator keys verify`: tells an admin whether a key authenticates, by the same reads as every request.

use std::process::ExitCode;

use kube::Client;
use tokio::io::AsyncReadExt;

use super::Denied;
use crate::runtime::client::CallError;

/// Arguments of `keys`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read a token from standard input and say whether it authenticates. Exit code 0: it does; 1: it does not; 2: not known.
    Verify {
        /// Namespace of the operator.
        #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system")]
        namespace: String,
    },
}

/// Longest token that is read; a real one has fewer than 1,000 characters.
const LONGEST: u64 = 4096;
/// Exit code of "not known": a script must not take an API server that is down for a dead key.
const UNKNOWN: u8 = 2;

/// Runs `keys`.
///
/// # Errors
/// When standard input cannot be read.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Command::Verify { namespace } = args.command;
    let mut token = String::new();
    tokio::io::stdin().take(LONGEST).read_to_string(&mut token).await?;
    let answer = match crate::runtime::client::connect().await {
        Ok(client) => verify(&client, &namespace, token.trim()).await.map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match answer {
        Ok(Ok(who)) => {
            println!("Authenticated as {who}");
            Ok(ExitCode::SUCCESS)
        }
        Ok(Err(denied)) => {
            println!("Denied: {denied}");
            Ok(ExitCode::FAILURE)
        }
        Err(error) => {
            eprintln!("Not known, and so not authenticated: {error}");
            Ok(ExitCode::from(UNKNOWN))
        }
    }
}

/// Who a token of either kind authenticates as.
async fn verify(client: &Client, namespace: &str, token: &str) -> Result<Result<String, Denied>, CallError> {
    if token.starts_with(super::api_key::PREFIX) {
        let answer = super::verify_api_key(client, namespace, token).await?;
        return Ok(answer.map(|v| format!("{} by ApiKey {}/{} ({})", v.id.user(), v.id.namespace, v.id.name, v.id.uid)));
    }
    let answer = super::verify(client, namespace, token).await?;
    Ok(answer.map(|id| format!("computer {}/{} ({})", id.namespace, id.name, id.uid)))
}
