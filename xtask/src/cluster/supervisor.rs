//! The supervisor of a running cluster. It starts every program, reports its progress as lines on standard output to the command that
//! started it, and watches the programs. When it dies, by any signal, all its programs die too.
//!
//! Its standard input determines its lifetime: if it ends before [`KEEP`] was read, the starter has exited, and the cluster and its folder
//! are removed. It must never outlive a starter that did not send [`KEEP`].

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::folder::{Folder, Spec};
use super::{INSIDE, Profile, SUPERVISE};
use crate::control_plane::{self, Addresses, Ports, Settings};
use crate::isolation::{self, Isolated};
use crate::kwok;
use crate::node::{self, KubeletIdentity, Nodes};
use crate::pki::Pki;
use crate::process::{Children, own_program};
use crate::tools::Tool;

/// The line that the starter writes when the cluster must outlive it.
pub(super) const KEEP: u8 = b'k';
/// First word of the last line.
pub(super) const READY: &str = "ready";
/// First word of the last line, followed by the reason.
pub(super) const FAILED: &str = "failed: ";

/// How often the programs are checked.
const WATCH: Duration = Duration::from_millis(200);

/// Runs the supervisor. Returns only when the cluster has ended.
///
/// # Errors
/// When the cluster cannot be started or one of its programs ends.
pub fn supervise(dir: &Path) -> Result<()> {
    let folder = Folder::new("supervised", Some(dir))?;
    let _running = folder.become_supervisor()?;
    let spec = folder.read_spec()?.context("no cluster here")?;
    end_with_starter(&folder);
    let ended = match start(&folder, &spec) {
        Ok(mut cluster) => {
            fs::write(folder.ready_file(), "")?;
            say(READY);
            cluster.watch()
        }
        Err(error) => Err(error),
    };
    // The starter may have exited; then the line is lost.
    let Err(error) = ended else { return Ok(()) };
    say(&format!("{FAILED}{}", format!("{error:#}").replace('\n', " ")));
    Err(error)
}

/// Writes one line to the starter, if it is still running.
fn say(line: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "{line}").and_then(|()| output.flush()).ok();
}

/// Ends the cluster when standard input ends without [`KEEP`].
fn end_with_starter(folder: &Folder) {
    let dir = folder.path().to_owned();
    thread::spawn(move || {
        let mut byte = [0];
        if std::io::stdin().read(&mut byte).ok() == Some(1) && byte[0] == KEEP {
            return;
        }
        tracing::info!("the command that started the cluster has exited: removing the cluster");
        // In another process: this one and all its programs must be dead before the folder can be removed.
        let log = Stdio::null;
        let down = own_program().and_then(|program| {
            Ok(Command::new(program)
                .args(["cluster", "down", "--dir"])
                .arg(&dir)
                .process_group(0)
                .stdin(log())
                .stdout(log())
                .stderr(log())
                .spawn()?)
        });
        if let Err(error) = down {
            tracing::error!("the folder {} is not removed: {error:#}", dir.display());
        }
        std::process::exit(1);
    });
}

/// The programs of the supervisor.
enum Held {
    /// The programs, and whether killed ones are restarted.
    Host(Children, bool),
    Namespaces(Isolated),
}

impl Held {
    /// Returns when a program has ended unexpectedly.
    fn watch(&mut self) -> Result<()> {
        match self {
            Self::Host(children, revive) => watch(children, *revive),
            Self::Namespaces(isolated) => {
                isolated.wait()?;
                bail!("the cluster's namespaces have ended: see logs/supervisor.log")
            }
        }
    }
}

/// Returns when a program has ended unexpectedly. `revive`: killed programs are restarted.
fn watch(children: &mut Children, revive: bool) -> Result<()> {
    loop {
        if revive {
            children.revive()?;
        }
        if let Some(ended) = children.ended()? {
            bail!("{ended}");
        }
        thread::sleep(WATCH);
    }
}

fn start(folder: &Folder, spec: &Spec) -> Result<Held> {
    match spec.profile {
        Profile::ControlPlane => start_on_host(folder, spec).map(|children| Held::Host(children, spec.revive)),
        Profile::Kwok { nodes } => {
            let mut children = start_on_host(folder, spec)?;
            kwok::start(
                &kwok::Settings {
                    dir: folder.path(),
                    lock: &folder.running_file(),
                    bins: &spec.bins,
                    kubeconfig: &folder.kubeconfig(),
                    port: read_ports(folder)?.kwok,
                    nodes,
                },
                &mut children,
                &|line| say(line),
            )?;
            Ok(Held::Host(children, spec.revive))
        }
        Profile::Node { .. } => start_namespaces(folder).map(Held::Namespaces),
    }
}

fn read_ports(folder: &Folder) -> Result<Ports> {
    Ok(serde_json::from_slice(&fs::read(folder.path().join("ports.json"))?)?)
}

/// The control plane as processes of the machine, on loopback.
fn start_on_host(folder: &Folder, spec: &Spec) -> Result<Children> {
    let addresses = Addresses { ports: Ports::free()?, node_ip: None };
    fs::write(folder.path().join("ports.json"), serde_json::to_vec(&addresses.ports)?)?;
    let pki = Pki::create_or_load(&folder.path().join("pki"), None)?;
    write_kubeconfig(&pki, folder, &addresses.server_url())?;
    control_plane::start(&settings(folder, spec, addresses, &folder.running_file()), &spec.bins, &pki, &say)
}

fn write_kubeconfig(pki: &Pki, folder: &Folder, url: &str) -> Result<()> {
    pki.client_kubeconfig("admin", &["system:masters"], url, &folder.kubeconfig())
}

