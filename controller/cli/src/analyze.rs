//! `karst analyze`: mistakes in what the mesh is configured with, each with a code that stays the same.
//!
//! What the objects mean is asked of the controller's own index: what it cannot take, and what it would write into
//! statuses. What the index cannot know is looked at here: fields that a kind does not have ([`schema`]), rules
//! that never decide ([`rules`]), names that nobody has ([`policies`]), matches that are there twice ([`routes`])
//! and clients in plain text ([`plaintext`]). Start with [`run`]; [`codes`] has all codes.

mod codes;
mod context;
mod cover;
mod finding;
mod objects;
mod plaintext;
mod policies;
mod routes;
mod rules;
mod schema;
#[cfg(test)]
mod tests;

use karst_core::ObjectKey;

use self::context::{Context, Reach};
use self::finding::Finding;
use self::plaintext::Metrics;
use self::schema::Schemas;
use crate::args::Analyze;
use crate::cluster;
use crate::explain::World;
use crate::failure::{Failure, Kind};
use crate::source::{self, Input};

/// Looks for mistakes.
///
/// # Errors
/// The objects cannot be had; or there are findings, and the failure carries the report.
pub fn run(args: &Analyze) -> Result<String, Failure> {
    if args.list {
        return Ok(list(args.output.is_json()));
    }
    let mut schemas = Schemas::of_chart()?;
    let mut metrics = Metrics::default();
    for file in &args.metrics {
        metrics.scrapes.push(source::text(file)?);
    }
    let (input, reach) = match source::offline(&args.objects)? {
        Some(input) => (input, Reach::Manifests),
        None => {
            let (input, definitions) = cluster::run(async {
                let client = cluster::client(&args.objects.kubernetes).await?;
                let input = source::cluster(&args.objects, &client).await?;
                if args.metrics.is_empty() {
                    metrics = plaintext::of_cluster(&client).await?;
                }
                Ok((input, source::custom_definitions(&client).await?))
            })?;
            definitions.iter().for_each(|one| schemas.add(one));
            (input, Reach::Cluster)
        }
    };
    let mut findings = analyze(&input, reach, schemas, &metrics);
    if let Some(namespace) = &args.namespace {
        findings.retain(|one| {
            one.namespace == *namespace || one.object == format!("Namespace {namespace}")
        });
    }
    report(args, &findings)
}

fn report(args: &Analyze, findings: &[Finding]) -> Result<String, Failure> {
    let text = if args.output.is_json() {
        let value = finding::json(findings, args.output_threshold);
        match args.output.pretty {
            true => format!("{value:#}\n"),
            false => format!("{value}\n"),
        }
    } else {
        let namespace = args.namespace.as_ref();
        let what = namespace.map_or("all namespaces".to_owned(), |name| {
            format!("namespace {name}")
        });
        finding::text(findings, args.output_threshold, &what)
    };
    if findings
        .iter()
        .all(|one| one.code.level < args.failure_threshold)
    {
        return Ok(text);
    }
    Err(Failure {
        kind: Kind::Findings,
        reason: "findings".to_owned(),
        message: text,
    })
}

fn list(json: bool) -> String {
    if json {
        let value = serde_json::to_value(codes::ALL).unwrap_or_default();
        return format!("{value}\n");
    }
    let lines = codes::ALL.iter().map(|one| {
        let level = codes::level_word(one.level);
        format!(
            "{}  {level:<8} {:<26} {}\n",
            one.code, one.name, one.summary
        )
    });
    lines.collect()
}

/// Everything that there is to say, the worst first.
fn analyze(input: &Input, reach: Reach, mut schemas: Schemas, metrics: &Metrics) -> Vec<Finding> {
    let read = input.read();
    let context = Context::new(input, &read, reach);
    for document in &input.documents {
        schemas.add(&document.value);
    }
    let mut findings = Vec::new();
    let unknown = schema::all(&context, &schemas, &mut findings);
    objects::all(&context, &unknown, &mut findings);
    rules::all(&context, &mut findings);
    policies::all(&context, &mut findings);
    routes::all(&context, &mut findings);
    if !metrics.scrapes.is_empty() || !metrics.unread.is_empty() {
        let world = World::new(input.read().index);
        plaintext::all(&context, &world, metrics, &mut findings);
    }
    for finding in findings.iter_mut().filter(|one| one.place.is_none()) {
        let is_it = |key: &ObjectKey| key.to_string() == finding.object;
        let at = read
            .taken
            .iter()
            .find(|(key, _)| is_it(key))
            .map(|(_, at)| *at);
        finding.place = at.and_then(|at| input.documents.get(at)?.place.clone());
    }
    finding::tidy(&mut findings);
    findings
}
