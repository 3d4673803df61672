//! What was found, and how it is shown.

use std::fmt::Write as _;

use karst_core::ObjectKey;
use serde_json::{Value, json};

use super::codes::{Code, Level, level_word};
use crate::source::Place;
use crate::style::{BAD, DIM, WARN, paint};

/// One finding.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What kind of finding.
    pub code: &'static Code,
    /// `Kind namespace/name`.
    pub object: String,
    /// The object's namespace; empty for what is in none.
    pub namespace: String,
    /// Path of the field; empty for the whole.
    pub field: String,
    /// What is the matter, one sentence or part of one about the field.
    pub message: String,
    /// What to do.
    pub advice: String,
    /// Where the object is written.
    pub place: Option<Place>,
}

impl Finding {
    /// A finding on an object.
    pub fn on(
        key: &ObjectKey,
        code: &'static Code,
        field: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            code,
            object: key.to_string(),
            namespace: key.namespace.clone(),
            field: field.into(),
            message: message.into(),
            advice: advice.into(),
            place: None,
        }
    }

    fn order(&self) -> (std::cmp::Reverse<Level>, &str, &str, &str, &str) {
        let level = std::cmp::Reverse(self.code.level);
        (
            level,
            self.code.code,
            &self.object,
            &self.field,
            &self.message,
        )
    }
}

/// Sorts findings, the worst first, and leaves out what was said twice.
pub fn tidy(findings: &mut Vec<Finding>) {
    findings.sort_by(|a, b| a.order().cmp(&b.order()));
    findings.dedup_by(|a, b| a.order() == b.order());
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings
        .iter()
        .filter(|one| one.code.level == level)
        .count()
}

/// For people.
pub fn text(findings: &[Finding], shown: Level, what: &str) -> String {
    let mut out = String::new();
    for finding in findings.iter().filter(|one| one.code.level >= shown) {
        let style = match finding.code.level {
            Level::Error => BAD,
            Level::Warning => WARN,
            Level::Info => DIM,
        };
        let level = paint(style, level_word(finding.code.level));
        let field = if finding.field.is_empty() {
            String::new()
        } else {
            format!("{} ", finding.field)
        };
        let (code, object) = (finding.code.code, &finding.object);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{level} [{code}] ({object}) {field}{}",
            finding.message
        );
        if !finding.advice.is_empty() {
            let _ = writeln!(out, "  -> {}", finding.advice);
        }
        if let Some(place) = &finding.place {
            let _ = writeln!(out, "  {}", paint(DIM, &format!("in {place}")));
        }
    }
    let _ = match findings.is_empty() {
        true => writeln!(out, "Nothing found in {what}."),
        false => writeln!(
            out,
            "{} errors, {} warnings, {} infos in {what}",
            count(findings, Level::Error),
            count(findings, Level::Warning),
            count(findings, Level::Info)
        ),
    };
    out
}

/// For programs.
pub fn json(findings: &[Finding], shown: Level) -> Value {
    let listed = findings
        .iter()
        .filter(|one| one.code.level >= shown)
        .map(|one| {
            let (kind, name) = one.object.split_once(' ').unwrap_or(("", &one.object));
            let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
            json!({
                "code": one.code.code,
                "name": one.code.name,
                "level": level_word(one.code.level),
                "object": {"kind": kind, "namespace": one.namespace, "name": name},
                "field": one.field,
                "message": one.message,
                "advice": one.advice,
                "file": one.place.as_ref().map(|place| place.file.display().to_string()),
                "document": one.place.as_ref().map(|place| place.document),
            })
        });
    json!({
        "errors": count(findings, Level::Error),
        "warnings": count(findings, Level::Warning),
        "infos": count(findings, Level::Info),
        "findings": listed.collect::<Vec<_>>(),
    })
}
