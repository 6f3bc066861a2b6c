//! The stages, in the order in which they fail fastest. `CONTRIBUTING.md` uses the same names.

/// One check.
#[derive(Debug)]
pub struct Stage {
    /// Stable: scripts, documents and people use it.
    pub name: &'static str,
    /// What a success proves.
    pub proves: &'static str,
    pub check: Check,
    /// What `--fast` runs; `None`: not part of the short loop.
    pub fast: Option<Check>,
    pub needs: Needs,
    /// Stages that must have passed before.
    pub after: &'static [&'static str],
    /// Whether it runs only if it is named: it would make every run much longer.
    pub named_only: bool,
}

/// How a stage checks.
#[derive(Debug)]
pub enum Check {
    /// A cargo command.
    Cargo(&'static [&'static str]),
    /// A cargo command that builds documentation; a warning is a failure.
    Docs(&'static [&'static str]),
    /// The dependencies against `deny.toml`.
    Deny,
    /// The book in `docs/book`.
    Book,
}

/// What the machine must have.
#[derive(Clone, Copy, Debug)]
pub enum Needs {
    /// Rust.
    Rust,
    /// Go as well: it builds the programs of a control plane. No root.
    Go,
    /// Go and root, for real nodes; where they can run, the command gets these arguments too.
    Node(&'static [&'static str]),
}

/// The simulator, with its own arguments after these.
macro_rules! simulator {
    ($($argument:literal),* $(,)?) => {
        Check::Cargo(&["test", "--features", "guards-off", "--test", "simulator", "--", $($argument),*])
    };
}

const fn stage(name: &'static str, proves: &'static str, check: Check) -> Stage {
    Stage { name, proves, check, fast: None, needs: Needs::Rust, after: &[], named_only: false }
}

/// Starts a cluster, through the xtask program itself.
const fn cluster(name: &'static str, proves: &'static str, arguments: &'static [&'static str], needs: Needs) -> Stage {
    Stage { name, proves, check: Check::Cargo(arguments), fast: None, needs, after: &["xtask-program"], named_only: false }
}

impl Stage {
    const fn fast(mut self, check: Check) -> Self {
        self.fast = Some(check);
        self
    }

    const fn named_only(mut self) -> Self {
        self.named_only = true;
        self
    }

    const fn needs(mut self, needs: Needs, after: &'static [&'static str]) -> Self {
        self.needs = needs;
        self.after = after;
        self
    }
}

