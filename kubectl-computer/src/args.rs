//! The command line. The documentation of every flag is its help text.

use std::path::PathBuf;

use clap::{Args as Arguments, Parser, Subcommand, ValueEnum};
use computer_operator_api::SkippableStep;

/// What computers are doing, why they wait, and what to do. It uses only your own kubeconfig and rights.
#[derive(Debug, Parser)]
#[command(name = "kubectl-computer", bin_name = "kubectl computer", version, max_term_width = 110, after_help = EXAMPLES)]
pub struct Args {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:\n  kubectl computer list -A --blocked\n  kubectl computer why box -n team-a\n  \
                        kubectl computer delete box --wait --timeout 10m\n\nExit codes: 0 success, 1 error. Commands that wait also: 2 blocked, 3 timeout.";

/// Flags of every command, as kubectl has them.
#[derive(Clone, Debug, Default, Arguments)]
#[command(next_help_heading = "Flags of every command")]
pub struct Global {
    /// The kubeconfig file. Default: `$KUBECONFIG`, then ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The namespace of the computer. Default: that of the context.
    #[arg(long, short, global = true)]
    pub namespace: Option<String>,
    /// The user to impersonate.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// A group to impersonate; can be repeated.
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub as_group: Vec<String>,
    /// The namespace of the operator, where the records are. Default: where the records are found, or computer-operator-system.
    #[arg(long, global = true, env = "COMPUTER_OPERATOR_NAMESPACE", value_name = "NAMESPACE")]
    pub operator_namespace: Option<String>,
}

/// A form of output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// With more columns.
    Wide,
    /// For programs.
    Json,
}

/// A form of output that has no columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document, or one line for each change.
    Json,
}

/// How long to wait.
#[derive(Clone, Debug, Arguments)]
pub struct Waiting {
    /// Wait until it is done.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, for example 90s, 10m or 2h. At its end the exit code is 3, and nothing is stopped.
    #[arg(long, default_value = "15m", value_parser = duration, value_name = "DURATION")]
    pub timeout: std::time::Duration,
    /// Wait on although it is blocked. Without this flag the exit code is 2 as soon as it has been blocked for 30 seconds.
    #[arg(long = "keep-waiting")]
    pub keep_on: bool,
    /// Form of the output. With json there is one line for each change.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Format,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a computer waits for, since when, why, and the command to copy. Also for a computer that is gone.
    #[command(
        after_help = "Examples:\n  kubectl computer why box\n  kubectl computer why 0b4f1c1e-6f0e-4a39-9a3b-111111111111   # also after it is gone"
    )]
    Why {
        /// Name or UID of the computer.
        computer: String,
    },
    /// List computers: what each is doing and for how long, blocked ones first.
    #[command(visible_alias = "ls", after_help = "Examples:\n  kubectl computer list\n  kubectl computer list -A --blocked")]
    List {
        /// In all namespaces.
        #[arg(long, short = 'A')]
        all_namespaces: bool,
        /// Only computers that are blocked or in error.
        #[arg(long)]
        blocked: bool,
        /// Form of the output.
        #[arg(long, short, value_enum, default_value_t)]
        output: Output,
    },
    /// Show everything about one computer: machine, key, home, sessions, deletion, conditions and events.
    #[command(after_help = "Example:\n  kubectl computer status box -n team-a")]
    Status {
        /// Name of the computer.
        name: String,
    },
    /// Delete a computer: shows what is archived and what is destroyed, asks, and can wait with live steps.
    #[command(
        after_help = "Examples:\n  kubectl computer delete box --wait\n  kubectl computer delete box --yes --wait -o json   # in a script\n\n\
        Exit codes with --wait: 0 deleted, 1 error, 2 blocked for 30 seconds, 3 timeout or interrupted while the deletion continues."
    )]
    Delete {
        /// Name of the computer.
        name: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        /// Show what would be archived and destroyed, and delete nothing.
        #[arg(long)]
        preview: bool,
        /// How long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Create a computer.
    #[command(
        after_help = "Examples:\n  kubectl computer create box --wait\n  kubectl computer create box --class agents --size 20Gi --ttl 8h\n\n\
        Exit codes with --wait: 0 ready, 1 error, 2 blocked or in error for 30 seconds, 3 timeout."
    )]
    Create(Create),
    /// Stop the machine of a computer. Its home and its key are kept.
    Suspend {
        /// Name of the computer.
        name: String,
    },
    /// Start the machine of a suspended computer again.
    #[command(after_help = "Example:\n  kubectl computer resume box --wait")]
    Resume {
        /// Name of the computer.
        name: String,
        /// How long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Let one stuck deletion continue without a step: shows what is given up, and asks. For admins.
    #[command(
        after_help = "Example:\n  kubectl computer override box -n team-a --skip archive-sessions --reason 'volume lost with node n3, OPS-123'"
    )]
    Override {
        /// Name or UID of the computer.
        computer: String,
        /// The steps to give up.
        #[arg(long, required = true, value_delimiter = ',', value_parser = skippable, value_name = "STEP")]
        skip: Vec<SkippableStep>,
        /// Why, in 10 to 1024 characters. The receipt repeats it.
        #[arg(long)]
        reason: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        /// Print the object as YAML and create nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Run a command in the machine. The exit code is that of the command.
    #[command(after_help = "Examples:\n  kubectl computer exec box -- ls -la\n  kubectl computer exec box --wake -- git status")]
    Exec {
        /// Which machine.
        #[command(flatten)]
        machine: Machine,
        /// The command. Default: a shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Open a shell in the machine.
    Shell {
        /// Which machine.
        #[command(flatten)]
        machine: Machine,
    },
    /// Copy files from or to the machine. A path in the machine is NAME:PATH.
    #[command(
        after_help = "Examples:\n  kubectl computer cp box:/home/user/report.txt .\n  kubectl computer cp ./data box:/home/user/data"
    )]
    Cp {
        /// From where.
        from: String,
        /// To where.
        to: String,
        /// Start a suspended computer first.
        #[arg(long)]
        wake: bool,
    },
    /// Show the log of the machine.
    Logs {
        /// Name of the computer.
        name: String,
        /// Follow the log.
        #[arg(long, short)]
        follow: bool,
        /// The log of the container before its last restart.
        #[arg(long, short)]
        previous: bool,
        /// Only the last lines.
        #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
        tail: i64,
    },
    /// Forward local ports to the machine.
    #[command(after_help = "Example:\n  kubectl computer port-forward box 8080:80")]
    PortForward {
        /// Which machine.
        #[command(flatten)]
        machine: Machine,
        /// PORT or LOCAL:REMOTE.
        #[arg(required = true)]
        ports: Vec<String>,
    },
    /// Show the receipt of a deletion.
    Receipt {
        /// Name or UID of the computer.
        computer: String,
        /// Form of the output.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Read the archives of deleted computers, over the HTTP API.
    ///
    /// An incomplete answer is an error: lengths and digests are compared. That is not so with `kubectl exec` into the operator, which can lose the end
    /// of an output and exit with 0.
    #[command(
        after_help = "Examples:\n  kubectl computer archives ls -n team-a --api https://computers.example --service-account reader\n  \
        kubectl computer archives export box --file box.tar.zst"
    )]
    Archives(crate::archives::args::Archives),
    /// Show what belongs to a computer: pod, claim, volume, Secret, sessions, record.
    Tree {
        /// Name of the computer.
        name: String,
    },
    /// Check the installation, and which commands you have the rights for.
    Check,
    /// Write a support bundle, without Secrets, values of environment variables, or session content.
    #[command(after_help = "Example:\n  kubectl computer report box --file box-report.tar")]
    Report {
        /// Name or UID of the computer.
        computer: String,
        /// The tar file to write. It must not exist. Default: computer-NAME-report.tar
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Print a completion script, for example: kubectl computer completion bash
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write a man page for every command. For releases.
    #[command(hide = true)]
    Man {
        /// The folder, which must exist.
        folder: PathBuf,
    },
}

