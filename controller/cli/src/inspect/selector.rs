//! Which of many.

use std::path::Path;

use serde_json::Value;

use super::grammar;
use super::object::Object;
use crate::failure::Failure;

/// A keyword of a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Kernel id.
    Id,
    /// The kernel's hash of a program.
    Tag,
    /// Name.
    Name,
    /// Uid of a pod or workload.
    Uid,
    /// Pin.
    Pinned,
}

impl Key {
    fn word(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Tag => "tag",
            Self::Name => "name",
            Self::Uid => "uid",
            Self::Pinned => "pinned",
        }
    }
}

/// Picks items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// All.
    All,
    /// Those of any name that is this.
    Named(String),
    /// By one of the keywords.
    By(Key, String),
}

/// Fields that may hold what people call an item.
const NAMES: [&str; 10] = [
    "name",
    "uid",
    "key",
    "hostname",
    "id",
    "pod",
    "pod_uid",
    "destination_uid",
    "workload",
    "backend",
];

impl Selector {
    /// Reads what follows a command. The errors are those of bpftool.
    ///
    /// # Errors
    /// It is none of what there may be.
    pub fn parse(words: &[String], keys: &[Key]) -> Result<Self, Failure> {
        let what_is = |word: &str| Failure::usage(format!("what is '{word}'?"));
        match words {
            [] => Ok(Self::All),
            [word] if word.is_empty() || keys.iter().any(|key| key.word() == word) => {
                Err(what_is(word))
            }
            [word] => Ok(Self::Named(word.clone())),
            [word, value] => {
                let place = grammar::lookup(word, keys.iter().map(|key| key.word()))?;
                let key = place.and_then(|place| keys.get(place));
                let key = *key.ok_or_else(|| Failure::usage(expected(keys, word)))?;
                if key == Key::Id && value.parse::<u32>().is_err() {
                    return Err(Failure::usage(format!("can't parse {value} as ID")));
                }
                Ok(Self::By(key, value.clone()))
            }
            [word, ..] => Err(what_is(word)),
        }
    }

    /// Keeps what is meant; all of it without a selector.
    ///
    /// # Errors
    /// There is none.
    pub fn select(&self, object: &Object, items: Vec<Value>) -> Result<Vec<Value>, Failure> {
        if *self == Self::All {
            return Ok(items);
        }
        let found: Vec<_> = items.into_iter().filter(|item| self.fits(item)).collect();
        if found.is_empty() {
            return Err(self.not_found(object.name));
        }
        Ok(found)
    }

    /// That there is no such object.
    pub fn not_found(&self, object: &str) -> Failure {
        Failure::not_found(match self {
            Self::All => format!("no {object}"),
            Self::Named(name) | Self::By(Key::Name, name) => format!("no {object} '{name}'"),
            Self::By(key, value) => format!("no {object} with {} {value}", key.word()),
        })
    }

    fn fits(&self, item: &Value) -> bool {
        let text = |key: &str| item.get(key).and_then(Value::as_str);
        match self {
            Self::All => true,
            Self::Named(name) => is_named(item, name),
            Self::By(Key::Id, id) => {
                let own = item.get("id").and_then(Value::as_u64);
                own.map(|own| own.to_string()) == id.parse::<u32>().ok().map(|id| id.to_string())
            }
            Self::By(Key::Tag, tag) => text("tag") == Some(tag),
            Self::By(Key::Name, name) => is_named(item, name),
            Self::By(Key::Uid, uid) => ["uid", "pod_uid", "destination_uid", "workload"]
                .iter()
                .any(|field| text(field) == Some(uid)),
            Self::By(Key::Pinned, file) => {
                let same = |pin: &Value| pin.as_str().is_some_and(|pin| is_same(pin, file));
                match item.get("pinned") {
                    Some(Value::Array(pins)) => pins.iter().any(same),
                    Some(pin) => same(pin),
                    None => false,
                }
            }
        }
    }
}

