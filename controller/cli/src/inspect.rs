//! `karst inspect`: says what is on a node, with bpftool's grammar.
//!
//! [`object::OBJECTS`] has what can be looked at, one small module each; [`grammar`] reads the words,
//! [`selector`] picks, [`place`] finds out whom to ask, [`remote`] reaches nodes and waypoints through
//! the API server, [`batch`] runs many commands. Start with [`run`].

pub mod batch;
pub mod grammar;
pub mod object;
pub mod objects;
pub mod place;
pub mod remote;
pub mod selector;

use serde_json::{Value, json};

use crate::args::{Inspect, Output};
use crate::diff;
use crate::failure::{Failure, Kind};
use crate::table::render;
use grammar::Command;
use object::Object;
use place::Place;
use selector::Selector;

const HELP: &str = "\
Usage: karst inspect [OPTIONS] OBJECT { COMMAND [SELECTOR] | help }
       karst inspect [OPTIONS] diff
       karst inspect [OPTIONS] batch file FILE
       karst inspect version

       OBJECT := { prog | link | map | pod | connection | tunnel | cert | workload | service | policy |
                   route | endpoint | xds }
       OPTIONS := { {-j|--json} [{-p|--pretty}] | --stats SECONDS | --node NODE | --pod NAMESPACE/POD |
                    --waypoint-address ADDRESS | --admin-socket FILE }
       `karst inspect --help` says more.
";

/// What a command prints, and how it ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For standard output.
    pub out: String,
    /// For standard error.
    pub err: String,
    /// The process exit code.
    pub code: u8,
}

/// What a command says.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// For a program.
    Json(Value),
    /// For people: the answer, and what there is to say about it.
    Text {
        /// For standard output.
        text: String,
        /// For standard error.
        notes: String,
    },
}

impl Answer {
    /// Text without notes.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text {
            text: text.into(),
            notes: String::new(),
        }
    }
}

/// Runs the command.
pub fn run(args: &Inspect) -> Outcome {
    if args.words.first().is_some_and(|word| diff::is_meant(word)) {
        return compare(args);
    }
    if let Some(word) = args.words.first()
        && grammar::is_prefix(word, "batch")
        && object::find(word).is_err()
    {
        return batch::run(args);
    }
    outcome(one(args, &args.words), args.output)
}

fn compare(args: &Inspect) -> Outcome {
    match diff::run(args) {
        Ok(out) => Outcome {
            out,
            ..Outcome::default()
        },
        Err(failure) if failure.kind == Kind::Differs => Outcome {
            code: failure.kind.exit_code(),
            out: failure.message,
            ..Outcome::default()
        },
        Err(failure) => outcome(Err(failure), args.output),
    }
}

/// An answer, or a failure, as it is printed.
pub fn outcome(answer: Result<Answer, Failure>, output: Output) -> Outcome {
    match answer {
        Ok(Answer::Json(value)) => Outcome {
            out: json_text(&value, output),
            ..Outcome::default()
        },
        Ok(Answer::Text { text, notes }) => Outcome {
            out: text,
            err: notes,
            code: 0,
        },
        Err(failure) => {
            let mut outcome = Outcome {
                code: failure.kind.exit_code(),
                ..Outcome::default()
            };
            if output.is_json() {
                outcome.out = json_text(&error(&failure), output);
            } else {
                outcome.err = format!("Error: {}\n", failure.message);
            }
            outcome
        }
    }
}

/// A failure for a program: bpftool's `error`, and our stable `reason`.
pub fn error(failure: &Failure) -> Value {
    json!({"error": failure.message, "reason": failure.reason})
}

fn json_text(value: &Value, output: Output) -> String {
    if output.pretty {
        format!("{value:#}\n")
    } else {
        format!("{value}\n")
    }
}

/// Runs one command, which is not a batch.
///
/// # Errors
/// See [`Failure`].
pub fn one(args: &Inspect, words: &[String]) -> Result<Answer, Failure> {
    let Some((word, rest)) = words.split_first() else {
        return Ok(help(args.output, HELP));
    };
    match word.as_str() {
        "help" => return Ok(help(args.output, HELP)),
        "version" => return Ok(version(args.output)),
        _ => {}
    }
    let object = object::find(word)?;
    let (command, rest) = match rest.split_first() {
        Some((word, rest)) => (grammar::command(word)?, rest),
        None => (Command::Show, rest),
    };
    if command == Command::Help {
        return Ok(help(args.output, &object.help()));
    }
    if args.stats.is_some() && object.name != "prog" {
        return Err(Failure::usage("--stats is for `prog`"));
    }
    let selector = Selector::parse(rest, object.keys)?;
    match Place::find(args, object)? {
        Place::Remote(node) => node.run(args, words),
        place => {
            let list = || (object.list)(&place, args);
            match (command, object.dump) {
                (Command::Dump, Some(dump)) => dump(&place, args, &selector),
                (Command::Dump, None) => whole(object, list()?, &selector, args.output),
                _ => show(object, list()?, &selector, args.output),
            }
        }
    }
}

/// In JSON mode help is `null`, as in bpftool, so that a program sees no prose.
fn help(output: Output, text: &str) -> Answer {
    if output.is_json() {
        return Answer::Json(Value::Null);
    }
    Answer::Text {
        text: String::new(),
        notes: text.to_owned(),
    }
}

fn version(output: Output) -> Answer {
    let version = env!("CARGO_PKG_VERSION");
    if output.is_json() {
        let layout = karst_datapath::LAYOUT_VERSION;
        return Answer::Json(json!({"version": version, "map_layout": layout}));
    }
    Answer::text(format!("karst {version}\n"))
}

fn show(
    object: &Object,
    items: Vec<Value>,
    selector: &Selector,
    output: Output,
) -> Result<Answer, Failure> {
    let items = selector.select(object, items)?;
    if output.is_json() {
        return Ok(Answer::Json(Value::Array(items)));
    }
    let notes = (object.notes)(&items);
    let rows: Vec<_> = items.into_iter().flat_map(object.rows).collect();
    Ok(Answer::Text {
        text: render(&rows, object.columns, object.nothing),
        notes,
    })
}

/// The whole of an object is what JSON shows, so that is what `dump` prints for people too.
fn whole(
    object: &Object,
    items: Vec<Value>,
    selector: &Selector,
    output: Output,
) -> Result<Answer, Failure> {
    let items = Value::Array(selector.select(object, items)?);
    if output.is_json() {
        return Ok(Answer::Json(items));
    }
    Ok(Answer::text(format!("{items:#}\n")))
}

#[cfg(test)]
#[path = "inspect/tests.rs"]
mod tests;
