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
    /// Read a token from standard input and say whether it authenticates. Exit code 1: it does not.
    Verify {
        /// Namespace of the operator.
        #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "computer-operator-system")]
        namespace: String,
    },
}

/// Runs `keys`.
///
/// # Errors
/// When the API server's answer is unknown.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Command::Verify { namespace } = args.command;
    let mut token = String::new();
    tokio::io::stdin().take(4096).read_to_string(&mut token).await?;
    let client = crate::runtime::client::connect().await?;
    match super::verify::verify(&client, &namespace, token.trim()).await? {
        Ok(id) => {
            println!("Authenticated as computer {}/{} ({})", id.namespace, id.name, id.uid);
            Ok(ExitCode::SUCCESS)
        }
        Err(denied) => {
            println!("Denied: {denied}");
            Ok(ExitCode::FAILURE)
        }
    }
}
