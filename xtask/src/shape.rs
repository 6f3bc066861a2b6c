//! The shape of the code: which layer may use which, and how long files and functions may be. There are no exceptions. Pure functions, and
//! tests that apply them to the repository. They read text, not syntax trees, and rely on rustfmt's layout, which the `format` stage checks.

use std::collections::{BTreeMap, BTreeSet};

/// Most lines of a file.
pub const FILE: usize = 400;
/// Most lines of a function.
pub const FUNCTION: usize = 50;

/// The layer of each module, from the numbered list in the documentation of `src/lib.rs`: 1 is the lowest.
pub fn layers(lib: &str) -> BTreeMap<String, usize> {
    let mut layers = BTreeMap::new();
    for line in lib.lines() {
        let Some((number, modules)) = line.strip_prefix("//! ").and_then(|l| l.split_once(". ")) else { continue };
        let Ok(number) = number.parse() else { continue };
        layers.extend(modules.split('`').skip(1).step_by(2).map(|module| (module.to_owned(), number)));
    }
    layers
}

/// The module of a file below `src` and how many `super::` lead from it to the crate's root.
fn place(path: &str) -> (&str, usize) {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    (path.split('/').next().unwrap_or(path), path.split('/').count())
}

/// What a file uses that its layer must not use. `path` begins with `src/`.
pub fn upward(layers: &BTreeMap<String, usize>, path: &str, text: &str) -> Vec<String> {
    let (module, depth) = place(path);
    let Some(own) = layers.get(module) else { return vec![format!("{path}: `{module}` has no layer in src/lib.rs")] };
    let used = uses(text, depth);
    let wrong = used.iter().filter(|used| *used != module && layers.get(*used).is_some_and(|layer| layer >= own));
    wrong.map(|used| format!("{path}: `{module}` (layer {own}) uses `{used}` (layer {})", layers[used])).collect()
}

/// Modules of the crate's root that a text names outside of tests.
fn uses(text: &str, depth: usize) -> BTreeSet<String> {
    let code = without_tests(text);
    let above = "super::".repeat(depth);
    let mut used = BTreeSet::new();
    for root in ["crate::", &above] {
        for (at, _) in code.match_indices(root).filter(|(at, _)| !code[..*at].ends_with("::")) {
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => used.extend(members(group)),
                None => used.extend([word(rest)]),
            }
        }
    }
    used
}

/// The first word of each member of a group, up to its end.
fn members(group: &str) -> Vec<String> {
    let (mut depth, mut begins, mut words) = (0, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            '{' => depth += 1,
            ',' if depth == 0 => begins = true,
            c if begins && !c.is_whitespace() => {
                words.push(word(&group[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    words
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// The code without comments and without what only tests compile.
fn without_tests(text: &str) -> String {
    let (mut code, mut lines) = (String::new(), text.lines());
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        if trimmed == "#[cfg(test)]" {
            let end = format!("{}}}", &line[..line.len() - trimmed.len()]);
            let item = lines.by_ref().find(|line| !line.trim_start().starts_with("#[")).unwrap_or_default();
            if !item.ends_with(';') && !item.ends_with('}') {
                lines.by_ref().find(|line| *line == end);
            }
        } else if !trimmed.starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// What is too long in a file.
pub fn too_long(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut wrong = Vec::new();
    if lines.len() > FILE {
        wrong.push(format!("{path} has {} lines, more than {FILE}", lines.len()));
    }
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function(line) else { continue };
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let length = if line.ends_with(['}', ';']) { 1 } else { lines[at..].iter().take_while(|line| **line != end).count() + 1 };
        if length > FUNCTION {
            wrong.push(format!("{path}:{}: `{name}` has {length} lines, more than {FUNCTION}", at + 1));
        }
    }
    wrong
}

/// The name of the function that begins on this line.
fn function(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let qualifier = |word: &&str| !matches!(*word, "const" | "async" | "unsafe" | "default") && !word.starts_with("pub");
    (words.find(qualifier)? == "fn").then(|| words.next().map(word))?
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    /// Path from the root of the repository, and text, of each Rust file in a directory.
    fn sources(directory: &str) -> Vec<(String, String)> {
        let (root, mut found, mut open) = (root(), Vec::new(), vec![root().join(directory)]);
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                    found.push((name, std::fs::read_to_string(path).unwrap()));
                }
            }
        }
        found
    }

    #[test]
    fn no_layer_uses_a_layer_above_it() {
        let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
        let (layers, sources) = (layers(&lib), sources("src"));
        let test = |path: &str| path.contains("/tests/") || path.ends_with("tests.rs") || path.ends_with("/test_relay.rs");
        let code = sources.iter().filter(|(path, _)| !test(path) && !matches!(path.as_str(), "src/lib.rs" | "src/main.rs"));
        let wrong: Vec<String> = code.flat_map(|(path, text)| upward(&layers, path, text)).collect();
        assert!(layers.len() > 8 && wrong.is_empty(), "{wrong:#?}");
    }

    /// A computer is provisioned without any knowledge of its deletion. Both are in one layer, so the order of layers does not say so.
    #[test]
    fn provisioning_does_not_use_the_deletion() {
        let sources = sources("src/computer/provision");
        let code = sources.iter().filter(|(path, _)| !path.contains("/tests/"));
        let wrong: Vec<&String> = code.filter(|(_, text)| without_tests(text).contains("deletion::")).map(|(path, _)| path).collect();
        assert!(sources.len() > 5 && wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn no_file_and_no_function_is_too_long() {
        let all = ["api/src", "kubectl-computer/src", "src", "tests", "xtask/src", "xtask/tests"].into_iter().flat_map(sources);
        let wrong: Vec<String> = all.flat_map(|(path, text)| too_long(&path, &text)).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn an_import_that_goes_up_is_found_however_it_is_written() {
        let layers = layers("//! 1. `low`, `other`\n//! 2. `middle`\n//! 3. `high`\n");
        for line in ["use crate::high::X;", "use crate::{low, high::{a, b}};", "let x = crate::high::x();", "use super::super::high;"] {
            let wrong = upward(&layers, "src/middle/part.rs", line);
            assert_eq!(wrong, ["src/middle/part.rs: `middle` (layer 2) uses `high` (layer 3)"], "{line}");
        }
        for line in ["use crate::low;", "// crate::high", "use super::high;", "#[cfg(test)]\nmod tests {\n    use crate::high;\n}"] {
            assert!(upward(&layers, "src/middle/part.rs", line).is_empty(), "{line}");
        }
        assert_eq!(upward(&layers, "src/low/mod.rs", "use super::other;").len(), 1, "nor one of the same layer");
        assert_eq!(upward(&layers, "src/unknown.rs", "").len(), 1);
    }

    #[test]
    fn a_function_that_is_too_long_is_found() {
        let long = |name: &str, lines: usize| format!("    pub async fn {name}() {{\n{}    }}\n", "        x();\n".repeat(lines - 2));
        assert!(too_long("a.rs", &long("fits", FUNCTION)).is_empty());
        assert_eq!(too_long("a.rs", &long("long", FUNCTION + 1)), ["a.rs:1: `long` has 51 lines, more than 50"]);
        assert_eq!(too_long("a.rs", &"\n".repeat(FILE + 1)).len(), 1);
    }
}
