//! What a proxy itself says it has answered.

use anyhow::{Context, Result};

/// The metrics of our waypoint, and the name of what is counted.
pub const KARST: (&str, &str) = ("127.0.0.1:15020", "/metrics");

/// Envoy's counters of [`super::envoy::STAT_PREFIX`].
pub const ENVOY: (&str, &str) = (
    super::envoy::ADMIN,
    "/stats?filter=^http\\.service\\.downstream_rq_2xx$",
);

/// Requests that our waypoint has answered well, over all sets of labels.
pub fn karst(metrics: &str) -> Result<f64> {
    let mut sum = 0.0;
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("istio_requests_total{") else {
            continue;
        };
        let (labels, value) = rest.rsplit_once("} ").context("a metric without value")?;
        let value: f64 = value.trim().parse().context("the value is no number")?;
        if labels.contains("response_code=\"200\"") {
            sum += value;
        }
    }
    Ok(sum)
}

/// Requests that Envoy has answered well.
pub fn envoy(stats: &str) -> Result<f64> {
    stats
        .lines()
        .find_map(|line| line.strip_prefix("http.service.downstream_rq_2xx: "))
        .unwrap_or("0")
        .trim()
        .parse()
        .context("the count is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_requests_are_summed_over_labels() {
        let metrics = "# HELP x\nistio_requests_total{response_code=\"200\",a=\"} 1\"} 5\n\
                       istio_requests_total{response_code=\"200\",a=\"c\"} 7\nistio_other{} 9\n";
        assert_eq!(karst(metrics).unwrap(), 12.0);
        assert_eq!(karst("").unwrap(), 0.0);
        let failed = "istio_requests_total{response_code=\"503\"} 1\n";
        assert_eq!(karst(failed).unwrap(), 0.0);
        assert!(karst("istio_requests_total{response_code=\"200\"} x\n").is_err());
    }

    #[test]
    fn envoys_requests_are_read() {
        assert_eq!(envoy("http.service.downstream_rq_2xx: 42\n").unwrap(), 42.0);
        assert_eq!(envoy("").unwrap(), 0.0);
        assert!(envoy("http.service.downstream_rq_2xx: x\n").is_err());
    }
}
