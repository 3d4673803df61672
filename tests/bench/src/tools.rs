//! Runs iperf3, wrk and h2load in a pod and reads what they say.

use anyhow::{Context, Result};
use karst_harness::Lab;
use serde_json::Value;

use crate::load::Latency;

/// Seconds that iperf3 runs before it starts counting: TCP's slow start is no throughput.
const OMIT: u32 = 1;

/// Seconds after which a load program that should have ended is ended.
pub const GRACE: u32 = 60;

/// What a load program achieved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Achieved {
    /// Gbit, requests or connections a second.
    pub per_second: f64,
    /// How much in all, for dividing CPU by: GB, requests or connections.
    pub total: f64,
    /// Latencies of a load that sends as fast as it is answered, where the program was asked for them; p99.9 is not
    /// among what it says, and 0.
    pub latency: Option<Latency>,
}

/// Throughput of `streams` parallel streams from `pod` to `host`, in Gbit/s as received.
pub fn iperf(lab: &Lab, pod: &str, host: &str, streams: u32, seconds: u32) -> Result<Achieved> {
    let limit = seconds + OMIT + GRACE;
    let (streams, seconds, omit) = (streams.to_string(), seconds.to_string(), OMIT.to_string());
    let argv = [
        "iperf3", "-c", host, "-P", &streams, "-t", &seconds, "-O", &omit, "-J",
    ];
    let said = run_within(lab, pod, limit, &argv)?;
    read_iperf(&said).with_context(|| format!("iperf3 said {said}"))
}

/// HTTP/1.1 requests a second over `connections` connections, kept alive or one for each request.
pub fn wrk(
    lab: &Lab,
    pod: &str,
    url: &str,
    connections: u32,
    reuse: Reuse,
    seconds: u32,
) -> Result<Achieved> {
    wrk_with(lab, pod, url, connections, reuse, seconds, &[])
}

/// The same with more options of wrk's.
pub fn wrk_with(
    lab: &Lab,
    pod: &str,
    url: &str,
    connections: u32,
    reuse: Reuse,
    seconds: u32,
    more: &[&str],
) -> Result<Achieved> {
    let (connections, duration) = (format!("-c{connections}"), format!("-d{seconds}s"));
    let mut argv = vec!["wrk", "-t1", &connections, &duration, "--timeout", "5s"];
    if reuse == Reuse::KeepAlive {
        argv.push("--latency");
    }
    argv.extend(more);
    if reuse == Reuse::Never {
        argv.extend(["-H", "Connection: close"]);
    }
    argv.push(url);
    let said = run_within(lab, pod, seconds + GRACE, &argv)?;
    read_wrk(&said).with_context(|| format!("wrk said {said}"))
}

/// HTTP/2 requests a second over `connections` connections without TLS, `streams` at a time on each.
pub fn h2load(
    lab: &Lab,
    pod: &str,
    url: &str,
    connections: u32,
    streams: u32,
    seconds: u32,
) -> Result<Achieved> {
    let alone = connections == 1;
    let (connections, streams, duration) = (
        format!("-c{connections}"),
        format!("-m{streams}"),
        format!("-D{seconds}"),
    );
    let argv = ["h2load", "-t1", &connections, &streams, &duration, url];
    let said = run_within(lab, pod, seconds + GRACE, &argv)?;
    read_h2load(&said, alone).with_context(|| format!("h2load said {said}"))
}

/// Runs a program in a pod to its end, but no longer than so many seconds.
pub fn run_within(lab: &Lab, pod: &str, seconds: u32, argv: &[&str]) -> Result<String> {
    let seconds = seconds.to_string();
    lab.exec_ok(pod, &[&["timeout", &seconds], argv].concat())
}

/// Whether a connection serves more than one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reuse {
    KeepAlive,
    Never,
}