/// What to create.
#[derive(Debug, Arguments)]
pub struct Create {
    /// Name of the computer.
    pub name: String,
    /// Its ComputerClass. Default: the default class.
    #[arg(long)]
    pub class: Option<String>,
    /// Size of its home, for example 20Gi. Default: as the class says.
    #[arg(long)]
    pub size: Option<String>,
    /// A machine that you run yourself: only a key is issued.
    #[arg(long, conflicts_with_all = ["class", "size"])]
    pub byom: bool,
    /// Delete it after this time, for example 8h or 3d.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub ttl: Option<std::time::Duration>,
    /// How long to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// A machine to work in.
#[derive(Clone, Debug, Arguments)]
pub struct Machine {
    /// Name of the computer.
    pub name: String,
    /// Start a suspended computer first.
    #[arg(long)]
    pub wake: bool,
}

/// A time as kubectl takes it: `90s`, `10m`, `1h30m`; days, too.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().or_else(|error| match text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok()) {
            Some(days) => Ok(jiff::SignedDuration::from_hours(24 * i64::from(days))),
            None => Err(format!("not a time such as 90s, 10m, 2h or 3d: {error}")),
        })?;
    let seconds = u64::try_from(span.as_secs()).map_err(|_| "must not be negative".to_owned())?;
    if seconds == 0 { Err("must be at least one second".to_owned()) } else { Ok(std::time::Duration::from_secs(seconds)) }
}

fn skippable(text: &str) -> Result<SkippableStep, String> {
    serde_json::from_value(serde_json::json!(text))
        .map_err(|_| "must be stop-pods, archive-sessions, unreadable-files, delete-volumes or write-receipt".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn times_are_read_as_kubectl_reads_them() {
        let seconds = |text: &str| duration(text).map(|d| d.as_secs());
        assert_eq!([seconds("90s"), seconds("10m"), seconds("1h30m"), seconds("3d")], [Ok(90), Ok(600), Ok(5400), Ok(259_200)]);
        assert!(["", "0s", "-1m", "ten", "5"].iter().all(|text| seconds(text).is_err()));
    }

    #[test]
    fn only_steps_that_can_be_skipped_are_accepted() {
        assert_eq!(skippable("stop-pods"), Ok(SkippableStep::StopPods));
        assert!(skippable("revoke-credentials").is_err());
    }
}
