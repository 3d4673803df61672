//! What a check found, and how a list of findings is shown.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::style::{BAD, DIM, GOOD, WARN, paint};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth a look, or could not be checked.
    Warning,
    /// Not as it must be.
    Failed,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable name, `group.check`.
    pub id: &'static str,
    /// How it is.
    pub level: Level,
    /// One sentence: on what, and how it is.
    pub message: String,
    /// What to do, unless it is well.
    pub advice: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(id: &'static str, message: impl Into<String>) -> Self {
        Self {
            id,
            level: Level::Ok,
            message: message.into(),
            advice: None,
        }
    }

    /// Worth a look.
    pub fn warning(
        id: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            id,
            level: Level::Warning,
            message: message.into(),
            advice: Some(advice.into()),
        }
    }

    /// Not as it must be.
    pub fn failed(id: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Failed,
            ..Self::warning(id, message, advice)
        }
    }

    /// It could not be checked.
    pub fn unknown(id: &'static str, failure: &Failure) -> Self {
        Self::warning(
            id,
            format!("could not be checked: {}", failure.message),
            "run the check as a user who may read this, or look by hand",
        )
    }
}

/// All findings.
#[derive(Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Adds one.
    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Adds several.
    pub fn extend(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
    }

    /// Whether any check failed.
    pub fn has_failed(&self) -> bool {
        self.count(Level::Failed) > 0
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|f| f.level == level).count()
    }

    /// For people: one line a check, and what to do below it.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            let (style, sign) = match finding.level {
                Level::Ok => (GOOD, "ok"),
                Level::Warning => (WARN, "warning"),
                Level::Failed => (BAD, "FAILED"),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "{} {} {}",
                paint(style, &format!("{sign:<8}")),
                paint(DIM, &format!("{:<22}", finding.id)),
                finding.message.replace('\n', "\n         ")
            );
            if let Some(advice) = &finding.advice {
                let _ = writeln!(
                    out,
                    "         -> {}",
                    advice.replace('\n', "\n            ")
                );
            }
        }
        let _ = writeln!(
            out,
            "{} ok, {} warnings, {} failed",
            self.count(Level::Ok),
            self.count(Level::Warning),
            self.count(Level::Failed)
        );
        out
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let findings = self.findings.iter().map(|finding| {
            json!({
                "id": finding.id,
                "level": finding.level.word(),
                "message": finding.message,
                "advice": finding.advice,
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ok": self.count(Level::Ok),
            "warnings": self.count(Level::Warning),
            "failed": self.count(Level::Failed),
            "checks": findings.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, Report};

    #[test]
    fn a_report_counts_and_gives_advice() {
        let mut report = Report::default();
        report.add(Finding::ok("a.a", "fine"));
        report.add(Finding::warning("a.b", "hm", "look"));
        assert!(!report.has_failed());
        report.add(Finding::failed("a.c", "bad", "do this"));
        assert!(report.has_failed());
        let text = report.text();
        assert!(text.contains("-> do this"), "{text}");
        assert!(text.ends_with("1 ok, 1 warnings, 1 failed\n"), "{text}");
        let json = report.json();
        assert_eq!(json["checks"][2]["level"], "failed");
        assert_eq!(json["checks"][0]["advice"], serde_json::Value::Null);
    }
}
