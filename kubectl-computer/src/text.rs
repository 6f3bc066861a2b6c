//! Text for a terminal: removes what a terminal would obey, and formats times, tables and paragraphs. Pure functions.
//!
//! Every string that came from the API server must pass through [`plain`] before it is shown: names in messages, titles and annotations
//! are input of tenants, and an admin reads them.

use serde_json::Value;

/// Columns of a wrapped paragraph.
const WIDTH: usize = 110;

/// Whether a terminal obeys this character, or shows other characters in another order or not at all because of it.
fn hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{200b}'..='\u{200f}' | '\u{61c}' | '\u{2028}' | '\u{2029}')
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{180e}' | '\u{3164}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with every character that a terminal would obey written out, for example `\u{1b}`. A line break is one of them.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if hostile(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// The same for text of several lines that this program has put together.
pub fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// [`plain`] for every string and every key of an answer of the API server.
pub fn plain_json(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(plain(&text)),
        Value::Array(list) => Value::Array(list.into_iter().map(plain_json).collect()),
        Value::Object(fields) => Value::Object(fields.into_iter().map(|(key, value)| (plain(&key), plain_json(value))).collect()),
        other => other,
    }
}

/// A value of a fixed list, as it is stored.
pub fn spelled(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A number of seconds as kubectl shows ages: `38s`, `12m`, `3h20m`, `5d`.
pub fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: &str, small: i64, rest: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{rest}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..7200 => format!("{minutes}m"),
        7200..172_800 => two(hours, "h", minutes % 60, "m"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

/// Bytes in a unit that a person reads: `812 B`, `41.2 MiB`.
pub fn bytes(count: i64) -> String {
    let (mut rest, mut unit) = (count, "B");
    let mut tenths = 0;
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if rest < 1024 {
            break;
        }
        tenths = rest % 1024 * 10 / 1024;
        (rest, unit) = (rest / 1024, larger);
    }
    if unit == "B" { format!("{rest} B") } else { format!("{rest}.{tenths} {unit}") }
}

/// `1 session`, `2 sessions`.
pub fn count(number: i64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Rows with aligned columns. Empty cells are shown as `-`; blanks at the end of a line are removed.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count().max(1)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cell = |(column, cell): (usize, &String)| {
            let cell = if cell.is_empty() { "-" } else { cell };
            format!("{cell:<width$}", width = widths[column])
        };
        let line: Vec<String> = row.iter().enumerate().map(cell).collect();
        text.extend([line.join("   ").trim_end(), "\n"]);
    }
    text
}

/// A paragraph after a label of a fixed width: wrapped between words, later lines begin below the first.
pub fn labelled(label: &str, width: usize, text: &str) -> String {
    let indent = width + 2;
    let mut lines = vec![format!("{label:<width$}  ")];
    let mut used = indent;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let length = word.chars().count();
        if used > indent && used + 1 + length > WIDTH {
            lines.push(" ".repeat(indent));
            used = indent;
        }
        let line = lines.last_mut();
        if let Some(line) = line {
            if used > indent {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
        }
        used += length;
    }
    lines.iter().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// One argument of a command to copy: in quotes if a shell would read it as something else.
pub fn quoted(argument: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    if !argument.is_empty() && argument.chars().all(safe) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_text_can_send_an_escape_sequence_to_the_terminal() {
        for hostile in [
            "\u{1b}[2J",
            "\u{1b}]0;title\u{7}",
            "\u{1b}]8;;http://x\u{1b}\\link",
            "\u{9b}31m",
            "\r",
            "\n",
            "\t",
            "\u{8}",
            "\u{202a}a",
            "\u{202b}a",
            "\u{202c}a",
            "\u{202d}a",
            "\u{202e}evil",
            "\u{2066}a",
            "\u{2067}a",
            "\u{2068}a",
            "\u{2069}a",
            "\u{200b}",
            "\u{200f}",
            "\u{2028}",
            "\u{7f}",
        ] {
            let shown = plain(&format!("a{hostile}b"));
            assert!(shown.chars().all(|c| !super::hostile(c)), "{shown:?}");
            assert!(shown.contains('\\'), "it is visible: {shown}");
        }
        assert_eq!(plain("Grüße, 世界 🎉 \\u{1b}"), "Grüße, 世界 🎉 \\u{1b}", "other text is not changed");
        assert_eq!(plain("title\nSTATUS  Ready"), "title\\nSTATUS  Ready", "a title cannot write a line of its own");
    }

    #[test]
    fn every_string_and_key_of_an_answer_is_made_plain() {
        let answer = json!({"metadata": {"annotations": {"a\u{1b}[1m": "\u{202e}x"}}, "list": ["\u{7}", 1, null]});
        let text = plain_json(answer).to_string();
        assert!(!text.contains("u001b") && !text.contains("u0007") && !text.contains('\u{202e}'), "{text}");
        assert_eq!(plain_lines("a\u{1b}\nb"), "a\\u{1b}\nb");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let spans: Vec<String> = [-5, 0, 119, 150, 600, 7200, 7380, 90_000, 200_000, 9_000_000].map(span).to_vec();
        assert_eq!(spans, ["0s", "0s", "119s", "2m30s", "10m", "2h", "2h3m", "25h", "2d7h", "104d"]);
        assert_eq!([0, 1023, 1024, 1_572_864].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]);
        assert_eq!((count(1, "file"), count(0, "file")), ("1 file".to_owned(), "0 files".to_owned()));
    }

    #[test]
    fn a_paragraph_is_wrapped_below_its_label() {
        let text = labelled("Means", 8, &"word ".repeat(40));
        assert!(text.lines().count() > 1 && text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(
            text.split_whitespace().take(2).eq(["Means", "word"]) && text.lines().nth(1).unwrap().starts_with(&" ".repeat(10)),
            "{text}"
        );
        assert_eq!(labelled("x", 1, ""), "x\n");
    }

    #[test]
    fn a_command_to_copy_is_safe_in_a_shell() {
        assert_eq!(quoted("team-a"), "team-a");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("$(rm)';x"), r"'$(rm)'\'';x'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["NAME", "STEP"], ["a-long-name", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "NAME          STEP\na-long-name   -\n");
    }
}
