//! Values: defaults, files and `--set`, put together as Helm does it.

use serde_json::{Map, Value};

/// Lays `over` upon `base`: maps are merged, everything else is replaced, and `null` takes away.
pub fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(&key);
                } else if let Some(there) = base.get_mut(&key) {
                    merge(there, value);
                } else {
                    base.insert(key, value);
                }
            }
        }
        (base, over) => *base = over,
    }
}

/// Reads one `--set` argument, `a.b=1,c={x,y}`, as a tree to [`merge`]. A backslash takes the
/// meaning from `.`, `,`, `=` and braces.
///
/// # Errors
/// What cannot be read.
pub fn parse_set(text: &str) -> Result<Value, String> {
    let mut tree = Value::Object(Map::new());
    for assignment in split(text, ',') {
        let parts = split(&assignment, '=');
        let Some((path, rest)) = parts.split_first().filter(|(_, rest)| !rest.is_empty()) else {
            return Err(format!("--set {text:?}: {assignment:?} is not KEY=VALUE"));
        };
        let value = typed(&rest.join("="));
        let mut over = value;
        for name in split(path, '.').iter().rev() {
            let name = unescape(name);
            if name.is_empty() || name.contains('[') {
                return Err(format!(
                    "--set {text:?}: {path:?} is not a path of names (for lists write {{a,b}} or use -f)"
                ));
            }
            over = Value::Object(Map::from_iter([(name, over)]));
        }
        merge_keeping_null(&mut tree, over);
    }
    Ok(tree)
}

/// As [`merge`], but a `null` stays, to be laid upon other values later.
pub fn merge_keeping_null(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(&key) {
                    Some(there) => merge_keeping_null(there, value),
                    None => {
                        base.insert(key, value);
                    }
                }
            }
        }
        (base, over) => *base = over,
    }
}

fn typed(text: &str) -> Value {
    if let Some(items) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        let items = split(items, ',');
        return items
            .iter()
            .filter(|item| !item.is_empty())
            .map(|item| typed(item))
            .collect();
    }
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        // As in Helm, what begins with a zero is text: it may be a version or a port mask.
        _ if text != "0" && text.starts_with('0') => Value::from(text),
        _ => match text.parse::<i64>() {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(unescape(text)),
        },
    }
}

/// Splits at `at`, but not in braces nor after a backslash.
fn split(text: &str, at: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_u32;
    let mut escaped = false;
    for c in text.chars() {
        let plain = !escaped;
        escaped = plain && c == '\\';
        match c {
            '{' if plain => depth += 1,
            '}' if plain => depth = depth.saturating_sub(1),
            _ if plain && depth == 0 && c == at => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' {
            chars.next().unwrap_or(c)
        } else {
            c
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{merge, parse_set};

    #[test]
    fn maps_merge_lists_are_replaced_and_null_takes_away() {
        let mut base = json!({"a": {"b": 1, "c": 2}, "l": [1, 2], "gone": {"x": 1}});
        merge(
            &mut base,
            json!({"a": {"b": 3, "d": 4}, "l": [9], "gone": null, "new": {"y": 1}}),
        );
        assert_eq!(
            base,
            json!({"a": {"b": 3, "c": 2, "d": 4}, "l": [9], "new": {"y": 1}})
        );
    }

    #[test]
    fn set_arguments_have_types() {
        let check = |text: &str, expected| assert_eq!(parse_set(text), Ok(expected), "{text}");
        check("a.b=1,c=true", json!({"a": {"b": 1}, "c": true}));
        check(
            "tag=1.2.3,zero=007,n=0",
            json!({"tag": "1.2.3", "zero": "007", "n": 0}),
        );
        check("l={a,2},e={}", json!({"l": ["a", 2], "e": []}));
        check(
            r"s.kubernetes\.io/os=linux",
            json!({"s": {"kubernetes.io/os": "linux"}}),
        );
        check(r"x=a\,b,y=k=v", json!({"x": "a,b", "y": "k=v"}));
        check(
            "a.b=1,a.c=2,x=null",
            json!({"a": {"b": 1, "c": 2}, "x": null}),
        );
        check("empty=", json!({"empty": ""}));
    }

    #[test]
    fn what_is_no_assignment_is_refused() {
        for text in ["a", "", "=1", "a..b=1", "a[0]=1", "a=1,,b=2"] {
            assert!(parse_set(text).is_err(), "{text}");
        }
    }
}
