//! Answers: a table or text for people, JSON for programs, from the same values.

use serde_json::Value;

use crate::logs::{is_unsafe, safe_json};

/// What a command found or did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub human: String,
    pub json: Value,
}

impl Answer {
    /// One or more lines for people beside the value for programs.
    pub(super) fn new(human: impl Into<String>, json: Value) -> Self {
        let mut human = human.into();
        if !human.is_empty() && !human.ends_with('\n') {
            human.push('\n');
        }
        Self { human, json }
    }

    /// A table with its rows as a JSON array; `empty` is said instead of an empty table.
    pub(super) fn table(columns: &[&str], rows: Vec<Vec<String>>, json: Vec<Value>, empty: &str) -> Self {
        let human = if rows.is_empty() { empty.to_owned() } else { table(columns, &rows) };
        Self::new(human, Value::Array(json))
    }

    /// The text to print.
    pub(super) fn render(&self, json: bool) -> String {
        if json { format!("{}\n", safe_json(&self.json)) } else { self.human.clone() }
    }
}

/// Control characters (a terminal's escape sequences among them) made visible; for text that came from a tenant.
pub(super) fn clean(text: &str) -> String {
    let shown = |c: char| if c == '\t' || is_unsafe(c) { c.escape_default().collect() } else { vec![c] };
    text.chars().flat_map(shown).collect()
}

/// Left-aligned columns, two spaces between them.
pub(super) fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let clean_rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let header: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&header).chain(&clean_rows).collect();
    let width = |column: usize| {
        all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in all {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `3s`, `5m`, `2h`, `4d`: how long ago, roughly.
pub(super) fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_escape() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["long\x1b[31m".into(), "22".into()]];
        let text = table(&["name", "n"], &rows);
        assert_eq!(text, "NAME            N\na               1\nlong\\u{1b}[31m  22\n");
    }

    #[test]
    fn ages() {
        let cases = [(-5, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (172_800, "2d")];
        for (seconds, text) in cases {
            assert_eq!(age(seconds), text);
        }
    }
}
