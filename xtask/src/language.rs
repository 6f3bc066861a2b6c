//! Checks the words of code, chart and documents: some words of the project's former dialect are never right in its domain. Pure functions,
//! and a test that applies them to the repository. `CONTRIBUTING.md` has the rules and says what to write instead.
//!
//! It must only list words that are wrong everywhere: a word that is right somewhere is for a reviewer, not for a test.

/// Words and phrases that are never right, and what to write.
pub const NEVER: &[(&str, &str)] = &[
    ("anew", "again"),
    ("somebody", "another client, another controller, or the user's role"),
    ("whoever", "the role: user, admin, client"),
    ("is told", "gets, observes, or is reported"),
    ("are told", "get, observe, or are reported"),
    ("nobody is told", "is not reported"),
    ("is drawn", "is generated"),
    ("mend", "fix"),
    ("mended", "fixed"),
    ("stands still", "is blocked"),
    ("stood still", "was blocked"),
    ("looked at", "checked or reconciled"),
    ("looks at", "checks or reads"),
    ("goes to its end", "completes"),
    ("gone to its end", "completed"),
    ("not ours to", "the operator does not"),
    ("takes off", "removes"),
    ("taken off", "removed"),
    ("comes off", "is removed"),
    ("no word on", "proves nothing about"),
    ("holds up", "blocks or delays"),
    ("held up", "blocked or delayed"),
    ("for ever", "forever, permanently, or without a time limit"),
];

/// The forbidden words in a text, line by line.
pub fn check(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let words = words(line);
        let hits = NEVER.iter().filter(|(never, _)| words.contains(&format!(" {never} ")));
        found.extend(hits.map(|(never, instead)| format!("line {}: instead of {never:?} write: {instead}", i + 1)));
    }
    found
}

/// The words of a line in lower case, each between blanks. Parts of identifiers are words too.
fn words(line: &str) -> String {
    let mut words = String::from(" ");
    for word in line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        words.push_str(&word.to_ascii_lowercase());
        words.push(' ');
    }
    words
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn a_forbidden_word_is_found_in_text_and_in_names() {
        assert_eq!(check("ok\nit is started Anew."), ["line 2: instead of \"anew\" write: again"]);
        assert_eq!(check("fn nothing_is_looked_at() {").len(), 1);
        assert_eq!(check("the update is withdrawn; a renewed amendment holds upper bounds"), Vec::<String>::new());
    }

    /// What is checked. Directories that still use the former dialect are not listed yet: add each when its text is rewritten.
    const FOLDERS: &[&str] = &[
        "src/archive",
        "src/resources",
        "src/http",
        "src/apikey",
        "src/class",
        "src/credentials",
        "src/install",
        "src/session",
        "charts",
        "crds",
        "tests/api_keys",
        "tests/chart",
        "tests/chart_cluster",
        "tests/http",
        "tests/simulator",
        "tests/real_cluster",
        "tests/outages",
        "xtask/src",
        "xtask/tests",
    ];

    fn files(folder: &Path, all: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, all);
            } else if path.extension().is_some_and(|e| ["rs", "yaml", "tpl", "md", "txt", "json"].iter().any(|wanted| e == *wanted)) {
                all.push(path);
            }
        }
    }

    #[test]
    fn the_repository_uses_none_of_the_forbidden_words() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut all: Vec<PathBuf> =
            ["README.md", "DESIGN.md", "SECURITY.md", "CHANGELOG.md", "src/guards.rs"].map(|name| root.join(name)).to_vec();
        for folder in FOLDERS {
            files(&root.join(folder), &mut all);
        }
        let own = |path: &Path| path.ends_with("xtask/src/language.rs");
        let mut wrong = Vec::new();
        for path in all.iter().filter(|path| !own(path)) {
            let found = check(&fs::read_to_string(path).unwrap());
            wrong.extend(found.into_iter().map(|what| format!("{}, {what}", path.strip_prefix(root).unwrap().display())));
        }
        assert!(wrong.is_empty(), "CONTRIBUTING.md, \"Language\", has the rules\n{}", wrong.join("\n"));
    }
}
