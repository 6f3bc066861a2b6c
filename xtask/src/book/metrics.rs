//! The metrics that the programs register, read from the source: a family without a sample is not in the output of a program.
//!
//! It relies on rustfmt's layout and on the form `registry.register("name", "help", metric.clone())`. Another form is an error, never a
//! metric that is left out.

use anyhow::{Context as _, Result, bail};

/// One metric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Metric {
    /// Its full name, as Prometheus has it.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: Vec<String>,
    /// Its help text.
    pub help: String,
}

/// Every metric that these sources register, sorted, each once.
///
/// # Errors
/// When a registration has another form.
pub fn registered(sources: &[String]) -> Result<Vec<Metric>> {
    let mut all = Vec::new();
    for text in sources {
        for call in [".register(", ".register_with_unit("] {
            for (at, _) in text.match_indices(call) {
                let arguments = arguments(&text[at + call.len()..]).context("the end of a registration")?;
                all.push(metric(&arguments, text, sources).with_context(|| format!("the registration {arguments:?}"))?);
            }
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// The arguments of a call, up to its closing parenthesis.
fn arguments(text: &str) -> Option<Vec<String>> {
    let (mut depth, mut quoted, mut all, mut current) = (0, false, Vec::new(), String::new());
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted && depth == 0 => {
                all.push(current.trim().to_owned());
                all.retain(|argument| !argument.is_empty());
                return Some(all);
            }
            ')' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                all.push(std::mem::take(&mut current).trim().to_owned());
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    None
}

fn metric(arguments: &[String], text: &str, sources: &[String]) -> Result<Metric> {
    let [name, help, rest @ ..] = arguments else { bail!("too few arguments") };
    let (unit, value) = match rest {
        [value] => ("", value),
        [unit, value] => (unit.strip_prefix("Unit::").context("a unit")?, value),
        _ => bail!("another number of arguments"),
    };
    let field = value.trim_end_matches(".clone()").trim_start_matches("self.");
    let places = std::iter::once(text).chain(sources.iter().map(String::as_str));
    let (type_, place) = places.into_iter().find_map(|place| Some((declared(field, place)?, place))).context("its type")?;
    let (kind, suffix) = [("Counter", "counter", "_total"), ("Histogram", "histogram", ""), ("Gauge", "gauge", "")]
        .into_iter()
        .find_map(|(word, kind, suffix)| type_.contains(word).then_some((kind, suffix)))
        .with_context(|| format!("the kind of {type_}"))?;
    let unit = if unit.is_empty() { String::new() } else { format!("_{}", unit.to_lowercase()) };
    let name = literal(name, text).context("its name")?;
    let help = literal(help, text).context("its help text")?;
    Ok(Metric { name: format!("computer_operator_{name}{unit}{suffix}"), kind, labels: labels(&type_, place)?, help })
}

/// The type with which a field or a static is declared.
fn declared(name: &str, text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find(|line| {
        let line = line.trim_start_matches("pub ").trim_start_matches("static ");
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(": "))
    })?;
    let type_ = line.split_once(": ")?.1;
    Some(type_.split(" = ").next().unwrap_or(type_).trim_end_matches([',', ';']).to_owned())
}

/// A string literal, or the one that a variable of this name has.
fn literal(argument: &str, text: &str) -> Option<String> {
    let quoted = |text: &str| Some(text.strip_prefix('"')?.strip_suffix('"')?.to_owned());
    quoted(argument).or_else(|| {
        let (_, after) = text.split_once(&format!("let {argument} = "))?;
        quoted(after.split(';').next()?.trim())
    })
}

/// The fields of the label set of a family, which is declared beside it.
fn labels(type_: &str, place: &str) -> Result<Vec<String>> {
    let Some(set) = type_.split_once("Family<").and_then(|(_, rest)| rest.split(',').next()) else { return Ok(Vec::new()) };
    if place.contains(&format!("type {set} = ")) {
        // An empty set has an alias.
        return Ok(Vec::new());
    }
    let (_, body) = place.split_once(&format!("struct {set} {{")).with_context(|| format!("the label set {set}"))?;
    let body = body.split('}').next().unwrap_or_default();
    let names = body.lines().filter_map(|line| line.trim().split_once(": ")).filter(|(name, _)| !name.starts_with("//"));
    Ok(names.map(|(name, _)| name.trim_start_matches("pub ").to_owned()).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
struct Blocked {
    step: &'static str,
    reason: &'static str,
}
type NoLabels = [(&'static str, &'static str); 0];
pub struct Metrics {
    blocked: Family<Blocked, Gauge>,
    seconds: Histogram,
    free: Family<NoLabels, Gauge>,
}
fn registered() {
    registry.register(
        "blocked",
        "Blocked, by step (and reason)",
        self.blocked.clone(),
    );
    registry.register("seconds", "Duration", seconds.clone());
    let free = "Free space";
    registry.register_with_unit("free", free, Unit::Bytes, self.free.clone());
    registry.register("panics", "Panics", PANICS.clone());
}
"#;

    #[test]
    fn names_kinds_and_labels_come_from_the_declarations() {
        // Another file may have a label set of the same name.
        let other = "pub struct Blocked {\n    pub verb: String,\n}\n\
            pub static PANICS: LazyLock<Family<Blocked, Counter>> = LazyLock::new(Family::default);\n"
            .to_owned();
        let all = registered(&[SOURCE.to_owned(), other]).unwrap();
        let shown: Vec<_> = all.iter().map(|m| format!("{} {} {} {}", m.name, m.kind, m.labels.join(","), m.help)).collect();
        assert_eq!(
            shown,
            [
                "computer_operator_blocked gauge step,reason Blocked, by step (and reason)",
                "computer_operator_free_bytes gauge  Free space",
                "computer_operator_panics_total counter verb Panics",
                "computer_operator_seconds histogram  Duration",
            ]
        );
    }

    #[test]
    fn a_registration_of_another_form_is_an_error() {
        assert!(registered(&["registry.register(name, help, x.clone());".to_owned()]).is_err());
        assert!(registered(&["registry.register(\"a\"".to_owned()]).is_err());
    }
}
