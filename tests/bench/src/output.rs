//! Where a result goes: a table or JSON to standard output, and files beside them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::chart::Chart;

/// Arguments about the result that all benchmarks have.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Output {
    /// Print the result as one JSON object instead of a table.
    #[arg(short, long)]
    pub json: bool,
    /// Write the result into this directory too: NAME.json, NAME.md and, of ratios, NAME.svg.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// The argument of benchmarks that have ratios to draw.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ChartFile {
    /// Draw the ratios into this file (SVG).
    #[arg(long, value_name = "FILE.svg")]
    pub chart: Option<PathBuf>,
}

/// A benchmark's result in the forms that there are of it.
pub struct Outcome<'a> {
    /// The benchmark: the name of the files.
    pub name: &'a str,
    pub json: Value,
    /// Text of a Markdown file.
    pub table: String,
    pub chart: Option<Chart>,
}

impl Output {
    /// Writes the files that are asked for, and prints what is.
    pub fn put(&self, outcome: &Outcome<'_>, chart: &ChartFile) -> Result<()> {
        let json = serde_json::to_string(&outcome.json).context("writing the result")?;
        let svg = outcome.chart.as_ref().map(Chart::svg);
        if let Some(dir) = &self.out {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
            let file = |extension: &str| dir.join(format!("{}.{extension}", outcome.name));
            write(&file("json"), &format!("{json}\n"))?;
            write(&file("md"), &format!("{}\n", outcome.table.trim_end()))?;
            if let Some(svg) = &svg {
                write(&file("svg"), svg)?;
            }
        }
        if let Some(path) = &chart.chart {
            write(path, svg.as_deref().context("there is nothing to draw")?)?;
        }
        if self.json {
            println!("{json}");
        } else {
            println!("{}", outcome.table);
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_have_the_benchmarks_name() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("deep/er");
        let output = Output {
            json: true,
            out: Some(out.clone()),
        };
        let mut outcome = Outcome {
            name: "x",
            json: json!({"a": 1}),
            table: "| a |".to_owned(),
            chart: None,
        };
        output.put(&outcome, &ChartFile::default()).unwrap();
        assert_eq!(
            fs::read_to_string(out.join("x.json")).unwrap(),
            "{\"a\":1}\n"
        );
        assert_eq!(fs::read_to_string(out.join("x.md")).unwrap(), "| a |\n");
        assert!(!out.join("x.svg").exists());
        let wish = ChartFile {
            chart: Some(dir.path().join("chart.svg")),
        };
        assert!(output.put(&outcome, &wish).is_err());
        outcome.chart = Some(Chart::new("t", "s"));
        output.put(&outcome, &wish).unwrap();
        assert!(out.join("x.svg").exists() && dir.path().join("chart.svg").exists());
    }
}
