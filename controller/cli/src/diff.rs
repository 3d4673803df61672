//! `karst inspect diff`: what should be on a node, what its agent believes, what the kernel holds and which
//! sockets live there, layer against layer.
//!
//! Everything is read again, twice, before anything is reported: what is different once may be a change on its
//! way, what is different in the same way every time is a difference. A layer that cannot be read is said, and the others are
//! compared without it. Start with [`run`]; [`layers`] reads, the other modules compare two layers each.

mod agent;
mod codes;
mod kernel;
mod layers;
mod mesh;
mod proxies;
mod report;
mod sockets;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::codes::CODES;
use self::layers::{Layers, Reader};
use self::report::{Difference, Report};
use crate::args::Inspect;
use crate::failure::{Failure, Kind};

/// How often what differs is looked at again before it is reported. Once is not enough on a busy node: two
/// changes one after the other may be met at the same moment of their way.
const CONFIRMATIONS: usize = 2;

/// Whether this word of the command line asks for it.
pub fn is_meant(word: &str) -> bool {
    word.len() >= 2 && "diff".starts_with(word)
}

/// Compares.
///
/// # Errors
/// Something differs, or nothing could be compared.
pub fn run(args: &Inspect) -> Result<String, Failure> {
    let verb = args.words.get(1).map(String::as_str);
    if verb == Some("help") {
        return Ok(help(args));
    }
    if let Some(word) = verb.filter(|word| !"show".starts_with(word)) {
        let text = format!("inspect diff takes no command '{word}': only show and help");
        return Err(Failure::usage(text));
    }
    let reader = Reader::new(args)?;
    let mut layers = reader.read()?;
    let mut differences = compare(&layers);
    let mut passing = 0;
    for _ in 0..CONFIRMATIONS {
        if differences.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_secs(args.diff.settle.into()));
        layers = reader.read()?;
        let before = std::mem::take(&mut differences);
        differences = compare(&layers);
        let now = differences.len();
        differences.retain(|one| before.contains(one));
        passing += before.len().max(now) - differences.len();
    }
    let report = Report::new(&layers, differences, passing);
    let text = report.render(args.output);
    if report.differences.is_empty() {
        return Ok(text);
    }
    Err(Failure {
        kind: Kind::Differs,
        reason: "differs".to_owned(),
        message: text,
    })
}

fn help(args: &Inspect) -> String {
    if args.output.is_json() {
        return "null\n".to_owned();
    }
    let codes = CODES
        .iter()
        .map(|code| format!("  {}  {:<24}{}\n", code.id, code.name, code.says));
    format!(
        "Usage: karst inspect diff [-f FILE | --source DIR | --no-intent] [--settle SECONDS] [-j] [-p]\n\n{}",
        codes.collect::<String>()
    )
}

/// All differences, by code and object.
fn compare(layers: &Layers) -> Vec<Difference> {
    let mut found = Vec::new();
    agent::compare(layers, &mut found);
    mesh::compare(layers, &mut found);
    proxies::compare(layers, &mut found);
    kernel::compare(layers, &mut found);
    sockets::compare(layers, &mut found);
    found.sort();
    found.dedup();
    found
}
