//! Checks the words of code, chart and documents: some words of the project's former dialect are never right in its domain. Pure functions,
//! and tests that apply them to every text of the repository. `CONTRIBUTING.md` has the rules and says what to write instead.
//!
//! It must only list words that are wrong everywhere: a word that is right somewhere is for a reviewer, not for a test.

/// Words and phrases that are never right, and what to write.
pub const NEVER: &[(&str, &str)] = &[
    ("anew", "again"),
    ("somebody", "another client, another controller, or the user's role"),
    ("whoever", "the role: user, admin, client"),
    ("nobody s", "unowned, or the role"),
    ("told", "got, observed, or reported"),
    ("tells", "reports, shows, or says"),
    ("drawn", "generated"),
    ("drew", "generated"),
    ("mend", "fix"),
    ("mended", "fixed"),
    ("stands still", "is blocked"),
    ("stood still", "was blocked"),
    ("stands", "exists, holds, or is"),
    ("stood", "existed, held, or was"),
    ("looked at", "checked or reconciled"),
    ("looks at", "checks or reads"),
    ("goes to its end", "completes"),
    ("gone to its end", "completed"),
    ("not ours to", "the operator does not"),
    ("take off", "remove"),
    ("takes off", "removes"),
    ("taken off", "removed"),
    ("come off", "are removed"),
    ("comes off", "is removed"),
    ("no word on", "proves nothing about"),
    ("hold up", "block or delay"),
    ("holds up", "blocks or delays"),
    ("held up", "blocked or delayed"),
    ("let go", "release or detach"),
    ("lets go", "releases or detaches"),
    ("let it go", "released or detached it"),
    ("goes by", "depends on, or uses"),
    ("goes on", "continues"),
    ("under way", "in progress, or current"),
    ("made again", "re-created"),
    ("put back", "restored"),
    ("given back", "restored or released"),
    ("worked off", "completed"),
    ("comes to be", "is created"),
    ("comes true", "succeeds"),
    ("whose it is", "its owner"),
    ("in the place of", "instead of"),
    ("all the same", "nevertheless"),
    ("for good", "permanently"),
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

/// Runs of blanks inside a line of code: a string that was joined from two lines contains the indentation of the second.
pub fn gaps(text: &str) -> Vec<String> {
    let gap = |line: &str| {
        let code = line.trim_start();
        !code.starts_with("//")
            && code.split("   ").skip(1).any(|after| after.trim_start().starts_with(|c: char| c.is_ascii_lowercase() || c == '`'))
    };
    let found = text.lines().enumerate().filter(|(_, line)| gap(line));
    found.map(|(i, _)| format!("line {}: a run of blanks inside the line", i + 1)).collect()
}

/// A document that shows forbidden words: of its tables only the last column counts.
pub fn without_examples(text: &str) -> String {
    let last = |line: &str| line.trim_end_matches('|').rsplit('|').next().unwrap_or_default().to_owned();
    text.lines().map(|line| if line.starts_with('|') { last(line) } else { line.to_owned() } + "\n").collect()
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

    /// What is checked, besides the documents in the root.
    const FOLDERS: &[&str] = &[".github", "api", "charts", "crds", "docs", "kubectl-computer", "src", "tests", "xtask"];

    /// Files whose text is being rewritten. Remove each entry when its file passes.
    const UNFINISHED: &[&str] = &[];

    #[test]
    fn a_run_of_blanks_inside_a_string_is_found() {
        assert_eq!(gaps("    \"a ClusterRole of the chart                      that ends in x\"").len(), 1);
        assert_eq!(gaps("    x();\n    // a   b\n    \"part          RESULT\""), Vec::<String>::new());
    }

    #[test]
    fn examples_of_forbidden_words_are_allowed_in_the_first_column_only() {
        assert_eq!(check(&without_examples("| anew | again |")), Vec::<String>::new());
        assert_eq!(check(&without_examples("| again | anew |\nanew")).len(), 2);
    }

    fn files(folder: &Path, all: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, all);
            } else if path.extension().is_some_and(|e| ["rs", "yaml", "yml", "tpl", "md", "txt", "json"].iter().any(|wanted| e == *wanted))
            {
                all.push(path);
            }
        }
    }

    #[test]
    fn the_repository_uses_none_of_the_forbidden_words() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<PathBuf> = names.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
        for folder in FOLDERS {
            files(&root.join(folder), &mut all);
        }
        let mut wrong = Vec::new();
        for path in &all {
            let name = path.strip_prefix(root).unwrap();
            if name == Path::new("xtask/src/language.rs") || UNFINISHED.iter().any(|unfinished| name.starts_with(unfinished)) {
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            let text = if name == Path::new("CONTRIBUTING.md") { without_examples(&text) } else { text };
            let to_users = ["src", "api", "kubectl-computer"].iter().any(|folder| name.starts_with(folder));
            let gaps = if to_users { gaps(&text) } else { Vec::new() };
            wrong.extend(check(&text).into_iter().chain(gaps).map(|what| format!("{}, {what}", name.display())));
        }
        assert!(wrong.is_empty(), "CONTRIBUTING.md, \"Language\", has the rules\n{}", wrong.join("\n"));
    }
}
