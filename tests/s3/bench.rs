//! The measurement of `cargo xtask bench archive`, with small homes: the real programs on both sides of the ingest endpoint, and the same server.

use std::path::PathBuf;

use xtask::bench::archive::{Contender, Kind, Options, Programs, measure};
use xtask::tools::{self, Tool};

#[test]
fn the_operator_and_the_pipe_are_measured() {
    let versitygw = tools::ensure(&[Tool::VersityGw]).unwrap().path(Tool::VersityGw).to_owned();
    let (operator, xtask) = (env!("CARGO_BIN_EXE_computer-operator").into(), xtask::process::own_program().unwrap());
    let programs = Programs { operator, xtask, versitygw, kopia: PathBuf::new(), restic: PathBuf::new() };
    let tree = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/src/archive").into());
    let (only, home) = (vec![Contender::Operator, Contender::Pipe], vec![Kind::Text, Kind::Noise, Kind::Tree]);
    let options = Options { size: 5_000_000, rounds: 1, only, home, tree, built: true };
    let lines = measure(&programs, &options).unwrap();
    assert_eq!(lines.len(), 6);
    for line in &lines {
        assert!(line.speed() > 0.0 && line.stored > line.bytes / 10, "{line:?}");
        let expected: &[&str] = match line.contender {
            Contender::Operator => &["archive pod", "operator"],
            _ => &["tar", "zstd", "tee", "sha256sum", "split, curl", "curl"],
        };
        for name in expected {
            assert!(line.used.iter().any(|usage| usage.name == *name), "{name}: {line:?}");
        }
        assert!(line.used.iter().any(|usage| usage.peak > 1 << 20), "no peak was read: {line:?}");
    }
}
