//! Routes in force at a waypoint or gateway: one row of text for each rule.

use serde_json::{Value, json};

use crate::inspect::object::Object;
use crate::inspect::selector::Key;

/// See the module.
pub const OBJECT: Object = Object {
    name: "route",
    nothing: "no routes",
    columns: &[
        ("KIND", "/kind"),
        ("NAMESPACE", "/namespace"),
        ("NAME", "/name"),
        ("STATE", "/state"),
        ("ATTACHED TO", "/attached_to"),
        ("RULE", "/rule"),
        ("MATCHES", "/matches"),
        ("BACKENDS", "/backends"),
        ("PROBLEMS", "/problems"),
    ],
    keys: &[Key::Name],
    of_node: false,
    of_waypoint: true,
    list: |place, _| place.list("/v1/routes"),
    rows,
    ..Object::PLAIN
};

fn rows(route: Value) -> Vec<Value> {
    let rules = route.get("rules").and_then(Value::as_array);
    let rules = rules.cloned().unwrap_or_default();
    let row = |rule: Option<&Value>| {
        let mut row = route.clone();
        let of = |field: &str, text: fn(&Value) -> String| -> Vec<String> {
            let list = rule
                .and_then(|rule| rule.get(field))
                .and_then(Value::as_array);
            list.into_iter().flatten().map(text).collect()
        };
        if let Some(fields) = row.as_object_mut() {
            let name = rule.and_then(|rule| rule.get("name")).cloned();
            fields.insert("rule".to_owned(), name.unwrap_or_default());
            fields.insert("matches".to_owned(), json!(of("matches", matched)));
            fields.insert("backends".to_owned(), json!(of("backends", backend)));
        }
        row
    };
    if rules.is_empty() {
        return vec![row(None)];
    }
    rules.iter().map(|rule| row(Some(rule))).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Such as `GET prefix /api header x-team`.
fn matched(value: &Value) -> String {
    let mut words = vec![text(value, "method"), text(value, "path")];
    for (field, word) in [("headers", "header"), ("query", "parameter")] {
        let names = value.get(field).and_then(Value::as_array);
        for name in names.into_iter().flatten().filter_map(Value::as_str) {
            words.extend([word, name]);
        }
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// Such as `shop/web-v2/80 10%`.
fn backend(value: &Value) -> String {
    let percent = value.get("percent").and_then(Value::as_f64).unwrap_or(0.0);
    match value.get("invalid").and_then(Value::as_str) {
        Some(reason) => format!("refused ({reason}) {percent}%"),
        None => format!("{} {percent}%", text(value, "backend")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::rows;

    #[test]
    fn a_rule_is_a_row() {
        let route = json!({"name": "web", "rules": [
            {"name": "0", "matches": [{"path": "prefix /api", "method": "GET", "headers": ["x-team"], "query": []}],
             "backends": [{"backend": "shop/a/80", "weight": 9, "percent": 90.0, "invalid": null},
                          {"backend": null, "weight": 1, "percent": 10.0, "invalid": "backend_not_found"}]},
            {"name": "1", "matches": [], "backends": []},
        ]});
        let rows = rows(route);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["matches"], json!(["GET prefix /api header x-team"]));
        assert_eq!(
            rows[0]["backends"],
            json!(["shop/a/80 90%", "refused (backend_not_found) 10%"])
        );
        assert_eq!(rows[1]["rule"], "1");
    }

    #[test]
    fn a_route_without_rules_is_seen() {
        let rows = rows(json!({"name": "web", "state": "rejected", "rules": []}));
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["state"], "rejected");
    }
}
