//! What was answered to the controller, type by type.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Out;

/// One type of resources.
#[derive(Clone, Copy, Debug)]
pub struct Answers<'a> {
    /// Its URL; the label is what is behind the last slash.
    pub type_url: &'a str,
    /// Responses that were applied whole.
    pub acks: u64,
    /// Responses of which something was rejected.
    pub nacks: u64,
    /// When one was last applied whole.
    pub last_ack: Option<SystemTime>,
    /// When something was last rejected.
    pub last_nack: Option<SystemTime>,
}

/// Writes how many responses were answered in which way, and when that was last, in seconds since 1970. What has not
/// been yet has no time.
///
/// # Errors
/// The text cannot be written.
pub fn encode(out: &mut Out<'_>, types: &[Answers<'_>]) -> fmt::Result {
    let name = |of: &Answers<'_>| {
        let name = of.type_url.rsplit('/').next().unwrap_or_default();
        name.to_owned()
    };
    let names: Vec<String> = types.iter().map(name).collect();
    let of = || types.iter().zip(&names);
    let labels = |name| vec![("type", name)];
    let count = |get: fn(&Answers<'_>) -> u64| {
        let counts = of().map(move |(each, name)| (labels(name.as_str()), get(each)));
        counts.collect::<Vec<_>>()
    };
    let help = "Responses of the controller that were applied whole, by type";
    out.counters("karst_xds_acks", help, count(|each| each.acks))?;
    let help = "Responses of the controller of which something was rejected, by type";
    out.counters("karst_xds_nacks", help, count(|each| each.nacks))?;
    let time = |get: fn(&Answers<'_>) -> Option<SystemTime>| {
        let times = of().filter_map(move |(each, name)| {
            let since = get(each)?.duration_since(UNIX_EPOCH).ok()?;
            Some((labels(name.as_str()), i64::try_from(since.as_secs()).ok()?))
        });
        times.collect::<Vec<_>>()
    };
    let help = "When a response was last applied whole, by type, seconds since 1970";
    let name = "karst_xds_last_ack_timestamp_seconds";
    out.gauges(name, help, time(|each| each.last_ack))?;
    let help = "When something of a response was last rejected, by type, seconds since 1970";
    let name = "karst_xds_last_nack_timestamp_seconds";
    out.gauges(name, help, time(|each| each.last_nack))
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::time::{Duration, UNIX_EPOCH};

    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::DescriptorEncoder;
    use prometheus_client::registry::Registry;

    use super::{Answers, encode};
    use crate::metrics::{Out, text};

    #[derive(Debug)]
    struct Two;

    impl Collector for Two {
        fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
            let at = |seconds: u64| Some(UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 999));
            let types = [
                Answers {
                    type_url: "type.googleapis.com/karst.waypoint.v1.Route",
                    acks: 3,
                    nacks: 1,
                    last_ack: at(1_700_000_000),
                    last_nack: at(1_600_000_000),
                },
                Answers {
                    type_url: "type.googleapis.com/istio.workload.Address",
                    acks: 0,
                    nacks: 0,
                    last_ack: None,
                    last_nack: None,
                },
            ];
            encode(&mut Out::new(encoder), &types)
        }
    }

    #[test]
    fn what_has_not_been_has_no_time() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Two));
        let text = text(&registry).expect("encodes");
        let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            values,
            [
                "karst_xds_acks_total{type=\"karst.waypoint.v1.Route\"} 3",
                "karst_xds_acks_total{type=\"istio.workload.Address\"} 0",
                "karst_xds_nacks_total{type=\"karst.waypoint.v1.Route\"} 1",
                "karst_xds_nacks_total{type=\"istio.workload.Address\"} 0",
                "karst_xds_last_ack_timestamp_seconds{type=\"karst.waypoint.v1.Route\"} 1700000000",
                "karst_xds_last_nack_timestamp_seconds{type=\"karst.waypoint.v1.Route\"} 1600000000",
            ]
        );
    }
}