fn expected(keys: &[Key], got: &str) -> String {
    let words: Vec<_> = keys.iter().map(|key| format!("'{}'", key.word())).collect();
    let list = match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "no keyword".to_owned(),
    };
    format!("expected {list}, got: '{got}'?")
}

fn is_same(pin: &str, file: &str) -> bool {
    let file = Path::new(file);
    Path::new(pin) == file
        || std::fs::canonicalize(file).is_ok_and(|canonical| canonical == Path::new(pin))
}

/// Whether an item is called so: by its name alone or with its namespace, a uid, or an id.
pub fn is_named(item: &Value, name: &str) -> bool {
    let text = |key: &str| item.get(key).and_then(Value::as_str);
    let by_number = item
        .get("id")
        .and_then(Value::as_u64)
        .is_some_and(|id| id.to_string() == name);
    let full = match (text("namespace"), text("name").or(text("service"))) {
        (Some(namespace), Some(own)) => name.split_once('/') == Some((namespace, own)),
        _ => false,
    };
    by_number || full || NAMES.iter().any(|key| text(key) == Some(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Key, Selector, is_named};
    use crate::failure::Kind;
    use crate::inspect::object;

    const KEYS: [Key; 4] = [Key::Id, Key::Tag, Key::Name, Key::Pinned];

    fn parse(words: &[&str]) -> Result<Selector, String> {
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        Selector::parse(&words, &KEYS).map_err(|failure| {
            assert_eq!(failure.kind, Kind::Usage);
            failure.message
        })
    }

    #[test]
    fn keywords_may_be_cut() {
        assert_eq!(parse(&[]), Ok(Selector::All));
        assert_eq!(parse(&["web"]), Ok(Selector::Named("web".to_owned())));
        for word in ["p", "pin", "pinned"] {
            let expected = Selector::By(Key::Pinned, "/f".to_owned());
            assert_eq!(parse(&[word, "/f"]), Ok(expected));
        }
        assert_eq!(
            parse(&["i", "7"]),
            Ok(Selector::By(Key::Id, "7".to_owned()))
        );
    }

    #[test]
    fn errors_are_in_bpftools_words() {
        for (words, expected) in [
            (&["id"][..], "what is 'id'?"),
            (&["id", "1", "more"], "what is 'id'?"),
            (&["id", "x"], "can't parse x as ID"),
            (&["id", "3x"], "can't parse 3x as ID"),
            (
                &["idd", "3"],
                "expected 'id', 'tag', 'name' or 'pinned', got: 'idd'?",
            ),
        ] {
            assert_eq!(parse(words), Err(expected.to_owned()));
        }
    }

    #[test]
    fn items_are_named_in_several_ways() {
        let item = json!({"namespace": "ns", "name": "web", "uid": "u-1", "id": 17});
        for name in ["web", "ns/web", "u-1", "17"] {
            assert!(is_named(&item, name), "{name}");
        }
        for name in ["we", "other/web", "ns", "1"] {
            assert!(!is_named(&item, name), "{name}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let prog = object::find("prog").expect("is there");
        let items = || {
            vec![
                json!({"id": 3, "tag": "ab", "name": "a", "pinned": ["/x/l1", "/x/l2"]}),
                json!({"id": 4, "tag": "ab", "name": "b", "pinned": ["/x/l3"]}),
            ]
        };
        let count = |words: &[&str]| {
            let found = parse(words).expect("parses").select(prog, items());
            found.map(|found| found.len()).map_err(|failure| {
                assert_eq!(failure.kind, Kind::NotFound);
                failure.message
            })
        };
        assert_eq!(count(&["id", "3"]), Ok(1));
        assert_eq!(count(&["id", "03"]), Ok(1));
        assert_eq!(count(&["tag", "ab"]), Ok(2));
        assert_eq!(count(&["pinned", "/x/l2"]), Ok(1));
        assert_eq!(count(&["name", "c"]), Err("no prog 'c'".to_owned()));
        assert_eq!(count(&["id", "5"]), Err("no prog with id 5".to_owned()));
    }
}
