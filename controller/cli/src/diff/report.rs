//! What is found, in words and in JSON.

use serde::Serialize;
use serde_json::{Value, json};

use super::codes::Code;
use super::layers::{Layers, Said};
use crate::args::Output;

/// Two layers that do not agree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// What kind.
    pub code: &'static Code,
    /// `pod shop/web-0`, `map PODS`, …
    pub object: Object,
    /// The layer that expects, and the layer where it is not so.
    pub between: (&'static str, &'static str),
    /// What is expected.
    pub expected: String,
    /// What is found.
    pub found: String,
}

impl Difference {
    /// Whether this is the other one still. What is found may have changed: it is not what is expected all the same.
    pub fn is_still(&self, other: &Self) -> bool {
        self.code == other.code
            && self.between == other.between
            && self.object == other.object
            && self.expected == other.expected
    }
}

/// What differs. A pod that comes after another one of its name is another object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// For people.
    pub text: String,
    /// Of a pod.
    pub uid: Option<String>,
}

impl<T: AsRef<str>> From<T> for Object {
    fn from(text: T) -> Self {
        Self {
            text: text.as_ref().to_owned(),
            uid: None,
        }
    }
}

/// Everything there is to say.
#[derive(Debug)]
pub struct Report {
    node: String,
    layers: Vec<Said>,
    not_compared: Vec<String>,
    /// What differs.
    pub differences: Vec<Difference>,
    /// Differences that not every reading had.
    passing: usize,
}

/// Lists of differences as they are made.
pub type Found = Vec<Difference>;

/// Adds one.
pub fn add(
    found: &mut Found,
    code: &'static Code,
    between: (&'static str, &'static str),
    object: impl Into<Object>,
    (expected, instead): (impl Into<String>, impl Into<String>),
) {
    found.push(Difference {
        code,
        object: object.into(),
        between,
        expected: expected.into(),
        found: instead.into(),
    });
}

impl Serialize for Difference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json!({
            "code": self.code.id,
            "name": self.code.name,
            "between": [self.between.0, self.between.1],
            "object": self.object.text,
            "pod_uid": self.object.uid,
            "expected": self.expected,
            "found": self.found,
            "hint": self.code.hint,
        })
        .serialize(serializer)
    }
}

impl Report {
    /// The report on what was read last.
    pub fn new(layers: &Layers, differences: Found, passing: usize) -> Self {
        Self {
            node: layers.node.clone(),
            layers: layers.said(),
            not_compared: layers.not_compared(),
            differences,
            passing,
        }
    }

    /// As it is asked for.
    pub fn render(&self, output: Output) -> String {
        if output.pretty {
            return format!("{:#}\n", self.value());
        }
        if output.json {
            return format!("{}\n", self.value());
        }
        self.text()
    }

    fn value(&self) -> Value {
        json!({
            "node": self.node,
            "layers": self.layers,
            "not_compared": self.not_compared,
            "passing": self.passing,
            "differences": self.differences,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for layer in &self.layers {
            let how = if layer.read { "" } else { "NOT READ: " };
            text.push_str(&format!("{:<8} {how}{}\n", layer.layer, layer.text));
        }
        for what in &self.not_compared {
            text.push_str(&format!("not compared: {what}\n"));
        }
        for one in &self.differences {
            text.push_str(&format!(
                "{} {} {}/{} {}: expected {}; found {}; do: {}\n",
                one.code.id,
                one.code.name,
                one.between.0,
                one.between.1,
                one.object.text,
                one.expected,
                one.found,
                one.code.hint
            ));
        }
        let count = match self.differences.len() {
            0 => "nothing differs".to_owned(),
            1 => "1 difference".to_owned(),
            many => format!("{many} differences"),
        };
        text.push_str(&count);
        if self.passing > 0 {
            text.push_str(&format!(
                " ({} more were not in every reading: changes on their way)",
                self.passing
            ));
        }
        text.push('\n');
        text
    }
}