const FORMAT: &[&str] = &["fmt", "--all", "--check"];
const CLIPPY: &[&str] = &["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];

pub const STAGES: &[Stage] = &[
    stage("format", "every file is formatted by rustfmt", Check::Cargo(FORMAT)).fast(Check::Cargo(FORMAT)),
    stage("deny", "licenses, bans and sources of all dependencies are as deny.toml allows", Check::Deny).fast(Check::Deny),
    stage("clippy", "no lint of clippy::pedantic fires, and every public item has documentation", Check::Cargo(CLIPPY))
        .fast(Check::Cargo(CLIPPY)),
    stage("docs", "the documentation builds without a warning, so every link in it resolves", {
        Check::Docs(&["doc", "--workspace", "--no-deps", "--document-private-items"])
    }),
    // With the feature of the simulator in the short loop, so that the operator is compiled once for both.
    stage("unit", "unit, property and model tests", Check::Cargo(&["test", "--workspace", "--lib", "--bins"])).fast(Check::Cargo(&[
        "test",
        "--workspace",
        "--lib",
        "--bins",
        "--features",
        "guards-off",
    ])),
    stage("generated", "crds/ and docs/openapi.json are what the code generates", {
        Check::Cargo(&["test", "--test", "crds", "--test", "openapi"])
    })
    .fast(Check::Cargo(&["test", "--features", "guards-off", "--test", "crds", "--test", "openapi"])),
    stage("book", "mdBook builds the book without a warning", Check::Book),
    stage("simulator", "simulated computers keep every promise from creation to deletion: a sample of five matrices of faults", {
        simulator!("--stages", "undisturbed,crash,lost,refused,recreated", "--thin", "8")
    })
    .fast(simulator!("--stages", "undisturbed,crash", "--thin", "50")),
    stage("simulator-adversary", "a sample of the others: stale caches, moves of tenants and admins, outages, lasting faults", {
        simulator!("--stages", "stale,unobserved,moves,down,absent,lasting", "--thin", "12")
    }),
    stage("simulator-soak", "many simulated computers keep every promise under random faults: one fixed seed", {
        simulator!("soak", "--computers", "20")
    }),
    stage("simulator-guards", "a simulated run breaks a promise when a guard is switched off, for each guard", simulator!("teeth")),
    stage("simulator-model", "the deletion keeps its promises in every order of events: model checking", simulator!("model")),
    stage("xtask-program", "the program that starts clusters builds", Check::Cargo(&["build", "--package", "xtask", "--bin", "xtask"])),
    cluster("s3", "archives work in a real S3 server", &["test", "--test", "s3"], Needs::Go),
    cluster("api-server", "the kinds work on a real API server", &["test", "--test", "api_server"], Needs::Go),
    stage("simulator-conformance", "the simulated API server answers as a real one", simulator!("conformance"))
        .needs(Needs::Go, &["xtask-program"]),
    cluster("api-keys", "ApiKeys work on a real control plane", &["test", "--test", "api_keys"], Needs::Go),
    cluster("http", "the HTTP API keeps its contract over real connections", &["test", "--test", "http"], Needs::Go),
    cluster("chart", "the chart renders, and a real API server accepts it", &["test", "--test", "chart"], Needs::Go),
    cluster(
        "xtask-lifecycle",
        "clusters start, are found again, and leave nothing behind",
        &["test", "--package", "xtask", "--test", "lifecycle"],
        Needs::Go,
    ),
    // Without a node the test harness names these tests as ignored.
    cluster(
        "xtask-nodes",
        "real nodes run pods, volumes and services",
        &["test", "--package", "xtask", "--test", "nodes"],
        Needs::Node(&["--", "--include-ignored"]),
    ),
    cluster(
        "chart-cluster",
        "the chart installs, upgrades and uninstalls on real nodes, which are drained, and under policies of others",
        &["test", "--test", "chart_cluster"],
        Needs::Node(&[]),
    ),
    cluster("real-cluster", "every promise holds on a real cluster", &["test", "--test", "real_cluster"], Needs::Node(&[])),
    cluster("csi", "custody works on volumes of a CSI driver that are attached to nodes", &["test", "--test", "csi"], Needs::Node(&[]))
        .named_only(),
    cluster(
        "outages",
        "deletions survive failures of the operator, the API server, etcd, the store and the clock",
        &["test", "--test", "outages"],
        Needs::Node(&[]),
    ),
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::process::Command;

    /// Every package of a build with its features, as cargo resolves them.
    fn packages(arguments: &[&str]) -> BTreeSet<String> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--locked", "--prefix", "none", "--no-dedupe", "--format", "{p} {f}"])
            .args(arguments)
            .current_dir(workspace)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Members of the workspace have features of their own in some tests.
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.contains(" (/")).map(str::to_owned).collect()
    }

    #[test]
    fn the_features_are_those_of_the_tests() {
        let program = packages(&["--package", "xtask", "--edges", "normal,build"]);
        let tests = packages(&["--workspace", "--edges", "normal,build,dev"]);
        let other: Vec<_> = program.difference(&tests).collect();
        assert!(
            other.is_empty(),
            "`cargo xtask` compiles these dependencies with other features than the tests do, so they are compiled twice: add the \
             missing features to xtask/Cargo.toml: {other:?}"
        );
    }
}
