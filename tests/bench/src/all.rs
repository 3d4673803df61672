//! `karst-bench all`: every benchmark, one after the other, and one report of all of them.
//!
//! Each runs as a process of its own, so that none finds what another has left in this one, and one that fails does not
//! take the others' results with it.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::CommandFactory;
use serde_json::{Value, json};

use crate::{
    Cli,
    chart::{Bar, Chart, Group},
    goals::digits,
    output::{ChartFile, Outcome, Output},
    report::{held, markdown_of},
};

/// The benchmarks in the order of the report, as far as this program has them.
const ORDER: [&str; 6] = [
    "tunnel",
    "same-node",
    "connect",
    "waypoint",
    "observe",
    "scale",
];

/// Arguments of `all`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    chart: ChartFile,
    /// Rounds of those benchmarks that have `--rounds`, instead of each one's own number.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Only these. Repeatable.
    #[arg(long, value_name = "BENCHMARK")]
    only: Vec<String>,
    /// The JSON of a benchmark that is no part of this program.
    #[arg(long, hide = true, value_name = "BENCHMARK=FILE", value_parser = result)]
    result: Vec<(String, String)>,
}

fn result(text: &str) -> Result<(String, String), String> {
    let (name, file) = text.split_once('=').ok_or("a result is BENCHMARK=FILE")?;
    Ok((name.to_owned(), file.to_owned()))
}

/// One benchmark's result.
struct Part {
    name: String,
    json: Value,
    table: String,
}

/// Runs all and puts their results together. Fails at the end if one has failed.
pub fn run(args: &Args) -> Result<()> {
    let known: Vec<&str> = known().collect();
    for name in &args.only {
        let is_result = args.result.iter().any(|(its_name, _)| its_name == name);
        ensure!(
            is_result || known.contains(&name.as_str()),
            "there is no benchmark {name} in `all`; there are {}",
            known.join(", ")
        );
    }
    let machine = machine();
    let (mut parts, mut failed) = (Vec::new(), BTreeMap::new());
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    for name in known.into_iter().filter(|name| wanted(name)) {
        eprintln!("==> {name}");
        match part(name, args) {
            Ok(part) => parts.push(part),
            Err(error) => {
                let text = format!("{error:#}");
                eprintln!("==> {name} failed: {text}");
                failed.insert(name.to_owned(), text);
            }
        }
    }
    for (name, file) in args.result.iter().filter(|(name, _)| wanted(name)) {
        let text = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
        let json = serde_json::from_str(&text).with_context(|| format!("{file} is no JSON"))?;
        parts.push(Part {
            name: name.clone(),
            table: generic_table(&json),
            json,
        });
    }
    args.output.put(
        &Outcome {
            name: "all",
            json: together(&parts, &failed, &machine),
            table: document(&parts, &failed, &machine),
            chart: Some(chart(&parts)),
        },
        &args.chart,
    )?;
    if !failed.is_empty() {
        let names: Vec<&str> = failed.keys().map(String::as_str).collect();
        bail!("these failed: {}", names.join(", "));
    }
    Ok(())
}

/// Those of [`ORDER`] that this program has.
fn known() -> impl Iterator<Item = &'static str> {
    let cli = Cli::command();
    ORDER
        .into_iter()
        .filter(move |name| cli.find_subcommand(name).is_some())
}

fn part(name: &str, args: &Args) -> Result<Part> {
    let cli = Cli::command();
    let command = cli.find_subcommand(name).context("no such benchmark")?;
    let has = |argument: &str| command.get_arguments().any(|it| it.get_id() == argument);
    let folder = tempfile::tempdir().context("making a folder")?;
    let mut child = Command::new(env::current_exe().context("finding this program")?);
    child.args([name, "-j"]);
    if let Some(rounds) = args.rounds.filter(|_| has("rounds")) {
        child.args(["--rounds", &rounds.to_string()]);
    }
    // Files of its own too, where all of them go.
    let out = args.output.out.as_deref().unwrap_or(folder.path());
    if has("out") {
        child.arg("--out").arg(out);
    }
    let ended = child
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting it")?;
    ensure!(ended.status.success(), "{}", ended.status);
    let json: Value = serde_json::from_slice(&ended.stdout).context("its result is no JSON")?;
    let table = if has("out") {
        read(&out.join(format!("{name}.md")))?
    } else {
        generic_table(&json)
    };
    Ok(Part {
        name: name.to_owned(),
        json,
        table,
    })
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// What a reader has to know of where it ran.
fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    json!({
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "cpu_model": model,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_before": read("/proc/loadavg").split(' ').next().and_then(|load| load.parse::<f64>().ok()),
    })
}

fn together(parts: &[Part], failed: &BTreeMap<String, String>, machine: &Value) -> Value {
    let benchmarks: serde_json::Map<String, Value> = parts
        .iter()
        .map(|part| (part.name.clone(), part.json.clone()))
        .collect();
    json!({"machine": machine, "benchmarks": benchmarks, "failed": failed})
}

