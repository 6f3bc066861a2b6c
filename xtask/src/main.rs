//! `cargo xtask`: clusters, images and generated files. No shell scripts.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use xtask::cluster::{self, Cluster, Options, Profile};
use xtask::{bench, book, chart, image, isolation, node, process, tools};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start, find and stop real Kubernetes clusters.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Build the operator's container image and load it into a running cluster's nodes.
    Image(ImageArgs),
    /// Show the whole life of a computer on a real cluster, step by step.
    Demo(xtask::demo::Options),
    /// Measure the operator and what it is compared with in the same run, and write the tables in `docs/`.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Write the generated files: `crds/`, `docs/openapi.json`, `docs/reasons.md`, the chart's rules and README, and the book's reference.
    Generate,
    /// Build the book in `docs/book` with mdBook.
    Book,
    /// Build everything that a version consists of into one folder, with digests and a signature, or check such a folder. Publishes nothing.
    Release(xtask::release::Options),
    /// Run the checks that every change must pass: all stages, or some of them.
    Test(xtask::test::Options),
    /// Run the simulator for a long time: random faults, or every matrix in full.
    Soak(xtask::soak::Options),
}

#[derive(Subcommand)]
enum BenchCommand {
    /// GET and DELETE through the HTTP API.
    Http(bench::http::Options),
    /// Speed and cost of creating and deleting computers, beside a bare client that creates pods, or pods with claims.
    Lifecycle(bench::lifecycle::Options),
    /// An operator with many computers: memory, restart, change of leader, a deleted namespace, computers that cannot be provisioned.
    Scale(bench::scale::Options),
    /// Speed, CPU time and memory of archiving a home and reading it back, beside a pipe of standard tools, kopia and restic.
    Archive(bench::archive::Options),
    #[command(name = bench::archive::operator_side::COMMAND, hide = true)]
    ArchiveOperatorSide { store: String },
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Start a cluster, or find the running one, and print how to use it.
    Up(UpArgs),
    /// Stop a cluster and remove everything that belongs to it.
    Down(Which),
    /// Print the status of a cluster.
    Status(Which),
    /// Print lines for a shell: `eval "$(cargo xtask cluster env)"`.
    Env(Which),
    #[command(name = cluster::SUPERVISE, hide = true)]
    Supervise { dir: PathBuf },
    #[command(name = cluster::INSIDE, hide = true)]
    Inside { dir: PathBuf },
}

#[derive(Args)]
struct Which {
    /// Name of the cluster. Clusters with different names can run at the same time.
    #[arg(long, default_value = "dev")]
    name: String,
    /// Folder of the cluster. Default: a folder in the cache with the cluster's name.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Args)]
struct UpArgs {
    #[command(flatten)]
    which: Which,
    /// What to start. Default: real nodes if this machine can run them, otherwise only the control plane.
    #[arg(long, value_enum)]
    profile: Option<ProfileName>,
    /// Number of nodes: one (the default) or two real nodes, or any number of kwok nodes (default 5).
    #[arg(long)]
    nodes: Option<u32>,
    /// Write an audit log with one line for each request to this file.
    #[arg(long)]
    audit_log_path: Option<PathBuf>,
    /// Start nothing: use the cluster that this file names.
    #[arg(long, conflicts_with_all = ["profile", "nodes", "audit_log_path"])]
    kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig.
    #[arg(long, requires = "kubeconfig")]
    context: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProfileName {
    /// No nodes, no root.
    ControlPlane,
    /// Real nodes: containerd, kubelet, volumes. Needs root.
    Node,
    /// Simulated nodes: pods are only reported as running. No root.
    Kwok,
}

#[derive(Args)]
struct ImageArgs {
    #[command(flatten)]
    which: Which,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, rest)) if first == process::TIED_ARGUMENT => process::become_program(rest),
        Some((first, rest)) if first == isolation::INIT_ARGUMENT => isolation::init(rest),
        _ => run(),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8> {
    match Cli::parse().command {
        // No runtime and no threads: the processes that these two start die with the thread that started them.
        Command::Cluster(ClusterCommand::Supervise { dir }) => cluster::supervise(&dir)?,
        Command::Cluster(ClusterCommand::Inside { dir }) => cluster::inside(&dir)?,
        command => {
            // kube does not choose a TLS provider when two are linked.
            rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
            return tokio::runtime::Runtime::new()?.block_on(dispatch(command));
        }
    }
    Ok(0)
}

async fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Cluster(command) => return cluster(command).await,
        Command::Image(arguments) => load_image(&arguments.which)?,
        Command::Demo(options) => xtask::demo::run(workspace()?, options).await?,
        Command::Bench(command) => bench(command).await?,
        Command::Generate => generate()?,
        Command::Book => println!("{}", book::build::run(workspace()?)?.join("index.html").display()),
        Command::Release(options) => println!("{} verifies", xtask::release::run(workspace()?, &options)?.display()),
        Command::Test(options) => return Ok(u8::from(!xtask::test::run(workspace()?, &options)?)),
        Command::Soak(options) => xtask::soak::run(workspace()?, &options)?,
    }
    Ok(0)
}