fn read_iperf(said: &str) -> Result<Achieved> {
    let said: Value = serde_json::from_str(said).context("reading JSON")?;
    let bits = said["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .context("no received throughput")?;
    let intervals = said["intervals"].as_array().context("no intervals")?;
    // The omitted seconds cost CPU too.
    let bytes: f64 = intervals
        .iter()
        .filter_map(|interval| interval["sum"]["bytes"].as_f64())
        .sum();
    Ok(Achieved {
        per_second: bits / 1e9,
        total: bytes / 1e9,
        latency: None,
    })
}

fn read_wrk(said: &str) -> Result<Achieved> {
    let after = |label: &str| {
        said.lines()
            .find_map(|line| line.trim().strip_prefix(label))
    };
    if let Some(errors) = after("Non-2xx or 3xx responses:") {
        anyhow::bail!("{} answers were errors", errors.trim());
    }
    if let Some(errors) = after("Socket errors:") {
        anyhow::bail!("socket errors: {}", errors.trim());
    }
    let per_second = after("Requests/sec:")
        .context("no rate")?
        .trim()
        .parse()
        .context("the rate is no number")?;
    let total = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .context("no total")?
        .0;
    Ok(Achieved {
        per_second,
        total: total.parse().context("the total is no number")?,
        latency: read_wrk_latency(said)?,
    })
}

/// Its latencies, if there are any.
fn read_wrk_latency(said: &str) -> Result<Option<Latency>> {
    let at = |percent: &str| -> Result<Option<f64>> {
        let line = said
            .lines()
            .find_map(|line| line.trim().strip_prefix(percent));
        line.map(|line| microseconds(line.trim())).transpose()
    };
    let (Some(p50_us), Some(p90_us), Some(p99_us)) = (at("50%")?, at("90%")?, at("99%")?) else {
        return Ok(None);
    };
    Ok(Some(Latency {
        p50_us,
        p90_us,
        p99_us,
        ..Latency::default()
    }))
}

/// A time as wrk writes it.
fn microseconds(text: &str) -> Result<f64> {
    let (number, factor) = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 60e6)]
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .with_context(|| format!("{text:?} is no time"))?;
    let number: f64 = number
        .parse()
        .with_context(|| format!("{text:?} is no time"))?;
    Ok(number * factor)
}

/// The share of the time in which a connection that is alone must have lived.
const LIVED: f64 = 0.8;

