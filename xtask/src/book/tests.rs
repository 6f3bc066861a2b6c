//! The book is complete, its generated pages are current, and every link of the documents leads somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use computer_operator::resources::reasons::Reason;

use super::links::{self, Files};
use super::*;

const BOOK: &str = "docs/book/src";

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(name: &str) -> String {
    fs::read_to_string(workspace().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn collect(folder: &Path, all: &mut Files) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(workspace()).unwrap().to_owned();
        let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
        if hidden || name == Path::new("target") || name == Path::new("src") || name == Path::new("tests") {
            continue;
        }
        all.all.insert(name.clone());
        if path.is_dir() {
            collect(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            all.texts.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

fn files() -> Files {
    let mut all = Files::default();
    collect(workspace(), &mut all);
    all
}

#[test]
fn the_generated_pages_are_committed() {
    for (name, text) in generated(workspace()).unwrap() {
        assert!(read(&format!("{BOOK}/{name}")) == text, "{BOOK}/{name} is out of date: run `cargo xtask generate`");
    }
}

#[test]
fn every_link_and_anchor_leads_somewhere() {
    let all = files();
    let mut wrong = Vec::new();
    // The notes become a part of reasons.md, from whose place their links are resolved.
    for path in all.texts.keys().filter(|path| !path.ends_with("notes-on-reasons.md")) {
        let book = Path::new(BOOK);
        wrong.extend(all.check(path, path.starts_with(book).then_some(book)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(all.texts.len() > 40, "the documents are elsewhere");
}

#[test]
fn the_summary_lists_every_chapter_once() {
    let listed = links::chapters(&read(&format!("{BOOK}/SUMMARY.md")));
    let unique: BTreeSet<PathBuf> = listed.iter().map(|chapter| Path::new(BOOK).join(chapter)).collect();
    assert_eq!(unique.len(), listed.len(), "a chapter is listed twice");
    let exist: BTreeSet<PathBuf> =
        files().texts.into_keys().filter(|path| path.starts_with(BOOK) && !path.ends_with("SUMMARY.md")).collect();
    let missing: Vec<_> = exist.difference(&unique).collect();
    assert!(missing.is_empty(), "SUMMARY.md does not list {missing:?}");
    let absent: Vec<_> = unique.difference(&exist).collect();
    assert!(absent.is_empty(), "SUMMARY.md lists {absent:?}, which do not exist");
}

#[test]
fn every_reason_has_a_section_and_every_reason_of_a_stuck_deletion_a_remedy() {
    let page = read(&format!("{BOOK}/reasons.md"));
    for reason in Reason::ALL {
        assert!(page.contains(&format!("\n## {reason}\n")), "{reason} has no section");
    }
    let notes = read("docs/book/notes-on-reasons.md");
    let notes = pages::notes(&notes).unwrap();
    let sources: Vec<String> = ["src/computer/deletion", "src/computer/stop_pod.rs", "src/computer/failed_request.rs"]
        .iter()
        .flat_map(|place| match workspace().join(place) {
            folder if folder.is_dir() => super::sources(&folder).unwrap(),
            file => vec![fs::read_to_string(file).unwrap()],
        })
        .collect();
    let blocking = pages::blocking(&sources.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    assert!(blocking.len() > 25, "{blocking:?}");
    for reason in blocking {
        let note = notes.get(reason).unwrap_or_else(|| panic!("docs/book/notes-on-reasons.md has no section {reason}"));
        assert!(note.contains("```") && note.contains("**Lost:**"), "{reason}: a command, and what is lost");
    }
}

#[test]
fn every_metric_is_explained() {
    let page = read(&format!("{BOOK}/metrics.md"));
    for metric in metrics::registered(&super::sources(&workspace().join("src")).unwrap()).unwrap() {
        assert!(!metric.help.is_empty() && page.contains(&metric.name), "docs/book/src/metrics.md does not mention {}", metric.name);
    }
}

#[test]
fn every_alert_has_a_runbook_with_the_same_parts_and_a_url() {
    let template = read("charts/computer-operator/templates/alerts.yaml");
    let served = read("src/http/runbooks.rs");
    let names: BTreeSet<&str> = template.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    for name in &names {
        let text = read(&format!("{BOOK}/runbooks/{name}.md"));
        assert!(text.starts_with(&format!("# {name}\n")), "{name}: the title");
        for part in ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"] {
            assert!(text.contains(&format!("\n{part}\n")), "{name} has no {part}");
        }
        assert!(text.contains("```"), "{name} has no command");
        assert!(served.contains(&format!("runbooks/{name}.md")), "src/http/runbooks.rs does not serve {name}");
        assert!(template.contains(&format!("\"%s%s\" . \"{name}\"")), "{name} has no runbook_url");
    }
    let exist = fs::read_dir(workspace().join(BOOK).join("runbooks")).unwrap();
    for name in exist.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()) {
        assert!(names.contains(name.as_str()) || name == "index", "there is no alert {name}");
    }
}

#[test]
fn every_value_and_every_field_has_a_text() {
    let text = read("charts/computer-operator/values.yaml");
    let values = crate::chart::readme::rows(&text).unwrap();
    let mut leaves = Vec::new();
    paths(&serde_yaml_ng::from_str(&text).unwrap(), "", &mut leaves);
    assert!(leaves.len() > 50, "{leaves:?}");
    for leaf in leaves {
        let row = values.iter().find(|row| leaf == row.path || leaf.starts_with(&format!("{}.", row.path)));
        assert!(row.is_some_and(|row| row.text.len() > 10), "values.yaml: {leaf} has no text");
    }
    pages::kinds(&computer_operator::resources::crds::files().unwrap()).unwrap();
}

/// Paths of all values; an empty object is one value.
fn paths(value: &serde_yaml_ng::Value, path: &str, all: &mut Vec<String>) {
    match value.as_mapping().filter(|map| !map.is_empty()) {
        Some(map) => map.iter().for_each(|(key, inner)| paths(inner, &format!("{path}.{}", key.as_str().unwrap()), all)),
        None => all.push(path.trim_start_matches('.').to_owned()),
    }
}

#[test]
fn a_field_without_a_description_is_an_error_that_names_it() {
    let definition = |text: &str| {
        let field = format!("{{type: string{text}}}");
        let schema = format!("{{description: A, properties: {{spec: {{properties: {{a: {field}}}}}}}}}");
        format!("spec: {{names: {{kind: K, plural: ks}}, scope: Cluster, versions: [{{schema: {{openAPIV3Schema: {schema}}}}}]}}")
    };
    let page = pages::kinds(&[("k.yaml".to_owned(), definition(", description: \"One | <b>.\", default: x"))]).unwrap();
    assert!(page.contains("| `spec.a` | string | `\"x\"` | One \\| &lt;b>. |"), "{page}");
    let error = pages::kinds(&[("k.yaml".to_owned(), definition(""))]).unwrap_err().to_string();
    assert_eq!(error, "k.yaml: spec.a has no description");
}

#[test]
fn every_command_of_the_program_has_a_section() {
    let program = read("src/main.rs");
    let (_, list) = program.split_once("enum Command {").unwrap();
    let page = pages::commands();
    let lines = list.split("\n}").next().unwrap().lines().map(str::trim);
    let variants = lines.filter(|line| !line.starts_with("//") && !line.starts_with("#[") && !line.is_empty());
    for variant in variants {
        let mut name = String::new();
        for c in variant.chars().take_while(char::is_ascii_alphanumeric) {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(c.to_ascii_lowercase());
        }
        assert!(page.contains(&format!("\n## computer-operator {name}\n")), "{variant}");
    }
}

/// The chapters that include a page of the repository lie as it does, so that the links of that page lead to other chapters.
#[test]
fn every_document_is_in_the_book() {
    let all = files();
    let summary = read(&format!("{BOOK}/SUMMARY.md"));
    for path in all.texts.keys().filter(|path| path.parent() == Some(Path::new("docs"))) {
        assert!(summary.contains(&format!("]({})", path.display())), "{} is not in the book", path.display());
    }
}
