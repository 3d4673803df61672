//! `karst inspect diff`: what should be on a node, what its agent believes, what the kernel holds and which
//! sockets live there, layer against layer.
//!
//! Everything is read again, several times, before anything is reported: what is different once may be a change on its
//! way, what never is as it should be is a difference ([`Certain`]). A layer that cannot be read is said, and the others
//! are compared without it. Of a node elsewhere this command there reads ([`far`]), and the comparison is made here,
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

/// How often what differs is looked at again before it is reported. Once or twice is not enough on a busy node: changes
/// one after the other may be met at the same moment of their way.
const CONFIRMATIONS: u32 = 5;

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
    let settle = Duration::from_secs(args.diff.settle.into());
    let mut certain = Certain::default();
    loop {
        let intent = layers::intended(&args.diff, node)?;
        let proxies = intent.as_ref().map(Intent::proxy_pods);
        let reading = read(&proxies.unwrap_or_default())?;
        if let Some(report) = certain.add(Layers::new(node, intent, reading)) {
            return Ok(report);
        }
        std::thread::sleep(certain.pause(settle));
    }
}

/// What differed in every reading so far, of what was asked for all the time.
#[derive(Default)]
pub struct Certain {
    readings: u32,
    differences: Vec<Difference>,
    passing: usize,
    last: Option<Layers>,
}

impl Certain {
    /// Takes a further reading; the report, where it was the last that is needed.
    fn add(&mut self, mut layers: Layers) -> Option<Report> {
        let mut now = compare(&layers);
        if let Some(mut last) = self.last.take() {
            // Objects may have changed while the node was read, or since: what the reading before found must differ
            // from what is asked for now as well.
            std::mem::swap(&mut last.intent, &mut layers.intent);
            let meanwhile = compare(&last);
            std::mem::swap(&mut last.intent, &mut layers.intent);
            let (before, count) = (self.differences.len(), now.len());
            now.retain(|one| {
                let is_in = |list: &[Difference]| list.iter().any(|other| one.is_still(other));
                is_in(&self.differences) && is_in(&meanwhile)
            });
            self.passing += before.max(count) - now.len();
        }
        self.differences = now;
        self.readings += 1;
        if self.differences.is_empty() || self.readings > CONFIRMATIONS {
            let differences = std::mem::take(&mut self.differences);
            return Some(Report::new(&layers, differences, self.passing));
        }
        self.last = Some(layers);
        None
    }

    /// How long to wait for the next reading; all waits together are `settle`. No two are the same: what changes at
    /// regular times must not be met at the same point of its way each time.
    fn pause(&self, settle: Duration) -> Duration {
        let all = CONFIRMATIONS * (CONFIRMATIONS + 1) / 2;
        settle * self.readings / all
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
