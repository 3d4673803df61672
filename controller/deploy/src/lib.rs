//! Karst's Helm charts, and the one renderer that the command line and the developer commands use.
//!
//! The charts under `charts/` are ordinary ones: `helm install` works with them. The same files are
//! embedded here and rendered by a small subset of Helm's template language ([`template`]), so that
//! `karst install` needs no helm and cannot differ from the chart. Values are merged as Helm does it
//! ([`values`]) and checked against the chart's own `values.schema.json` ([`schema`]).
//!
//! It talks to no cluster. Start with [`chart::Chart::render`].

pub mod chart;
pub mod schema;
pub mod template;
pub mod values;
pub mod yaml;

/// Why a chart cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The values given are wrong; every mistake is listed.
    #[error("{} mistake(s) in the values\n  {}", .0.len(), .0.join("\n  "))]
    Values(Vec<String>),
    /// A template of the chart is wrong.
    #[error("{file}: {problem}")]
    Template {
        /// The template's file.
        file: String,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// Stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Values(_) => "values_invalid",
            Self::Template { .. } => "chart_invalid",
        }
    }
}
