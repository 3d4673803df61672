//! `karst inspect diff`: what should be on a node, what its agent believes, what the kernel holds and which
//! sockets live there, layer against layer.
//!
//! Everything is read again, twice, before anything is reported: what is different once may be a change on its
//! way, what is different in the same way every time is a difference. A layer that cannot be read is said, and the others are
//! compared without it. Of a node elsewhere this command there reads ([`far`]), and the comparison is made here,
//! where the objects are. Start with [`run`], or of all nodes with [`nodes`]; [`layers`] reads, the other modules
//! compare two layers each.

mod agent;
mod codes;
mod far;
mod kernel;
mod layers;
mod mesh;
pub mod nodes;
mod proxies;
mod report;
mod sockets;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::codes::CODES;
use self::layers::{Intent, Layers, Reader, Reading};
use self::report::{Difference, Report};
use crate::args::Inspect;
use crate::failure::{Failure, Kind};
use crate::inspect::{self, place::Place};

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
    let place = Place::find(args, &inspect::objects::pod::OBJECT)?;
    if args.diff.layers {
        let reading = Reader::new(args, place.here()?)?.read(&args.diff.proxies);
        let text = serde_json::to_string(&reading);
        return text.map_err(|error| Failure::failed("json", error.to_string()));
    }
    let report = match &place {
        Place::Remote(node) => settled(args, node.name(), |wanted| far::read(node, wanted))?,
        place => {
            let reader = Reader::new(args, place.here()?)?;
            settled(args, reader.node(), |wanted| Ok(reader.read(wanted)))?
        }
    };
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

/// Reads and compares until what differs is certain. `read` reads a node, with the proxies in these pods.
fn settled(
    args: &Inspect,
    node: &str,
    mut read: impl FnMut(&[String]) -> Result<Reading, Failure>,
) -> Result<Report, Failure> {
    let mut certain = Certain::default();
    loop {
        let intent = layers::intended(&args.diff, node)?;
        let proxies = intent.as_ref().map(Intent::proxy_pods);
        let reading = read(&proxies.unwrap_or_default())?;
        let layers = Layers::new(node, intent, reading);
        if certain.add(compare(&layers)) {
            return Ok(certain.report(&layers));
        }
        std::thread::sleep(Duration::from_secs(args.diff.settle.into()));
    }
}

/// What differed in every reading so far.
#[derive(Default)]
pub struct Certain {
    readings: usize,
    differences: Vec<Difference>,
    passing: usize,
}

impl Certain {
    /// Takes what a further reading has; whether it was the last that is needed.
    fn add(&mut self, mut now: Vec<Difference>) -> bool {
        let count = now.len();
        if self.readings > 0 {
            now.retain(|one| self.differences.contains(one));
            self.passing += self.differences.len().max(count) - now.len();
        }
        self.differences = now;
        self.readings += 1;
        self.differences.is_empty() || self.readings > CONFIRMATIONS
    }

    fn report(self, layers: &Layers) -> Report {
        Report::new(layers, self.differences, self.passing)
    }
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