async fn bench(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Http(options) => bench::http::run(workspace()?, &options).await,
        BenchCommand::Lifecycle(options) => bench::lifecycle::run(workspace()?, &options).await,
        BenchCommand::Scale(options) => bench::scale::run(workspace()?, &options).await,
        BenchCommand::Archive(options) => bench::archive::run(workspace()?, &options),
        BenchCommand::ArchiveOperatorSide { store } => bench::archive::operator_side::run(&store).await,
    }
}

async fn cluster(command: ClusterCommand) -> Result<u8> {
    match command {
        ClusterCommand::Up(arguments) => up(arguments).await?,
        ClusterCommand::Down(which) => {
            let found = cluster::down(&which.name, which.dir.as_deref())?;
            println!("{}", if found { "stopped and removed" } else { "no such cluster" });
        }
        ClusterCommand::Status(which) => {
            let status = cluster::status(&which.name, which.dir.as_deref())?;
            println!("{status}");
            return Ok(u8::from(!matches!(status, cluster::Status::Ready { .. })));
        }
        ClusterCommand::Env(which) => {
            print!("{}", cluster::environment(&which.name, which.dir.as_deref())?);
        }
        ClusterCommand::Supervise { dir } => cluster::supervise(&dir)?,
        ClusterCommand::Inside { dir } => cluster::inside(&dir)?,
    }
    Ok(0)
}

async fn up(arguments: UpArgs) -> Result<()> {
    if let Some(kubeconfig) = &arguments.kubeconfig {
        Cluster::existing(kubeconfig, arguments.context.as_deref()).await?;
        return Ok(());
    }
    let profile = profile(arguments.profile, arguments.nodes)?;
    let options = Options { dir: arguments.which.dir.clone(), audit_log: arguments.audit_log_path, ..Options::default() };
    let start = std::time::Instant::now();
    let cluster = Cluster::up_with(&arguments.which.name, profile, options).await?;
    println!(
        "ready after {} s: {profile}\n\n  export KUBECONFIG={}\n  {} get namespaces",
        start.elapsed().as_secs(),
        cluster.kubeconfig().display(),
        cluster.kubectl()?.display()
    );
    Ok(())
}

fn profile(name: Option<ProfileName>, nodes: Option<u32>) -> Result<Profile> {
    let name = name.unwrap_or_else(|| match node::obstacle() {
        None => ProfileName::Node,
        Some(obstacle) => {
            eprintln!("no real node can run here: {obstacle}\nstarting only the control plane");
            ProfileName::ControlPlane
        }
    });
    Ok(match name {
        ProfileName::ControlPlane => Profile::ControlPlane,
        ProfileName::Node => Profile::Node { count: nodes.unwrap_or(1).try_into().context("too many nodes")? },
        ProfileName::Kwok => Profile::Kwok { nodes: nodes.unwrap_or(5) },
    })
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is not in a workspace")
}

fn load_image(which: &Which) -> Result<()> {
    let folder = tools::cache_folder()?.join("images");
    let archive = image::operator(workspace()?, &folder)?;
    println!("{} as {}", archive.display(), image::OPERATOR);
    match cluster::status(&which.name, which.dir.as_deref())? {
        cluster::Status::Ready { dir, profile: Profile::Node { .. }, .. } => {
            node::import_image(&dir, &archive)?;
            println!("loaded into the cluster {}", which.name);
        }
        _ => println!("not loaded: no cluster {} with real nodes is running", which.name),
    }
    Ok(())
}

fn generate() -> Result<()> {
    let folder = workspace()?.join("crds");
    fs::create_dir_all(&folder)?;
    for (name, yaml) in computer_operator::resources::crds::files()? {
        fs::write(folder.join(name), yaml)?;
    }
    let docs = workspace()?.join("docs");
    fs::create_dir_all(&docs)?;
    fs::write(docs.join("openapi.json"), computer_operator::http::openapi::document()?)?;
    fs::write(docs.join("reasons.md"), computer_operator::resources::reasons::Reason::document())?;
    if let Some(text) = bench::performance::rendered(workspace()?)? {
        fs::write(docs.join("performance.md"), text)?;
    }
    for (name, text) in chart::generated()? {
        fs::write(chart::folder().join(name), text)?;
    }
    for (name, text) in book::generated(workspace()?)? {
        let path = book::source(workspace()?).join(name);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(path, text)?;
    }
    Ok(())
}
