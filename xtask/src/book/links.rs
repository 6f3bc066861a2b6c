//! Includes, links and anchors of Markdown. Pure: paths and texts in, what is wrong out.
//!
//! A page of the book is checked with its includes, from the place of the page: a link in `docs/store.md` must also lead somewhere in the
//! chapter that includes it. Chapters therefore lie in the book as their files lie in the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Markdown files by their path in the repository, and the other files that exist.
#[derive(Debug, Default)]
pub struct Files {
    /// The texts.
    pub texts: BTreeMap<PathBuf, String>,
    /// All paths, folders too.
    pub all: BTreeSet<PathBuf>,
}

/// A link, or an include, of a file.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    line: usize,
    target: String,
}

impl Files {
    /// The text of a page with its includes. What cannot be included is left out and reported.
    pub fn page(&self, path: &Path) -> (String, Vec<String>) {
        let (mut out, mut wrong) = (String::new(), Vec::new());
        for line in self.texts.get(path).map(String::as_str).unwrap_or_default().lines() {
            let Some(target) = line.trim().strip_prefix("{{#include ").and_then(|rest| rest.strip_suffix("}}")) else {
                out.push_str(line);
                out.push('\n');
                continue;
            };
            let included = resolve(path, target);
            if self.texts.contains_key(&included) {
                let (text, more) = self.page(&included);
                out.push_str(&text);
                wrong.extend(more);
            } else if !self.all.contains(&included) {
                wrong.push(format!("{} includes {target}, which does not exist", path.display()));
            }
        }
        (out, wrong)
    }

    /// What is wrong with the links of a file. `within`: where their targets must be, for a page of the book.
    pub fn check(&self, path: &Path, within: Option<&Path>) -> Vec<String> {
        let (text, mut wrong) = self.page(path);
        for Link { line, target } in links(&text) {
            let (file, anchor) = target.split_once('#').map_or((target.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let to = if file.is_empty() { path.to_owned() } else { resolve(path, file) };
            let inside = within.is_none_or(|folder| to.starts_with(folder));
            let problem = match anchor {
                _ if !inside => Some("is not in the book"),
                _ if !self.all.contains(&to) => Some("does not exist"),
                Some(anchor) if !anchors(&self.page(&to).0).contains(anchor) => Some("has no such heading"),
                _ => None,
            };
            wrong.extend(problem.map(|problem| format!("{}, line {line}: {target} {problem}", path.display())));
        }
        wrong
    }
}

/// A relative path from the folder of a file.
fn resolve(from: &Path, target: &str) -> PathBuf {
    let mut path = from.parent().map(Path::to_owned).unwrap_or_default();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// The lines that are not code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut code = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// The relative links of a text.
fn links(text: &str) -> Vec<Link> {
    let mut all = Vec::new();
    for (i, line) in prose(text) {
        // Code in a line is not a link.
        let line: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                all.push(Link { line: i + 1, target: target.to_owned() });
            }
        }
    }
    all
}

/// The anchors of the headings of a text, as GitHub and mdBook generate them.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (_, line) in prose(text) {
        let Some(heading) = line.strip_prefix('#').map(|rest| rest.trim_start_matches('#')).filter(|rest| rest.starts_with(' ')) else {
            continue;
        };
        let slug = heading.trim().to_lowercase().replace(' ', "-");
        let slug: String = slug.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
        let mut name = slug.clone();
        for n in 1.. {
            if all.insert(name) {
                break;
            }
            name = format!("{slug}-{n}");
        }
    }
    all
}

/// The chapters that a summary lists.
pub fn chapters(summary: &str) -> Vec<String> {
    links(summary).into_iter().map(|link| link.target).filter(|target| !target.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(texts: &[(&str, &str)]) -> Files {
        let texts: BTreeMap<PathBuf, String> = texts.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        Files { all: texts.keys().cloned().collect(), texts }
    }

    #[test]
    fn anchors_are_those_of_headings() {
        let text = "# The HTTP API\n```\n# no\n```\n## `a` & b?\n## `a` & b?\n#no\n";
        assert_eq!(anchors(text), ["a--b", "a--b-1", "the-http-api"].map(str::to_owned).into());
    }

    #[test]
    fn a_link_must_lead_to_a_file_and_a_heading() {
        let all = files(&[
            ("docs/a.md", "# A\n[x](b.md#b) [y](#a) [z](https://h) `[c](no.md)`"),
            ("docs/b.md", "# B\n[up](../c.md) [h](a.md#b)"),
        ]);
        assert_eq!(all.check(Path::new("docs/a.md"), None), Vec::<String>::new());
        assert_eq!(
            all.check(Path::new("docs/b.md"), None),
            ["docs/b.md, line 2: ../c.md does not exist", "docs/b.md, line 2: a.md#b has no such heading"]
        );
    }

    #[test]
    fn an_included_text_is_checked_from_the_place_of_the_chapter() {
        let all = files(&[
            ("docs/a.md", "# A\n[b](b.md)"),
            ("docs/b.md", "# B"),
            ("book/docs/a.md", "{{#include ../../docs/a.md}}"),
            ("book/c.md", "[a](docs/a.md#a)\n{{#include none.md}}\n[out](../docs/b.md)"),
        ]);
        let book = Some(Path::new("book"));
        assert_eq!(all.check(Path::new("book/docs/a.md"), book), ["book/docs/a.md, line 2: b.md does not exist"]);
        assert_eq!(
            all.check(Path::new("book/c.md"), book),
            ["book/c.md includes none.md, which does not exist", "book/c.md, line 2: ../docs/b.md is not in the book"]
        );
    }

    #[test]
    fn the_chapters_of_a_summary() {
        assert_eq!(chapters("# Summary\n[Start](start.md)\n- [A](a.md)\n  - [B](b/c.md)\n"), ["start.md", "a.md", "b/c.md"]);
    }
}
