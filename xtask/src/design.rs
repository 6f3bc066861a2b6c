//! Checks citations of `DESIGN.md` in code and documents: each cited section and promise must exist. Pure functions, and a test that
//! applies them to the repository.

use std::collections::BTreeSet;

/// The sections and promises that a design document defines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Design {
    sections: BTreeSet<String>,
    promises: BTreeSet<String>,
}

impl Design {
    /// Reads the numbers of headings (`## 4. …`, `### 4.7 …`) and of promises (`| S1 | …`).
    pub fn parse(text: &str) -> Self {
        let mut design = Self::default();
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("##") {
                let number = heading.trim_start_matches('#').split_whitespace().next().unwrap_or_default();
                design.sections.insert(number.trim_end_matches('.').to_owned());
            } else if let Some(cell) = line.strip_prefix("| ").and_then(|rest| rest.split_whitespace().next()) {
                design.promises.extend(promise(cell).map(str::to_owned));
            }
        }
        design
    }

    /// What is wrong with the citations in a text, line by line.
    pub fn check(&self, text: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let bad = self.sections_of(line).into_iter().chain(self.promises_of(line));
            wrong.extend(bad.map(|what| format!("line {}: {what}", i + 1)));
        }
        wrong
    }

    fn sections_of(&self, line: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        for (at, _) in line.match_indices("DESIGN.md ") {
            // `DESIGN.md 4.1, 4.2` cites two sections.
            for word in line[at..].split_whitespace().skip(1) {
                let more = word.ends_with(',');
                let number = word.trim_matches(|c: char| !c.is_ascii_digit());
                if !number.starts_with(|c: char| c.is_ascii_digit()) {
                    break;
                }
                if !self.sections.contains(number) {
                    wrong.push(format!("DESIGN.md has no section {number}"));
                }
                if !more {
                    break;
                }
            }
        }
        for vague in ["(design ", "of design ", "design part "] {
            if line.contains(vague) {
                wrong.push(format!("cite the document by its name and section, as `DESIGN.md 4.7`: {}", line.trim()));
            }
        }
        wrong
    }

    /// `S3` is also an object store: only words that may be a promise are checked.
    fn promises_of(&self, line: &str) -> Vec<String> {
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let unknown = words.filter_map(promise).filter(|id| !self.promises.contains(*id));
        unknown.map(|id| format!("DESIGN.md has no promise {id}")).collect()
    }
}

/// A word that is the id of a promise: `S` or `L` and a number below 100.
fn promise(word: &str) -> Option<&str> {
    let number = word.strip_prefix(['S', 'L'])?;
    ((1..=2).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit())).then_some(word)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    const TEXT: &str = "# Design\n## 4. Deletion\n### 4.7 Outcomes\n| id | promise |\n| S1 | Archive. |\n| L6 | Silent. |\n";

    #[test]
    fn known_sections_and_promises_may_be_cited() {
        let design = Design::parse(TEXT);
        for line in ["(DESIGN.md 4.7)", "see DESIGN.md 4, 4.7.", "written only when it differs (L6); S1 holds", "a bucket: `s3://b`, LS1"] {
            assert_eq!(design.check(line), Vec::<String>::new(), "{line}");
        }
    }

    #[test]
    fn unknown_sections_and_promises_are_found() {
        let design = Design::parse(TEXT);
        assert_eq!(design.check("\n(DESIGN.md 4.9)"), ["line 2: DESIGN.md has no section 4.9"]);
        assert_eq!(design.check("DESIGN.md 4.7, 5"), ["line 1: DESIGN.md has no section 5"]);
        assert_eq!(design.check("S1 and S14"), ["line 1: DESIGN.md has no promise S14"]);
        assert_eq!(design.check("//! (design 4.7)").len(), 1);
    }

    fn files(folder: &Path, all: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, all);
            } else if path.extension().is_some_and(|e| ["rs", "yaml", "tpl", "md", "txt"].iter().any(|wanted| e == *wanted)) {
                all.push(path);
            }
        }
    }

    #[test]
    fn what_the_repository_cites_is_in_the_design() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let design = Design::parse(&fs::read_to_string(root.join("DESIGN.md")).unwrap());
        let mut all = Vec::new();
        for folder in ["api", "kubectl-computer", "src", "tests", "charts", "docs", "xtask/src"] {
            files(&root.join(folder), &mut all);
        }
        let own = |path: &Path| path.ends_with("xtask/src/design.rs");
        let mut wrong = Vec::new();
        for path in all.iter().filter(|path| !own(path)) {
            let found = design.check(&fs::read_to_string(path).unwrap());
            wrong.extend(found.into_iter().map(|what| format!("{}, {what}", path.strip_prefix(root).unwrap().display())));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(!design.sections.is_empty() && design.promises.len() > 20, "the headings and tables of DESIGN.md have another form");
    }
}
