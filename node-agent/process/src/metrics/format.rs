//! The two text formats that scrapers read. The library writes OpenMetrics; the older format of Prometheus is made of
//! that: it has no suffix rule, no end mark, no units and no exemplars.

use std::fmt::Write as _;

use http::HeaderValue;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4, which every scraper reads.
    Text,
}

impl Format {
    /// What `Accept` asks for: OpenMetrics where it is named and nothing is preferred to it.
    pub fn asked<'a>(accept: impl IntoIterator<Item = &'a HeaderValue>) -> Self {
        let (mut open, mut text) = (0.0_f32, 0.0_f32);
        let headers = accept.into_iter().filter_map(|value| value.to_str().ok());
        for range in headers.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            let quality = quality.map_or(1.0, |q| q.parse().unwrap_or(0.0));
            if name.eq_ignore_ascii_case("application/openmetrics-text") {
                open = open.max(quality);
            } else if ["text/plain", "text/*"].contains(&name) {
                text = text.max(quality);
            }
        }
        if open > 0.0 && open >= text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// The value of `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The same metrics as `open_metrics`, in this format.
    #[must_use]
    pub fn of(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => to_text(&open_metrics),
        }
    }
}

fn to_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The type comes after the help, and both must have the name that the samples have.
    let mut help = None;
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(without_exemplar(line));
            text.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(_), Some(said)) => help = Some(said),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                // A String takes all that is written to it.
                if let Some(help) = help.take() {
                    let _ = writeln!(text, "# HELP {name}{suffix} {help}");
                }
                let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
            }
            _ => {}
        }
    }
    text
}

/// A sample without the exemplar behind its value.
fn without_exemplar(sample: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in sample.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return sample[..at].trim_end(),
            _ => {}
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::Format;

    #[test]
    fn a_scraper_gets_what_it_asks_for() {
        let asked = |accept: &[&'static str]| {
            let values: Vec<_> = accept
                .iter()
                .map(|value| HeaderValue::from_static(value))
                .collect();
            Format::asked(&values)
        };
        // What Prometheus 2.53 and 3.5 send.
        let two = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let three = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(asked(&[two]), Format::OpenMetrics);
        assert_eq!(asked(&[three]), Format::OpenMetrics);
        assert_eq!(
            asked(&["text/plain", "application/openmetrics-text"]),
            Format::OpenMetrics
        );
        for other in [
            "text/plain;version=0.0.4",
            "*/*",
            "application/openmetrics-text;q=0.2,text/plain;q=0.5",
            "application/openmetrics-text;q=0",
        ] {
            assert_eq!(asked(&[other]), Format::Text, "{other}");
        }
        assert_eq!(asked(&[]), Format::Text);
    }

    #[test]
    fn the_older_format_has_full_names_and_no_exemplars() {
        let open = "# HELP a A.\n# TYPE a counter\n# UNIT a seconds\na_total{x=\"# {\\\"\"} 3 # {trace_id=\"1\"} 1.0 2\n\
                    # HELP b B.\n# TYPE b gauge\nb 1\n# HELP v V.\n# TYPE v info\nv_info{t=\"1\"} 1\n\
                    # TYPE h histogram\nh_bucket{le=\"+Inf\"} 2 # {} 1\n# EOF\n";
        let text = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"# {\\\"\"} 3\n\
                    # HELP b B.\n# TYPE b gauge\nb 1\n# HELP v_info V.\n# TYPE v_info gauge\nv_info{t=\"1\"} 1\n\
                    # TYPE h histogram\nh_bucket{le=\"+Inf\"} 2\n";
        assert_eq!(Format::Text.of(open.to_owned()), text);
        assert_eq!(Format::OpenMetrics.of(open.to_owned()), open);
    }
}
