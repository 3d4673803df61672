//! Runs iperf3 and wrk in a pod and reads what they say.

use anyhow::{Context, Result};
use karst_harness::Lab;
use serde_json::Value;

/// Seconds that iperf3 runs before it starts counting: TCP's slow start is no throughput.
const OMIT: u32 = 1;

/// What a load program achieved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Achieved {
    /// Gbit, requests or connections a second.
    pub per_second: f64,
    /// How much in all, for dividing CPU by: GB, requests or connections.
    pub total: f64,
}

/// Throughput of `streams` parallel streams from `pod` to `host`, in Gbit/s as received.
pub fn iperf(lab: &Lab, pod: &str, host: &str, streams: u32, seconds: u32) -> Result<Achieved> {
    let (streams, seconds, omit) = (streams.to_string(), seconds.to_string(), OMIT.to_string());
    let argv = [
        "iperf3", "-c", host, "-P", &streams, "-t", &seconds, "-O", &omit, "-J",
    ];
    let said = lab.exec_ok(pod, &argv)?;
    read_iperf(&said).with_context(|| format!("iperf3 said {said}"))
}

/// HTTP requests a second over `connections` connections, kept alive or one for each request.
pub fn wrk(
    lab: &Lab,
    pod: &str,
    host: &str,
    connections: u32,
    reuse: Reuse,
    seconds: u32,
) -> Result<Achieved> {
    let (connections, duration) = (format!("-c{connections}"), format!("-d{seconds}s"));
    let url = format!("http://{host}/");
    let mut argv = vec!["wrk", "-t1", &connections, &duration, "--timeout", "5s"];
    if reuse == Reuse::Never {
        argv.extend(["-H", "Connection: close"]);
    }
    argv.push(&url);
    let said = lab.exec_ok(pod, &argv)?;
    read_wrk(&said).with_context(|| format!("wrk said {said}"))
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
                total: 192_807.0
            }
        );
    }

    #[test]
    fn errors_of_wrk_are_not_a_result() {
        let failed = format!("{WRK}  Socket errors: connect 0, read 5, write 0, timeout 0\n");
        assert!(read_wrk(&failed).is_err());
        let refused = format!("{WRK}  Non-2xx or 3xx responses: 12\n");
        assert!(read_wrk(&refused).is_err());
        assert!(read_wrk("unable to connect").is_err());
    }

    #[test]
    fn reads_iperf_with_its_omitted_seconds() {
        let said = r#"{"intervals": [{"sum": {"bytes": 1e9, "omitted": true}}, {"sum": {"bytes": 2e9}}],
                       "end": {"sum_received": {"bits_per_second": 9.5e9}}}"#;
        assert_eq!(
            read_iperf(said).unwrap(),
            Achieved {
                per_second: 9.5,
                total: 3.0
            }
        );
        assert!(read_iperf(r#"{"error": "unable to connect"}"#).is_err());
    }
}
