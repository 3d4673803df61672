//! Texts with Kubernetes objects: YAML or JSON, document by document.

use serde_json::Value;

/// Longest error text of a parser that is passed on, in characters.
const MAX_PROBLEM_CHARS: usize = 300;

/// The documents of a text in their order, or what is wrong with one. Of YAML a mistake costs one document, of JSON all
/// behind it. What has nothing but comments is none.
#[must_use]
pub fn documents(
    text: &str,
    is_json: bool,
) -> Box<dyn Iterator<Item = Result<Value, String>> + '_> {
    if is_json {
        let stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        Box::new(stream.map(|value| value.map_err(|error| first_line(&error))))
    } else {
        Box::new(split(text).into_iter().map(yaml))
    }
}

/// One document of YAML.
///
/// # Errors
/// What the parser says, in one line.
pub fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| first_line(&error))
}

/// The objects of a document: those of a list, or itself; none if there is nothing in it.
pub fn objects(document: Value) -> Vec<Value> {
    let is_list = document
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind.ends_with("List"));
    match document {
        Value::Null => Vec::new(),
        Value::Object(mut fields) if is_list => match fields.remove("items") {
            Some(Value::Array(items)) => items.into_iter().flat_map(objects).collect(),
            Some(other) => {
                fields.insert("items".to_owned(), other);
                vec![Value::Object(fields)]
            }
            None => vec![Value::Object(fields)],
        },
        other => vec![other],
    }
}

/// Parsers like to draw the place over several lines; the first says it all.
fn first_line(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.chars().take(MAX_PROBLEM_CHARS).collect()
}

/// Splits at the lines that begin a document, so that a mistake costs one document only.
fn split(text: &str) -> Vec<&str> {
    let (mut documents, mut start, mut at) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            documents.push(&text[start..at]);
            start = at;
        }
        at += line.len();
    }
    documents.push(&text[start..]);
    // What stands before the first separator is a document only if there is something.
    documents.retain(|document| {
        document.lines().any(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#') && line != "---" && line != "..."
        })
    });
    documents
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{documents, objects};

    fn all(text: &str) -> Vec<Value> {
        let read = documents(text, false).map(|one| one.expect("reads"));
        read.flat_map(objects).collect()
    }

    #[test]
    fn lists_of_any_kind_are_unfolded() {
        let text = "kind: List\nitems: [{kind: A}, {kind: BList, items: [{kind: B}]}]\n---\n# nothing\n---\nkind: C\n";
        assert_eq!(
            all(text),
            [
                json!({"kind": "A"}),
                json!({"kind": "B"}),
                json!({"kind": "C"})
            ]
        );
        // What only ends so is an object.
        assert_eq!(all("kind: AllowList"), [json!({"kind": "AllowList"})]);
        assert_eq!(
            all("kind: List\nitems: 5"),
            [json!({"kind": "List", "items": 5})]
        );
    }

    #[test]
    fn a_mistake_is_told_in_one_line_and_costs_one_document() {
        let found: Vec<_> = documents("a: 1\n---\nkind: [\n---\nb: 2\n", false).collect();
        let [Ok(_), Err(error), Ok(_)] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert!(!error.contains('\n') && !error.is_empty());
        let found: Vec<_> = documents("{\"a\": 1} {\"b\"", true).collect();
        assert!(matches!(found.as_slice(), [Ok(_), Err(_)]));
    }
}
