//! What can be looked at.

use serde_json::Value;

use super::objects::{
    cert, connection, endpoint, link, map, pod, policy, prog, route, service, tunnel, workload, xds,
};
use super::place::Place;
use super::selector::{Key, Selector};
use super::{Answer, grammar};
use crate::args::Inspect;
use crate::failure::Failure;
use crate::table::Column;

/// A `dump` of its own.
pub type Dump = fn(&Place, &Inspect, &Selector) -> Result<Answer, Failure>;

/// One kind of thing. Each has a module of its own in [`super::objects`].
#[derive(Debug)]
pub struct Object {
    /// The word for it.
    pub name: &'static str,
    /// What text says when there is none.
    pub nothing: &'static str,
    /// Columns of the text.
    pub columns: &'static [Column],
    /// Keywords of its selector.
    pub keys: &'static [Key],
    /// A node's kernel or agent has them.
    pub of_node: bool,
    /// A waypoint has them.
    pub of_waypoint: bool,
    /// All of them.
    pub list: fn(&Place, &Inspect) -> Result<Vec<Value>, Failure>,
    /// `dump`, where it is more than the whole of what JSON shows.
    pub dump: Option<Dump>,
    /// The rows of the text that an item gives.
    pub rows: fn(Value) -> Vec<Value>,
    /// What there is to say for people besides.
    pub notes: fn(&[Value]) -> String,
}

impl Object {
    /// The usual: of a node, by name.
    pub const PLAIN: Self = Self {
        name: "",
        nothing: "",
        columns: &[],
        keys: &[Key::Name, Key::Uid],
        of_node: true,
        of_waypoint: false,
        list: |_, _| Ok(Vec::new()),
        dump: None,
        rows: |item| vec![item],
        notes: |_| String::new(),
    };

    /// How to use it.
    pub fn help(&self) -> String {
        let name = self.name;
        let key = |key: &Key| match key {
            Key::Id => "id N",
            Key::Tag => "tag TAG",
            Key::Name => "name NAME",
            Key::Uid => "uid UID",
            Key::Pinned => "pinned FILE",
        };
        let keys: Vec<_> = self.keys.iter().map(key).collect();
        let upper = name.to_uppercase();
        let dump = if self.dump.is_some() {
            upper.clone()
        } else {
            format!("[{upper}]")
        };
        format!(
            "Usage: karst inspect {name} {{ show | list }} [{upper}]\n       karst inspect {name} dump {dump}\n       \
             karst inspect {name} help\n\n       {upper} := {{ {} | NAME }}\n",
            keys.join(" | ")
        )
    }
}

/// All, in the order in which ambiguous words name them.
pub const OBJECTS: [&Object; 13] = [
    &prog::OBJECT,
    &link::OBJECT,
    &map::OBJECT,
    &pod::OBJECT,
    &connection::OBJECT,
    &tunnel::OBJECT,
    &cert::OBJECT,
    &workload::OBJECT,
    &service::OBJECT,
    &policy::OBJECT,
    &route::OBJECT,
    &endpoint::OBJECT,
    &xds::OBJECT,
];

/// The object a word stands for.
///
/// # Errors
/// The word is no prefix, or one of several.
pub fn find(word: &str) -> Result<&'static Object, Failure> {
    let names = OBJECTS.iter().map(|object| object.name);
    Ok(OBJECTS[grammar::find(word, names, "object")?])
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn unique_prefixes_are_enough() {
        for (word, expected) in [
            ("w", "workload"),
            ("pod", "pod"),
            ("pro", "prog"),
            ("ce", "cert"),
            ("conn", "connection"),
            ("x", "xds"),
            ("r", "route"),
        ] {
            assert_eq!(find(word).expect("found").name, expected);
        }
    }

    #[test]
    fn ambiguous_and_unknown_words_say_so() {
        let message = |word| find(word).expect_err("refused").message;
        assert_eq!(
            message("p"),
            "ambiguous prefix: 'p' could be 'prog' or 'pod' or 'policy'"
        );
        assert_eq!(
            message("c"),
            "ambiguous prefix: 'c' could be 'connection' or 'cert'"
        );
        assert!(message("podd").starts_with("unknown object 'podd'"));
        assert!(message("").starts_with("unknown object ''"));
    }
}
