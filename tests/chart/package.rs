//! The chart as a release packs it.

use xtask::chart;
use xtask::release::{self, Source};

use crate::{SERVED, helm};

#[test]
fn helm_renders_the_packed_chart_as_it_renders_the_folder() {
    let files = release::pack::folder(&chart::folder(), "").unwrap();
    let source = Source { version: env!("CARGO_PKG_VERSION").to_owned(), commit: String::new(), seconds: 1_700_000_000 };
    let packed = release::pack_chart(files, &source).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(&packed.file);
    std::fs::write(&file, &packed.bytes).unwrap();
    let file = file.to_str().unwrap();
    let helm = helm();
    let rendered = helm.run(&[&["template", "co", file, "--namespace", "ops"], &SERVED[..]].concat()).unwrap();
    assert_eq!(rendered, helm.template("co", "ops", &SERVED).unwrap());
    let shown = helm.run(&["show", "chart", file]).unwrap();
    assert!(shown.contains("artifacthub.io/crds") && shown.contains("name: computer-operator"), "{shown}");
}
