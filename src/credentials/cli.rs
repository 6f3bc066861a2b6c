//! `computer-operator keys verify`: shows an admin whether a key authenticates, with the same reads as every request.

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
    /// Read a token from standard input and check whether it authenticates. Exit code 0: yes; 1: no; 2: unknown
    Verify {
        /// Namespace of the operator
        #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system")]
        namespace: String,
    },
}

/// Maximum number of bytes that are read; a real token has fewer than 1,000 characters.
const LONGEST: u64 = 4096;
/// Exit code of an unknown result: a script must not take an unavailable API server for a revoked key.
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
            eprintln!("Unknown: cannot verify the token: {error}. Retry when the API server is available");
            Ok(ExitCode::from(UNKNOWN))
        }
    }
}

/// The user that a key of a computer or a token of an `ApiKey` authenticates as.
async fn verify(client: &Client, namespace: &str, token: &str) -> Result<Result<String, Denied>, CallError> {
    if token.starts_with(super::api_key::PREFIX) {
        let answer = super::verify_api_key(client, namespace, token).await?;
        return Ok(answer.map(|v| format!("{} by ApiKey {}/{} ({})", v.id.user(), v.id.namespace, v.id.name, v.id.uid)));
    }
    let answer = super::verify(client, namespace, token).await?;
    Ok(answer.map(|id| format!("computer {}/{} ({})", id.namespace, id.name, id.uid)))
}
