//! The command line of `archives`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The archives of deleted computers.
#[derive(Debug, Args)]
pub struct Archives {
    /// The HTTP API.
    #[command(flatten)]
    pub api: ApiFlags,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where the HTTP API is, and whose token it gets. The token itself is never an argument, which other users of the machine could see.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "The HTTP API")]
pub struct ApiFlags {
    /// Its URL: `https://HOST`, or `http://` on this machine, for example of a port-forward. Ask the admin of the cluster for it.
    #[arg(long, global = true, env = "COMPUTER_API_URL", value_name = "URL")]
    pub api: Option<String>,
    /// A PEM file with the certificate authority of the API, if the system does not know it.
    #[arg(long, global = true, env = "COMPUTER_API_CA", value_name = "FILE")]
    pub api_ca: Option<PathBuf>,
    /// A file with the token: of an `ApiKey`, or a JWT that the API accepts. Default: the environment variable `COMPUTER_API_TOKEN`.
    #[arg(long, global = true, env = "COMPUTER_API_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Ask the cluster for a token of this ServiceAccount in the namespace, valid for an hour. You need `create` on `serviceaccounts/token`.
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "token_file")]
    pub service_account: Option<String>,
    /// The audience of that token (the chart's value `api.tokenAudience`).
    #[arg(long, global = true, default_value = "computer-operator", value_name = "AUDIENCE")]
    pub audience: String,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List deleted computers and their archives.
    Ls,
    /// Show what an archive contains, and what was not archived.
    Show {
        /// UID, name or id of the computer. Of several with a name, the one that was deleted last.
        computer: String,
        /// Print the document as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print one archived file. Nothing is printed before the session is complete and verified.
    Cat {
        /// UID, name or id of the computer.
        computer: String,
        /// The file, relative to the home.
        path: String,
    },
    /// Write an archive, or one session of it, to a file. Repeat the command to resume it.
    Export {
        /// UID, name or id of the computer.
        computer: String,
        /// Only this session (see `show`).
        #[arg(long)]
        session: Option<String>,
        /// The file. It must not exist. Default: NAME-UID.tar.zst
        #[arg(long, short)]
        file: Option<PathBuf>,
    },
    /// Read an archive completely and compare its length and digests. With a file: that it is the export of this archive.
    Verify {
        /// UID, name or id of the computer.
        computer: String,
        /// An exported archive.
        file: Option<PathBuf>,
    },
}
