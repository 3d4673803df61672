//! Reads YAML as JSON values, and writes JSON values as YAML.
//!
//! The writer makes the small part of YAML that manifests need: block maps and lists, sorted keys,
//! and strings in double quotes wherever a reader could take them for something else.

use serde_json::Value;

/// Reads one document.
///
/// # Errors
/// What the parser says, with line and column.
pub fn read(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

/// Reads every document of a text; empty ones are left out.
///
/// # Errors
/// What the parser says.
pub fn read_all(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    Ok(documents
        .into_iter()
        .filter(|value| !value.is_null())
        .collect())
}

/// Writes a value in block style, without a newline at its end.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out.trim_end_matches('\n').to_owned()
}

fn block(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (index, (key, value)) in fields.iter().enumerate() {
                if index > 0 {
                    indent(depth, out);
                }
                out.push_str(&scalar(key));
                out.push(':');
                nested(value, depth, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    indent(depth, out);
                }
                out.push_str("- ");
                block(item, depth + 1, out);
            }
        }
        other => {
            out.push_str(&flat(other));
            out.push('\n');
        }
    }
}

/// What stands after `key:`.
fn nested(value: &Value, depth: usize, out: &mut String) {
    let deeper = match value {
        Value::Object(fields) if !fields.is_empty() => depth + 1,
        // A list may stand at the depth of its key, as kubectl writes it.
        Value::Array(items) if !items.is_empty() => depth,
        _ => {
            out.push(' ');
            out.push_str(&flat(value));
            out.push('\n');
            return;
        }
    };
    out.push('\n');
    indent(deeper, out);
    block(value, deeper, out);
}

fn indent(depth: usize, out: &mut String) {
    out.push_str(&"  ".repeat(depth));
}

fn flat(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        other => other.to_string(),
    }
}

/// A string, plain where no reader of YAML 1.1 or 1.2 could misunderstand it.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let starts = |c: char| c.is_ascii_alphabetic() || c == '/';
    let inside = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
    let plain = text.starts_with(starts)
        && text.chars().all(inside)
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{read, read_all, write};

    #[test]
    fn what_is_written_reads_back_as_it_was() {
        let values = [
            json!({"a": {"b": [1, 2.5, {"c": "d", "e": [true, null]}], "f": {}}, "g": []}),
            json!([[1, 2], [], [{"x": {"y": "z"}}]]),
            json!("true"),
            json!({"on": "on", "1": "1e3", "0x": "0x1F", "~": "~", "": "", "a: b": "- c # d"}),
            json!({"lines": "one\ntwo\n", "tab": "\t", "quote": "\"'", "unicode": "ß€", "date": "2026-11-22"}),
            json!({"yes": "no", "null": "null", "colon": "a:b", "octal": "0o17", "port": "15012"}),
            json!(-1),
        ];
        for value in values {
            let text = write(&value);
            let back = read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(back, value, "{text}");
        }
    }

    #[test]
    fn documents_are_split_and_empty_ones_left_out() {
        let text = "# a comment\n---\na: 1\n---\n---\nb: 2\n";
        let read = read_all(text).expect("reads");
        assert_eq!(read, [json!({"a": 1}), json!({"b": 2})]);
        assert!(read_all("a: [").is_err());
    }

    #[test]
    fn keys_are_sorted() {
        let value: Value = json!({"b": 1, "a": [{"c": 1}]});
        assert_eq!(write(&value), "a:\n- c: 1\nb: 1");
    }
}
