//! Checks values against a JSON Schema, of which the charts use a small part: `type`, `properties`,
//! `required`, `additionalProperties`, `items`, `enum`, `minimum`, `maximum`, `minLength`,
//! `maxLength`, and the annotations. A schema that uses more is refused, so that nothing that the
//! schema says goes unchecked here while Helm checks it.

use serde_json::Value;

/// Keywords that say nothing about validity.
const ANNOTATIONS: [&str; 4] = ["$schema", "title", "description", "default"];
const CHECKED: [&str; 10] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
];

/// Everything in `value` that `schema` does not allow, each with its path.
pub fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    check(schema, value, "", &mut problems);
    problems
}

fn check(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let Value::Object(keywords) = schema else {
        problems.push(format!("{}: the schema is not a map", shown(path)));
        return;
    };
    let known =
        |key: &&String| ANNOTATIONS.contains(&key.as_str()) || CHECKED.contains(&key.as_str());
    if let Some(key) = keywords.keys().find(|key| !known(key)) {
        problems.push(format!("{}: the schema uses {key:?}", shown(path)));
    }
    if let Some(kind) = schema.get("type")
        && !is_of_type(value, kind)
    {
        problems.push(format!(
            "{}: is {}, must be {}",
            shown(path),
            brief(value),
            kind.as_str()
                .map_or_else(|| kind.to_string(), str::to_owned)
        ));
        return;
    }
    if let Some(Value::Array(allowed)) = schema.get("enum")
        && !allowed.contains(value)
    {
        let allowed: Vec<_> = allowed.iter().map(Value::to_string).collect();
        problems.push(format!(
            "{}: is {}, must be one of {}",
            shown(path),
            brief(value),
            allowed.join(", ")
        ));
    }
    limits(schema, value, path, problems);
    match value {
        Value::Object(_) => fields(schema, value, path, problems),
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    check(schema, item, &format!("{path}[{index}]"), problems);
                }
            }
        }
        _ => {}
    }
}

fn limits(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let limit = |key: &str| schema.get(key).and_then(Value::as_f64);
    let (size, keys) = match value {
        Value::Number(number) => (number.as_f64(), ["minimum", "maximum"]),
        Value::String(text) => (
            u32::try_from(text.chars().count()).ok().map(f64::from),
            ["minLength", "maxLength"],
        ),
        _ => return,
    };
    let Some(size) = size else { return };
    if let Some(limit) = limit(keys[0]).filter(|limit| size < *limit) {
        problems.push(format!(
            "{}: {} {limit}, is {}",
            shown(path),
            keys[0],
            brief(value)
        ));
    }
    if let Some(limit) = limit(keys[1]).filter(|limit| size > *limit) {
        problems.push(format!(
            "{}: {} {limit}, is {}",
            shown(path),
            keys[1],
            brief(value)
        ));
    }
}

fn fields(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let Value::Object(fields) = value else { return };
    let known = schema.get("properties").and_then(Value::as_object);
    for (name, value) in fields {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        if let Some(schema) = known.and_then(|known| known.get(name)) {
            check(schema, value, &path, problems);
            continue;
        }
        match schema.get("additionalProperties") {
            Some(Value::Bool(false)) => {
                let near = known.and_then(|known| nearest(name, known.keys()));
                let hint = near.map(|near| format!("; did you mean {near:?}?"));
                problems.push(format!(
                    "{path}: there is no such value{}",
                    hint.unwrap_or_default()
                ));
            }
            Some(schema @ Value::Object(_)) => check(schema, value, &path, problems),
            _ => {}
        }
    }
    for name in schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if let Some(name) = name.as_str()
            && !fields.contains_key(name)
        {
            problems.push(format!("{}: {name:?} is missing", shown(path)));
        }
    }
}

fn is_of_type(value: &Value, kind: &Value) -> bool {
    match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| is_of_type(value, kind)),
        Value::String(kind) => match kind.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "null" => value.is_null(),
            _ => false,
        },
        _ => false,
    }
}

/// The known name with the longest common start or the same letters, if any is close.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let lower = name.to_ascii_lowercase();
    known
        .map(|candidate| {
            let other = candidate.to_ascii_lowercase();
            let common = lower
                .chars()
                .zip(other.chars())
                .take_while(|(a, b)| a == b)
                .count();
            (common, candidate)
        })
        .filter(|(common, candidate)| *common >= 3 && *common * 2 >= candidate.len())
        .max_by_key(|(common, _)| *common)
        .map(|(_, candidate)| candidate)
}

fn shown(path: &str) -> &str {
    if path.is_empty() { "the values" } else { path }
}

fn brief(value: &Value) -> String {
    match value {
        Value::Object(_) => "a map".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::problems;

    fn schema() -> Value {
        json!({
            "$schema": "x", "type": "object", "additionalProperties": false, "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 3},
                "count": {"type": "integer", "minimum": 1, "maximum": 5},
                "mode": {"enum": ["a", "b"]},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "boolean"}}}},
                "either": {"type": ["string", "null"]},
            },
        })
    }

    fn check(value: Value, expected: &[&str]) {
        let found = problems(&schema(), &value);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for words in expected {
            assert!(
                found.iter().any(|p| p.contains(words)),
                "{words}: {found:?}"
            );
        }
    }

    #[test]
    fn good_values_pass() {
        check(
            json!({"name": "n", "count": 5, "mode": "a", "labels": {"k": "v"}, "list": [{"x": true}], "either": null}),
            &[],
        );
    }

    #[test]
    fn every_mistake_is_named_with_its_path() {
        check(
            json!({"count": 6, "mode": "c", "labels": {"k": 1}, "list": [{}, {"x": 1}], "either": 1}),
            &[
                "the values: \"name\" is missing",
                "count: maximum 5, is 6",
                "mode: is \"c\", must be one of \"a\", \"b\"",
                "labels.k: is 1, must be string",
                "list[1].x: is 1, must be boolean",
                "either: is 1",
            ],
        );
        check(json!({"name": "long"}), &["name: maxLength 3"]);
        check(json!({"name": ""}), &["name: minLength 1"]);
        check(
            json!({"name": "a", "count": 1.5}),
            &["count: is 1.5, must be integer"],
        );
        check(json!([]), &["the values: is a list, must be object"]);
    }

    #[test]
    fn unknown_names_are_refused_with_the_nearest_known_one() {
        check(
            json!({"name": "a", "labell": {}}),
            &["labell: there is no such value; did you mean \"labels\"?"],
        );
        check(
            json!({"name": "a", "zzz": {}}),
            &["zzz: there is no such value"],
        );
    }

    #[test]
    fn a_schema_that_uses_more_is_refused() {
        let found = problems(&json!({"pattern": "^a"}), &json!("a"));
        assert_eq!(found, ["the values: the schema uses \"pattern\""]);
    }
}
