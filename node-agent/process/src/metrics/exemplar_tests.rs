use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::registry::Registry;

use super::super::histogram::{Histogram, MILLISECONDS};
use super::super::{Out, text};
use super::{Exemplar, TraceSpan, TracedHistogram};

const NAME: &str = "took_milliseconds";

/// A name that a label's value may have, if somebody tries.
const FORGED: &str = "x,__exemplar=";

fn of(trace: u128, span: u64) -> Option<TraceSpan> {
    Some(TraceSpan { trace, span })
}

/// Two series: the one that is looked at, and one without traces.
#[derive(Debug)]
struct Took(Arc<TracedHistogram>, Histogram);

impl Took {
    fn text(took: &Arc<TracedHistogram>) -> String {
        let mut registry = Registry::default();
        let other = Histogram::new(&MILLISECONDS);
        other.observe(3);
        registry.register_collector(Box::new(Self(Arc::clone(took), other)));
        text(&registry).expect("encodes")
    }
}

impl Collector for Took {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out::new(encoder);
        let labels = vec![("from", FORGED), ("to", "a\"b} 3 # {")];
        out.traced_histograms(NAME, "Took", [(labels, self.0.read())])?;
        let labels = vec![("from", FORGED), ("to", "7 8"), ("by", FORGED)];
        out.histograms("other", "Other", [(labels, self.1.read())])
    }
}

/// The count of a bucket, and what is behind it.
fn bucket(text: &str, le: &str) -> (u64, Option<String>) {
    let start = format!(r#"{NAME}_bucket{{le="{le}",from="{FORGED}",to="a\"b}} 3 # {{"}} "#);
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    let line = line.unwrap_or_else(|| panic!("{start} in {text}"));
    match line.split_once(" # ") {
        Some((count, exemplar)) => (count.parse().expect("count"), Some(exemplar.to_owned())),
        None => (line.parse().expect("count"), None),
    }
}

#[test]
fn a_bucket_has_the_last_trace_in_it() {
    let took = Arc::new(TracedHistogram::new(&MILLISECONDS));
    let before = SystemTime::now();
    took.observe(700, of(1, 2));
    took.observe(900, of(u128::MAX, u64::MAX));
    took.observe(1_000, None);
    took.observe(4_000, None);
    took.observe(10_000, of(5, 6));
    took.observe(10_001, of(7, 8));
    took.observe(3_600_000_001, of(9, 10));
    let text = Took::text(&took);
    assert_eq!(bucket(&text, "0.5"), (0, None));
    let (count, exemplar) = bucket(&text, "1.0");
    let (all, ones) = ("f".repeat(32), "f".repeat(16));
    let start = format!("{{trace_id=\"{all}\",span_id=\"{ones}\"}} 0.9 ");
    let exemplar = exemplar.expect("it is sampled");
    let at = exemplar.strip_prefix(&start).expect(&exemplar);
    let at = Duration::from_secs_f64(at.parse().expect(at));
    // It is cut to milliseconds.
    let early = before.duration_since(UNIX_EPOCH).expect("clock") - Duration::from_millis(1);
    assert!(
        at >= early && at < early + Duration::from_secs(60),
        "{at:?}"
    );
    assert_eq!(count, 3);
    assert_eq!(bucket(&text, "5.0"), (4, None));
    // A value on a bound is below it, as it is counted.
    let starts = |le: &str, start: &str| {
        let (count, exemplar) = bucket(&text, le);
        assert!(
            exemplar.is_some_and(|it| it.contains(start)),
            "{le}: {text}"
        );
        count
    };
    assert_eq!(
        starts("10.0", "0005\",span_id=\"0000000000000006\"} 10.0 "),
        5
    );
    assert_eq!(
        starts("25.0", "0007\",span_id=\"0000000000000008\"} 10.001 "),
        6
    );
    assert_eq!(bucket(&text, "3600000.0"), (6, None));
    let last = "0009\",span_id=\"000000000000000a\"} 3600000.001 ";
    assert_eq!(starts("+Inf", last), 7);
    assert!(!text.contains("__exemplar=\"0"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn the_text_is_what_the_library_writes_of_its_own() {
    let took = Arc::new(TracedHistogram::new(&MILLISECONDS));
    let own = HistogramWithExemplars::new(MILLISECONDS.shown());
    for (micros, traced) in [
        (300, true),
        (400, false),
        (7_000, true),
        (9_000_000_000, true),
    ] {
        let trace = u128::from(micros);
        let labels = [
            ("trace_id", format!("{trace:032x}")),
            ("span_id", format!("{micros:016x}")),
        ];
        let shown = Duration::from_micros(micros).as_secs_f64() * 1e3;
        let at = traced.then(SystemTime::now);
        own.observe(shown, traced.then_some(labels), at);
        took.observe(micros, traced.then(|| of(trace, micros)).flatten());
    }
    #[derive(Debug)]
    struct Own(HistogramWithExemplars<[(&'static str, String); 2]>);
    impl Collector for Own {
        fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
            let labels = vec![("from", FORGED), ("to", "a\"b} 3 # {")];
            let mut metric =
                encoder.encode_descriptor(NAME, "Took", None, MetricType::Histogram)?;
            self.0.encode(metric.encode_family(&labels)?)
        }
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Own(own)));
    let expected = text(&registry).expect("encodes");
    // The clock was asked twice.
    let without_time = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.contains(NAME));
        let cut = |line: &str| match line.contains("\"} ") && line.contains("trace_id") {
            true => line.rsplit_once(' ').expect("a time").0.to_owned(),
            false => line.to_owned(),
        };
        lines.map(cut).collect()
    };
    let lines = without_time(&Took::text(&took));
    assert_eq!(lines, without_time(&expected));
    assert_eq!(lines.iter().filter(|it| it.contains("trace_id")).count(), 3);
}

#[test]
fn nothing_is_kept_until_there_is_a_trace() {
    let took = Arc::new(TracedHistogram::new(&MILLISECONDS));
    took.observe(1, None);
    assert!(
        took.kept.get().is_none(),
        "no memory for what is not sampled"
    );
    assert_eq!(took.read().exemplars, []);
    assert_eq!((took.count(), took.read().reading.count), (1, 1));
    let text = Took::text(&took);
    assert_eq!(bucket(&text, "0.5"), (1, None));
    took.observe(2, of(1, 1));
    let kept = took.kept.get().expect("there is a trace");
    let kept = kept.lock().expect("nobody panicked");
    assert_eq!(kept.len(), took.histogram.read().buckets.len());
    assert_eq!(
        size_of_val(&**kept),
        20 * 64,
        "as the docs of the field say"
    );
}

#[test]
fn labels_are_within_the_limit_of_openmetrics() {
    let exemplar = Exemplar {
        of: TraceSpan {
            trace: u128::MAX,
            span: u64::MAX,
        },
        value: 1.5,
        at: UNIX_EPOCH + Duration::from_micros(1_700_000_000_042_999),
    };
    assert_eq!(exemplar.observed(), "1.5 1700000000.042");
    let took = Arc::new(TracedHistogram::new(&MILLISECONDS));
    took.observe(1, Some(exemplar.of));
    let (_, shown) = bucket(&Took::text(&took), "0.5");
    let shown = shown.expect("exemplar");
    let (labels, _) = shown.split_once("} ").expect("labels");
    let characters = labels.chars().filter(|one| !"{=\",".contains(*one)).count();
    assert_eq!(characters, 63);
}
