//! `computer-operator keys verify`: tells an admin whether a key authenticates, by the same reads as every request.

use std::process::ExitCode;

use tokio::io::AsyncReadExt;

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

/// Longest token that is read; a real one has fewer than 700 characters.
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
        Ok(client) => super::verify::verify(&client, &namespace, token.trim()).await.map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match answer {
        Ok(Ok(id)) => {
            println!("Authenticated as computer {}/{} ({})", id.namespace, id.name, id.uid);
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
