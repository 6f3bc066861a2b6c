//! The files in `examples/` are accepted as they are.

use std::path::Path;

use computer_operator::resources::crds;

use super::Server;

/// Strict: a misspelt field would be dropped, and the example would not do what its comment says. The classes are checked further by
/// `classes::a_class_is_checked_where_its_archive_pods_run`, which expects them to be accepted.
pub fn every_example_is_accepted(server: &Server) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut text = String::new();
    server.kubectl(&["create", "namespace", "examples"], "").unwrap();
    // In the order of their names: no controller counts here, so nothing that the quota counts is accepted after it.
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for path in files {
        let file = path.to_str().unwrap();
        let applied = server.kubectl(&["apply", "--server-side", "--validate=strict", "-n", "examples", "-f", file], "");
        applied.unwrap_or_else(|error| panic!("{file}: {error}"));
        let yaml = std::fs::read_to_string(&path).unwrap();
        assert!(yaml.starts_with("# "), "{file} does not begin with a comment that says what it is for");
        text += &yaml;
    }
    // The operator writes records itself.
    for kind in crds::all().into_iter().map(|crd| crd.spec.names.kind).filter(|kind| !kind.ends_with("Record")) {
        assert!(text.contains(&format!("\nkind: {kind}\n")), "examples/ has no {kind}");
    }
}
