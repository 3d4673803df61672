//! A real Prometheus, Debian's, that scrapes from where a node is.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use karst_harness::{Lab, Running, until};
use serde_json::Value;

/// Where it answers, on its node's loopback.
const LISTEN: &str = "127.0.0.1:9090";

/// It reads its empty database and opens a port.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A change is scraped within a second, and the next scrape has it at the latest.
const SCRAPED: Duration = Duration::from_secs(20);

/// A Prometheus as a node's own process, with a database of its own; it ends with the value.
pub struct Prometheus<'a> {
    lab: &'a Lab,
    node: String,
    _server: Running,
}

impl<'a> Prometheus<'a> {
    /// Starts one on a node. `targets` are names of jobs with addresses.
    pub fn start(lab: &'a Lab, node: &str, targets: &[(&str, String)]) -> Result<Self> {
        let folder = lab.dir().join(format!("prometheus-{node}"));
        fs::create_dir_all(&folder)?;
        let mut config = String::from(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nscrape_configs:\n",
        );
        // Itself too: what it counts of scrapes is asked of it.
        let own = ("prometheus", LISTEN.to_owned());
        for (job, address) in targets.iter().chain([&own]) {
            writeln!(
                config,
                "- {{job_name: {job}, static_configs: [{{targets: ['{address}']}}]}}"
            )?;
        }
        let file = folder.join("prometheus.yml");
        fs::write(&file, config)?;
        let argv = [
            "prometheus".to_owned(),
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address={LISTEN}"),
            "--enable-feature=exemplar-storage".to_owned(),
        ];
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let log = File::create(folder.join("log"))?;
        let mut command = lab.node_command(node, &argv)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let server = command
            .spawn()
            .context("starting prometheus; `cargo xtask setup` installs it")?;
        let prometheus = Self {
            lab,
            node: node.to_owned(),
            _server: Running::new(server),
        };
        until("Prometheus to answer", START_LIMIT, || {
            prometheus.query("vector(1)").map(drop)
        })?;
        Ok(prometheus)
    }

    /// The value of an instant query, as the HTTP API gives it: a list of series.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let parameters = format!("query={}", percent(expression));
        let answer = self.api(&format!("/api/v1/query?{parameters}"))?;
        let result = answer["data"]["result"].as_array();
        Ok(result.context("no result")?.clone())
    }

    /// The sum of what an expression gives; nothing is an error.
    pub fn value(&self, expression: &str) -> Result<f64> {
        let series = self.query(expression)?;
        ensure!(!series.is_empty(), "{expression} gives nothing");
        let value = |one: &Value| -> Result<f64> {
            let text = one["value"][1].as_str().context("no value")?;
            Ok(text.parse()?)
        };
        series.iter().map(value).sum()
    }

    /// Waits until the value is as `is` wants it.
    pub fn until_value(&self, expression: &str, is: impl Fn(f64) -> bool) -> Result<f64> {
        until(expression, SCRAPED, || {
            let value = self.value(expression)?;
            ensure!(is(value), "{expression} is {value}");
            Ok(value)
        })
    }

    /// Exemplars of the last ten minutes that it has of what a selector selects: each with its series.
    pub fn exemplars(&self, selector: &str) -> Result<Vec<(Value, Value)>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let (start, end) = (now - 600, now + 60);
        let query = percent(selector);
        let path = format!("/api/v1/query_exemplars?query={query}&start={start}&end={end}");
        let answer = self.api(&path)?;
        let all = answer["data"].as_array().context("no data")?;
        let of = |one: &Value| {
            let exemplars = one["exemplars"].as_array().cloned().unwrap_or_default();
            let series = one["seriesLabels"].clone();
            exemplars.into_iter().map(move |it| (series.clone(), it))
        };
        Ok(all.iter().flat_map(of).collect())
    }

    /// A page of the HTTP API.
    pub fn api(&self, path: &str) -> Result<Value> {
        let url = format!("http://{LISTEN}{path}");
        let output = self
            .lab
            .node_exec(&self.node, &["curl", "-sS", "--max-time", "10", &url])?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{path}: {}", String::from_utf8_lossy(&output.stderr)))?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer)
    }

    /// Every target is up and its last scrape was good, once each has been scraped.
    pub fn no_scrape_fails(&self) -> Result<()> {
        until("every target to be scraped", SCRAPED, || {
            let answer = self.api("/api/v1/targets?state=active")?;
            let text = answer.to_string();
            ensure!(!text.contains(r#""health":"unknown""#), "{text}");
            Ok(())
        })?;
        let answer = self.api("/api/v1/targets?state=active")?;
        let targets = answer["data"]["activeTargets"].as_array();
        for target in targets.context("no targets")? {
            ensure!(
                target["health"] == "up" && target["lastError"] == "",
                "{target}"
            );
        }
        for failed in [
            "prometheus_target_scrapes_sample_duplicate_timestamp_total",
            "prometheus_target_scrapes_sample_out_of_order_total",
        ] {
            let count = self.value(failed)?;
            ensure!(count == 0.0, "{failed} is {count}");
        }
        Ok(())
    }
}

/// What `promtool check metrics` says against a scrape in the text format; nothing, if all is well.
///
/// # Errors
/// promtool is not there, or cannot read the text.
pub fn lint(text: &str) -> Result<Vec<String>> {
    let mut child = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting promtool; `cargo xtask setup` installs it")?;
    let mut input = child.stdin.take().context("no input")?;
    input.write_all(text.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        // 3 says that it has something to say.
        Some(0 | 3) => Ok(said.lines().map(str::to_owned).collect()),
        _ => bail!("promtool cannot read the scrape: {said}"),
    }
}

/// A query parameter as a URL has it.
fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        if byte.is_ascii_alphanumeric() {
            all.push(char::from(byte));
        } else {
            // A String takes all that is written to it.
            let _ = write!(all, "%{byte:02X}");
        }
        all
    })
}