fn document(parts: &[Part], failed: &BTreeMap<String, String>, machine: &Value) -> String {
    let mut text = format!(
        "# Karst, measured\n\n{} CPUs ({}), Linux {}, load of {} before. The method is in `tests/bench/README.md`.\n",
        machine["cpus"],
        machine["cpu_model"].as_str().unwrap_or("unknown"),
        machine["kernel"].as_str().unwrap_or("unknown"),
        machine["load_before"],
    );
    for part in parts {
        let is_markdown = part.table.lines().any(|line| line.starts_with('|'));
        let table = part.table.trim_end();
        text += &format!("\n## {}\n\n", part.name);
        text += &if is_markdown {
            format!("{table}\n")
        } else {
            format!("```text\n{table}\n```\n")
        };
    }
    for (name, error) in failed {
        text += &format!("\n## {name}\n\nFailed: {error}\n");
    }
    text
}

/// The `rows` of a result whose program writes no table of Markdown: a column for each plain value.
fn generic_table(json: &Value) -> String {
    let Some(rows) = json["rows"].as_array() else {
        return format!("{json:#}");
    };
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => number.as_f64().map(|number| {
            if number.fract() == 0.0 {
                format!("{number:.0}")
            } else {
                digits(number)
            }
        }),
        Value::Bool(yes) => Some(yes.to_string()),
        _ => None,
    };
    let mut columns: Vec<&str> = Vec::new();
    for (name, value) in rows.iter().filter_map(Value::as_object).flatten() {
        if plain(value).is_some() && !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let mut table = markdown_of(&columns);
    for row in rows {
        let cells = columns
            .iter()
            .map(|name| plain(&row[*name]).unwrap_or_default());
        table.add_row(cells);
    }
    table.to_string()
}

/// Ratios to a direct connection, of all benchmarks that have them.
fn chart(parts: &[Part]) -> Chart {
    let mut chart = Chart::new(
        "Karst beside a direct connection",
        "ratio to a direct connection of the same run (the line at 1), more is better; medians with least and greatest",
    );
    for part in parts {
        let rows = part.json["rows"].as_array().into_iter().flatten();
        for row in rows {
            let (Some(name), Some(ratio)) = (row["name"].as_str(), row["ratio"].as_f64()) else {
                continue;
            };
            let rounds = row["ratios"].as_array().into_iter().flatten();
            let rounds: Vec<f64> = rounds.filter_map(Value::as_f64).collect();
            let ends = [
                rounds.iter().copied().fold(ratio, f64::min),
                rounds.iter().copied().fold(ratio, f64::max),
            ];
            let mut bars = vec![Bar {
                series: "karst".to_owned(),
                value: ratio,
                range: Some(ends),
            }];
            for (series, field) in [
                ("peer", "peer_ratio"),
                ("stock ztunnel, measured once", "stock_ztunnel_ratio"),
            ] {
                bars.extend(row[field].as_f64().map(|value| Bar {
                    series: series.to_owned(),
                    value,
                    range: None,
                }));
            }
            let goals = part.json["goals"].as_array().into_iter().flatten();
            let goal = goals
                .filter(|goal| goal["row"] == name && goal["name"] == held::RATIO)
                .find_map(|goal| goal["at_least"].as_f64());
            chart.add(Group {
                name: format!("{} {name}", part.name),
                bars,
                goal,
            });
        }
    }
    chart
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, json: Value) -> Part {
        Part {
            name: name.to_owned(),
            table: generic_table(&json),
            json,
        }
    }

    #[test]
    fn all_of_this_programs_benchmarks_are_known() {
        let known: Vec<&str> = known().collect();
        for name in ["tunnel", "same-node", "connect", "waypoint", "observe"] {
            assert!(known.contains(&name), "{known:?}");
        }
    }

    #[test]
    fn a_report_has_every_part_and_every_failure() {
        let parts = [
            part(
                "tunnel",
                json!({"rows": [{"name": "http_c1", "ratio": 0.4, "ratios": [0.3, 0.5], "stock_ztunnel_ratio": 0.26}],
                       "goals": [{"row": "http_c1", "name": held::RATIO, "at_least": 0.26}]}),
            ),
            part(
                "policy",
                json!({"rows": [{"case": "none", "policies": 100, "ns": 1.5, "deep": {}}]}),
            ),
        ];
        let failed = BTreeMap::from([("connect".to_owned(), "no lab".to_owned())]);
        let machine = json!({"cpus": 2, "cpu_model": "x", "kernel": "6", "load_before": 0.5});
        let json = together(&parts, &failed, &machine);
        assert_eq!(json["benchmarks"]["policy"]["rows"][0]["policies"], 100);
        assert_eq!(json["failed"]["connect"], "no lab");
        let text = document(&parts, &failed, &machine);
        assert!(
            text.contains("## policy") && text.contains("Failed: no lab"),
            "{text}"
        );
        let row = text.lines().find(|line| line.contains("none")).unwrap();
        let mut cells: Vec<&str> = row.split('|').map(str::trim).collect();
        // The order of the columns is that of the JSON's fields, which may be sorted.
        cells.sort_unstable();
        assert_eq!(cells, ["", "", "1.500", "100", "none"], "{text}");
        let svg = chart(&parts).svg();
        assert!(
            svg.contains("tunnel http_c1") && svg.contains("stock ztunnel"),
            "{svg}"
        );
        assert!(!svg.contains("policy"));
    }

    #[test]
    fn what_is_no_table_is_fenced() {
        let mut lines = part("observe", json!({}));
        lines.table = "plain".to_owned();
        let text = document(&[lines], &BTreeMap::new(), &json!({}));
        assert!(text.contains("```text\nplain\n```"), "{text}");
    }
}
