//! `kubectl-computer`: a kubectl plugin for people who use computers or are paged for them. It shows what each computer is doing, why it waits
//! and what to do, and runs the everyday commands.
//!
//! It uses only the kubeconfig and the rights of its caller. It must never read or print a Secret or a token, never write what belongs to the
//! operator (a status, a finalizer, a record), and never show a string of the API server that could control the terminal. What it shows is
//! decided by pure functions from what was observed; `cluster` makes the requests, and `screen` writes.

mod archives;
mod args;
mod check;
mod cluster;
mod create;
mod delete;
mod list;
mod machine;
mod manual;
mod observe;
mod outcome;
mod overrides;
mod power;
mod preview;
mod progress;
mod receipt;
mod report;
mod rights;
mod screen;
mod status;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_objects;
mod text;
mod tree;
mod wait;
mod why;

use anyhow::Result;
use clap::{CommandFactory as _, Parser as _};

use crate::args::{Args, Command};
use crate::cluster::Cluster;
use crate::outcome::Outcome;
use crate::why::Verdict;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let args = Args::parse();
    match Box::pin(run(args)).await {
        Ok(_) if screen::lost() => {
            screen::note("error: the output is not complete: standard output could not be written. Is the disk full?");
            Outcome::Failed.code().into()
        }
        Ok(outcome) => outcome.code().into(),
        Err(error) => {
            screen::note(&format!("error: {}", chain(&error)));
            Outcome::Failed.code().into()
        }
    }
}

/// An error with its causes, on one line, without saying anything twice.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

async fn run(args: Args) -> Result<Outcome> {
    if let Command::Completion { shell } = args.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), "kubectl-computer", &mut script);
        screen::raw(&script)?;
        return Ok(Outcome::Done);
    }
    if let Command::Man { folder } = &args.command {
        return manual::write(folder).map(|()| Outcome::Done);
    }
    if let Command::Archives(archives) = &args.command {
        return archives::run(&args.global, archives).await.map(|()| Outcome::Done);
    }
    let cluster = Cluster::connect(&args.global).await?;
    match args.command {
        Command::Delete { name, yes, preview, waiting } => Box::pin(delete::run(&cluster, &name, yes, preview, &waiting)).await,
        Command::Create(create) => create::run(&cluster, &create).await,
        Command::Resume { name, waiting } => power::resume(&cluster, &name, &waiting).await,
        Command::Why { computer } => why(&cluster, &computer).await,
        other => show(&cluster, other).await.map(|()| Outcome::Done),
    }
}

/// The commands that only succeed or fail.
async fn show(cluster: &Cluster, command: Command) -> Result<()> {
    match command {
        Command::List { all_namespaces, blocked, output } => list::run(cluster, all_namespaces, blocked, output).await,
        Command::Status { name } => status::run(cluster, &name).await,
        Command::Suspend { name } => power::suspend(cluster, &name).await,
        Command::Override { computer, skip, reason, yes, dry_run } => {
            overrides::run(cluster, &computer, &skip, &reason, yes, dry_run).await
        }
        Command::Exec { machine, command } => machine::exec(cluster, &machine, &command).await,
        Command::Shell { machine } => machine::exec(cluster, &machine, &[]).await,
        Command::Cp { from, to, wake } => machine::cp(cluster, &from, &to, wake).await,
        Command::Logs { name, follow, previous, tail } => machine::logs(cluster, &name, follow, previous, tail).await,
        Command::PortForward { machine, ports } => machine::port_forward(cluster, &machine, &ports).await,
        Command::Receipt { computer, output } => receipt::run(cluster, &computer, output).await,
        Command::Tree { name } => tree::run(cluster, &name).await,
        Command::Check => check::run(cluster).await,
        Command::Report { computer, file } => report::run(cluster, &computer, file).await,
        Command::Why { .. }
        | Command::Delete { .. }
        | Command::Create(_)
        | Command::Resume { .. }
        | Command::Completion { .. }
        | Command::Man { .. }
        | Command::Archives(_) => Ok(()),
    }
}

/// `why`. A question that cannot be answered is an error for a script.
async fn why(cluster: &Cluster, computer: &str) -> Result<Outcome> {
    let why = why::explain(&cluster.observe(computer).await?);
    screen::out(&why.text());
    Ok(if why.verdict == Verdict::Unknown { Outcome::Failed } else { Outcome::Done })
}
