//! JSON lists as text tables.

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// A column: its heading and where its value stands, as a JSON pointer.
pub type Column = (&'static str, &'static str);

/// Renders the items of a list; a sentence when there are none.
pub fn render(items: &[Value], columns: &[Column], nothing: &str) -> String {
    if items.is_empty() {
        return format!("{nothing}\n");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // Never wrapped: a row is a line, so that grep and awk work.
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(heading, _)| *heading));
    for item in items {
        table.add_row(
            columns
                .iter()
                .map(|(_, pointer)| cell(item.pointer(pointer))),
        );
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim().to_owned()).collect();
    // The first column is padded by one like the others; take it away evenly.
    lines.join("\n") + "\n"
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(true)) => "yes".to_owned(),
        Some(Value::Bool(false)) => "no".to_owned(),
        Some(Value::Array(list)) if list.is_empty() => "-".to_owned(),
        Some(Value::Array(list)) => list
            .iter()
            .map(|v| cell(Some(v)))
            .collect::<Vec<_>>()
            .join(","),
        Some(Value::Object(fields)) => {
            let one = |(name, value): (&String, &Value)| format!("{name}={}", cell(Some(value)));
            fields.iter().map(one).collect::<Vec<_>>().join(" ")
        }
        Some(number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::render;

    #[test]
    fn rows_are_lines_and_missing_values_dashes() {
        let items = [
            json!({"name": "a", "list": ["x", "y"], "deep": {"n": 1}, "on": true}),
            json!({"name": "long name", "list": [], "deep": {}}),
        ];
        let columns = [
            ("NAME", "/name"),
            ("LIST", "/list"),
            ("N", "/deep/n"),
            ("ON", "/on"),
        ];
        let text = render(&items, &columns, "none");
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|l| {
                l.split("  ")
                    .map(str::trim)
                    .filter(|s| !s.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            lines,
            [
                ["NAME", "LIST", "N", "ON"],
                ["a", "x,y", "1", "yes"],
                ["long name", "-", "-", "-"]
            ]
        );
    }

    #[test]
    fn nothing_is_said() {
        assert_eq!(render(&[], &[("A", "/a")], "no pods"), "no pods\n");
    }
}