/// Its summary. What was under way when the time was over is in no count; nor is, without a word, what a connection
/// that was lost did not do, but its own rate is of the time in which it lived. Where it is one of many the loss is
/// seen in nothing.
fn read_h2load(said: &str, alone: bool) -> Result<Achieved> {
    let after = |label: &str| said.lines().find_map(|line| line.strip_prefix(label));
    let counts = |label: &str| -> Result<Vec<(f64, &str)>> {
        let line = after(label).with_context(|| format!("no line {label}"))?;
        line.split(',')
            .map(|count| {
                let (number, what) = count.trim().split_once(' ').context("no count")?;
                Ok((number.parse().context("the count is no number")?, what))
            })
            .collect()
    };
    let of = |counts: &[(f64, &str)], what: &str| {
        let found = counts.iter().find(|(_, name)| *name == what);
        found
            .map(|(number, _)| *number)
            .with_context(|| format!("no count of {what}"))
    };
    let requests = counts("requests:")?;
    for bad in ["failed", "errored", "timeout"] {
        let number = of(&requests, bad)?;
        anyhow::ensure!(number == 0.0, "{number} requests {bad}");
    }
    let succeeded = of(&requests, "succeeded")?;
    let good = of(&counts("status codes:")?, "2xx")?;
    anyhow::ensure!(
        good >= succeeded,
        "{good} of {succeeded} answers were good ones"
    );
    let per_second = after("finished in ")
        .and_then(|line| line.split(',').nth(1)?.trim().strip_suffix(" req/s"))
        .context("no rate")?;
    let per_second = per_second.parse().context("the rate is no number")?;
    let of_client: f64 = after("req/s")
        .and_then(|line| {
            line.trim_start_matches([' ', ':'])
                .split_whitespace()
                .nth(2)
        })
        .and_then(|mean| mean.parse().ok())
        .context("no rate of a connection")?;
    anyhow::ensure!(
        !alone || per_second >= LIVED * of_client,
        "the connection was lost: {per_second} requests/s in all, {of_client} while it lived"
    );
    Ok(Achieved {
        per_second,
        total: succeeded,
        latency: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 3s test @ http://10.0.0.2/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   363.00us  100.00us   3.00ms   90.00%
    Req/Sec    64.2k     1.0k   66.0k    70.00%
  192807 requests in 3.00s, 30.00MB read
Requests/sec:  64268.10
Transfer/sec:     10.00MB
";

    #[test]
    fn reads_wrk() {
        assert_eq!(
            read_wrk(WRK).unwrap(),
            Achieved {
                per_second: 64268.10,
                total: 192_807.0,
                latency: None,
            }
        );
    }

    #[test]
    fn reads_the_latencies_of_wrk() {
        let distribution = "  Latency Distribution\n     50%  363.00us\n     75%    1.00ms\n     90%    1.50ms\n     99%    2.00s \n";
        let said = WRK.replace("  192807", &format!("{distribution}  192807"));
        let latency = read_wrk(&said).unwrap().latency.unwrap();
        assert_eq!(latency.p50_us, 363.0);
        assert_eq!(latency.p90_us, 1500.0);
        assert_eq!(latency.p99_us, 2e6);
        assert!(read_wrk(&said.replace("2.00s", "2.00 ")).is_err());
    }

    #[test]
    fn errors_of_wrk_are_not_a_result() {
        let failed = format!("{WRK}  Socket errors: connect 0, read 5, write 0, timeout 0\n");
        assert!(read_wrk(&failed).is_err());
        let refused = format!("{WRK}  Non-2xx or 3xx responses: 12\n");
        assert!(read_wrk(&refused).is_err());
        assert!(read_wrk("unable to connect").is_err());
    }

    const H2LOAD: &str = "starting benchmark...
progress: 100% of clients started
finished in 2.00s, 12049.50 req/s, 12.11MB/s
requests: 24099 total, 24109 started, 24099 done, 24099 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 24099 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 24.22MB (25396496) total, 288.20KB (295112) headers (space savings 93.05%), 23.53MB (24677376) data
                     min         max         mean         sd        +/- sd
time for request:     7.02ms     54.35ms     19.24ms      4.26ms    83.36%
req/s           :   12050.10    12050.10    12050.10        0.00   100.00%
";

    #[test]
    fn reads_h2load() {
        assert_eq!(
            read_h2load(H2LOAD, true).unwrap(),
            Achieved {
                per_second: 12049.5,
                total: 24_099.0,
                latency: None,
            }
        );
    }

    #[test]
    fn errors_of_h2load_are_not_a_result() {
        for (good, bad) in [
            ("0 failed", "3 failed"),
            ("0 errored", "3 errored"),
            ("0 timeout", "3 timeout"),
            ("24099 2xx, 0 3xx", "24000 2xx, 99 3xx"),
            ("finished in", "ended in"),
            ("requests:", "queries:"),
            ("12049.50 req/s", "6024.75 req/s"),
            ("req/s   ", "queries/s"),
        ] {
            let said = H2LOAD.replace(good, bad);
            assert_ne!(said, H2LOAD);
            assert!(read_h2load(&said, true).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_iperf_with_its_omitted_seconds() {
        let said = r#"{"intervals": [{"sum": {"bytes": 1e9, "omitted": true}}, {"sum": {"bytes": 2e9}}],
                       "end": {"sum_received": {"bits_per_second": 9.5e9}}}"#;
        assert_eq!(
            read_iperf(said).unwrap(),
            Achieved {
                per_second: 9.5,
                total: 3.0,
                latency: None,
            }
        );
        assert!(read_iperf(r#"{"error": "unable to connect"}"#).is_err());
    }
}