fn settings<'a>(folder: &'a Folder, spec: &'a Spec, addresses: Addresses, lock: &'a Path) -> Settings<'a> {
    Settings { dir: folder.path(), lock, addresses, audit_log: spec.audit_log.as_deref(), controller_manager: &spec.controller_manager }
}

/// Starts [`inside`] in separate namespaces, forwards its lines, and makes its API server accessible from the machine.
fn start_namespaces(folder: &Folder) -> Result<Isolated> {
    let pki = Pki::create_or_load(&folder.path().join("pki"), Some(isolation::node_ip()))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("https://{}", listener.local_addr()?);
    write_kubeconfig(&pki, folder, &url)?;
    let progress = folder.path().join("progress");
    File::create(&progress)?;
    let log = File::options().append(true).create(true).open(folder.logs().join("supervisor.log"))?;
    let arguments = ["cluster".into(), INSIDE.into(), folder.path().into()];
    let mut isolated = isolation::start(folder.path(), &own_program()?, &arguments, &log)?;
    let mut shown = 0;
    loop {
        let ended = isolated.has_ended();
        let lines = fs::read_to_string(&progress)?;
        // A line is complete only with its newline.
        let whole = lines.rfind('\n').map_or(0, |end| end + 1);
        for line in lines[shown..whole].lines() {
            if let Some(reason) = line.strip_prefix(FAILED) {
                bail!("{reason}");
            }
            if line == READY {
                let inside = SocketAddr::from(([127, 0, 0, 1], Ports::USUAL.apiserver));
                isolation::forward(folder.path(), listener, inside)?;
                return Ok(isolated);
            }
            say(line);
        }
        shown = whole;
        if ended {
            isolated.wait()?;
            bail!("the cluster's namespaces have ended while starting: see logs/supervisor.log");
        }
        thread::sleep(WATCH);
    }
}

/// Runs the supervisor inside the namespaces: control plane and nodes. Returns only when one of them has ended.
///
/// # Errors
/// When the cluster cannot be started or one of its programs ends.
pub fn inside(dir: &Path) -> Result<()> {
    let folder = Folder::new("inside", Some(dir))?;
    let spec = folder.read_spec()?.context("no cluster here")?;
    let mut file = File::options().append(true).open(folder.path().join("progress"))?;
    let report = |line: &str| {
        writeln!(&file, "{line}").ok();
    };
    let mut children = match start_inside(&folder, &spec, &report) {
        Ok(children) => children,
        Err(error) => {
            report(&format!("{FAILED}{}", format!("{error:#}").replace('\n', " ")));
            return Err(error);
        }
    };
    writeln!(file, "{READY}")?;
    watch(&mut children, spec.revive)
}

fn start_inside(folder: &Folder, spec: &Spec, progress: &dyn Fn(&str)) -> Result<Children> {
    let Profile::Node { count } = spec.profile else { bail!("this profile has no nodes of its own") };
    node::set_up_network(count.into())?;
    let addresses = Addresses { ports: Ports::USUAL, node_ip: Some(isolation::node_ip()) };
    let pki = Pki::create_or_load(&folder.path().join("pki"), Some(isolation::node_ip()))?;
    let lock = folder.running_file();
    let settings = settings(folder, spec, addresses, &lock);
    let mut children = control_plane::start(&settings, &spec.bins, &pki, progress)?;
    let nodes = nodes(folder, spec, &settings, &pki, count)?;
    let running = node::start(&nodes, progress)?;
    children.running.extend(running.0);
    Ok(children)
}

/// Credentials and programs for the nodes.
fn nodes(folder: &Folder, spec: &Spec, settings: &Settings<'_>, pki: &Pki, count: u8) -> Result<Nodes> {
    let url = settings.addresses.server_url();
    let dir = folder.path();
    let proxy_kubeconfig = dir.join("kube-proxy.kubeconfig");
    pki.client_kubeconfig("system:kube-proxy", &[], &url, &proxy_kubeconfig)?;
    let mut kubelets = Vec::new();
    for (name, ip) in node::NAMES.iter().zip(isolation::NODE_IPS).take(count.into()) {
        let kubeconfig = dir.join(format!("{name}.kubeconfig"));
        let user = format!("system:node:{name}");
        pki.client_kubeconfig(&user, &["system:nodes"], &url, &kubeconfig)?;
        let pair = pki.node_cert(name, IpAddr::V4(ip))?;
        kubelets.push(KubeletIdentity { kubeconfig, certificate: pair.certificate, key: pair.key });
    }
    let program = |tool| spec.bins.path(tool).to_owned();
    Ok(Nodes {
        cluster: folder.cgroup(&spec.name),
        dir: dir.to_owned(),
        programs: node::Programs {
            kubelet: program(Tool::Kubelet),
            kube_proxy: program(Tool::KubeProxy),
            kubectl: program(Tool::Kubectl),
            local_path_provisioner: program(Tool::LocalPath),
        },
        client_ca: pki.ca(),
        admin_kubeconfig: settings.admin_kubeconfig(),
        proxy_kubeconfig,
        kubelets,
        images: spec.images.clone(),
    })
}

/// Starts the supervisor of the cluster in `folder`, in a separate process group, so that Ctrl-C only stops the starter.
pub(super) fn spawn(folder: &Folder) -> Result<std::process::Child> {
    let log = File::create(folder.logs().join("supervisor.log"))?;
    Command::new(own_program()?)
        .args(["cluster", SUPERVISE])
        .arg(folder.path())
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start the supervisor")
}
