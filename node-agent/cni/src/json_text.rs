//! Where the parts of a JSON text are, so that one can be cut out or put in and every other byte
//! stays what it was.

use std::ops::Range;

/// A member of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, unescaped.
    pub key: String,
    /// Where its value is.
    pub value: Range<usize>,
}

/// The members of the object that is `text[within]`, in order. `None` when it is no object.
pub fn members(text: &str, within: Range<usize>) -> Option<Vec<Member>> {
    let mut members = Vec::new();
    for item in items(text, within, (b'{', b'}'))? {
        let key_end = skip_value(text.as_bytes(), item.start)?;
        let key = serde_json::from_str(&text[item.start..key_end]).ok()?;
        let colon = skip_space(text.as_bytes(), key_end);
        if text.as_bytes().get(colon) != Some(&b':') {
            return None;
        }
        let start = skip_space(text.as_bytes(), colon + 1);
        members.push(Member {
            key,
            value: start..item.end,
        });
    }
    Some(members)
}

/// The elements of the array that is `text[within]`, in order. `None` when it is no array.
pub fn elements(text: &str, within: Range<usize>) -> Option<Vec<Range<usize>>> {
    items(text, within, (b'[', b']'))
}

/// The whole text less the space around it.
pub fn whole(text: &str) -> Range<usize> {
    let start = skip_space(text.as_bytes(), 0);
    start
        ..text
            .trim_end_matches([' ', '\t', '\r', '\n'])
            .len()
            .max(start)
}

/// What stands between the commas of an object or array.
fn items(text: &str, within: Range<usize>, brackets: (u8, u8)) -> Option<Vec<Range<usize>>> {
    let bytes = text.as_bytes().get(..within.end)?;
    let mut at = within.start;
    if bytes.get(at) != Some(&brackets.0) {
        return None;
    }
    at = skip_space(bytes, at + 1);
    let mut items = Vec::new();
    if bytes.get(at) == Some(&brackets.1) {
        return Some(items);
    }
    loop {
        let start = at;
        let mut end = skip_value(bytes, at)?;
        at = skip_space(bytes, end);
        if brackets.0 == b'{' {
            if bytes.get(at) != Some(&b':') {
                return None;
            }
            end = skip_value(bytes, skip_space(bytes, at + 1))?;
            at = skip_space(bytes, end);
        }
        items.push(start..end);
        match *bytes.get(at)? {
            b',' => at = skip_space(bytes, at + 1),
            byte if byte == brackets.1 => return Some(items),
            _ => return None,
        }
    }
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
        at += 1;
    }
    at
}

/// The end of the value that begins at `at`, with brackets counted and strings passed over.
fn skip_value(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        match *bytes.get(at)? {
            b'"' => at = skip_string(bytes, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            _ if depth > 0 => at += 1,
            // A number, true, false or null.
            _ => {
                let start = at;
                while bytes.get(at).is_some_and(|b| is_plain(*b)) {
                    at += 1;
                }
                return (at > start).then_some(at);
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

fn skip_string(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match *bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{elements, members, whole};

    #[test]
    fn members_are_found_with_their_bytes() {
        let text = " {\"a\" : [1, \"]}\\\"\"] ,\n \"b\":{\"c\":{}}, \"n\": -1.5e3,\"t\":true } ";
        let found = members(text, whole(text)).expect("an object");
        let seen: Vec<_> = found
            .iter()
            .map(|m| (m.key.as_str(), &text[m.value.clone()]))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", "[1, \"]}\\\"\"]"),
                ("b", "{\"c\":{}}"),
                ("n", "-1.5e3"),
                ("t", "true")
            ]
        );
        let inner = elements(text, found[0].value.clone()).expect("an array");
        assert_eq!(inner.len(), 2);
        assert_eq!(&text[inner[0].clone()], "1");
    }

    #[test]
    fn keys_are_unescaped() {
        let text = r#"{"plug\u0069ns": []}"#;
        let found = members(text, whole(text)).expect("an object");
        assert_eq!(found[0].key, "plugins");
        assert_eq!(elements(text, found[0].value.clone()), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_json_is_none_and_no_panic() {
        for text in [
            "",
            " ",
            "{",
            "[",
            "{\"a\"}",
            "{\"a\":}",
            "[1,]",
            "[1 2]",
            "{\"a\":1,}",
            "\"",
            "{\"a\\",
            "]",
            "[}",
            "ä",
            "{ä:1}",
        ] {
            assert_eq!(members(text, whole(text)), None, "{text:?}");
        }
        assert_eq!(elements("[1,]", 0..4), None);
        assert_eq!(elements("[", 0..1), None);
        assert_eq!(elements("[1]", 0..99), None);
    }
}
