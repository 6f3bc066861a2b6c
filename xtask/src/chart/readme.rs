//! Generates the table of values in the chart's README from the comments `# -- ...` in `values.yaml`.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use serde_yaml_ng::Value;

const BEGIN: &str = "<!-- values: generated from values.yaml by `cargo xtask generate` -->\n";
const END: &str = "<!-- end of values -->";

/// One documented value.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Its path, for example `api.tls.mode`.
    pub path: String,
    /// What it is.
    pub text: String,
    /// Its default, as JSON.
    pub default: String,
}

/// The README with the generated table.
///
/// # Errors
/// When the README has no place for it, or the values are not YAML.
pub fn with_table(readme: &str, values: &str) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).context("README.md has no place for the values")?;
    let (_, after) = rest.split_once(END).context("README.md has no end of values")?;
    let mut table = String::from("\n| value | default | what it is |\n|---|---|---|\n");
    for Row { path, text, default } in rows(values)? {
        writeln!(table, "| `{path}` | `{}` | {} |", default.replace('|', "\\|"), text.replace('|', "\\|"))?;
    }
    Ok(format!("{before}{BEGIN}{table}\n{END}{after}"))
}

/// Every documented value, in the order of the file.
///
/// # Errors
/// When the file is not YAML, or a comment does not precede a value.
pub fn rows(values: &str) -> Result<Vec<Row>> {
    let parsed: Value = serde_yaml_ng::from_str(values)?;
    let (mut rows, mut parents, mut text) = (Vec::new(), Vec::<(usize, String)>::new(), None);
    for line in values.lines() {
        let trimmed = line.trim_start();
        if let Some(comment) = trimmed.strip_prefix("# -- ") {
            ensure!(text.is_none(), "two comments for one value: {comment}");
            text = Some(comment.to_owned());
            continue;
        }
        let Some((key, _)) = trimmed.split_once(':').filter(|(key, _)| key.chars().all(char::is_alphanumeric)) else { continue };
        let indent = line.len() - trimmed.len();
        parents.retain(|(depth, _)| *depth < indent);
        parents.push((indent, key.to_owned()));
        if let Some(text) = text.take() {
            let path: Vec<&str> = parents.iter().map(|(_, key)| key.as_str()).collect();
            let found =
                path.iter().try_fold(&parsed, |value, key| value.get(*key)).with_context(|| format!("no value {}", path.join(".")))?;
            rows.push(Row { path: path.join("."), text, default: serde_json::to_string(found)? });
        }
    }
    ensure!(text.is_none(), "this comment does not precede a value: {text:?}");
    Ok(rows)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_each_comment_with_path_and_default() {
        let values = "a:\n  # -- First.\n  b: 1\n  c:\n    # -- Second.\n    d: [x]\n# -- Third.\ne: {}\n";
        let row = |path: &str, text: &str, default: &str| Row { path: path.into(), text: text.into(), default: default.into() };
        assert_eq!(rows(values).unwrap(), [row("a.b", "First.", "1"), row("a.c.d", "Second.", "[\"x\"]"), row("e", "Third.", "{}")]);
        assert!(rows("# -- Nothing.\n").is_err());
        let readme = format!("head\n{BEGIN}old{END}\ntail");
        let new = with_table(&readme, values).unwrap();
        assert!(new.starts_with("head\n") && new.ends_with("\ntail") && !new.contains("old") && new.contains("| `a.b` | `1` | First. |"));
        assert_eq!(with_table(&new, values).unwrap(), new);
    }
}
