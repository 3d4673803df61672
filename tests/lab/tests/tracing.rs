//! Traces and access logs by Telemetry resources: OpenTelemetry's own collector gets the spans of agents and waypoint,
//! and they make one trace.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::until;
use karst_lab_tests::prometheus::Prometheus;
use karst_lab_tests::shop::Shop;
use serde_json::Value;

/// How long a change of configuration, or a span, may take.
const SOON: Duration = Duration::from_secs(30);

const MESH_CONFIG: &str = "extensionProviders:
- name: otel
  opentelemetry: {service: otel.obs.svc.cluster.local, port: 4317}
";

const COLLECTOR_CONFIG: &str = "receivers:
  otlp: {protocols: {grpc: {endpoint: '0.0.0.0:4317'}}}
exporters:
  debug: {verbosity: detailed, use_internal_logger: false}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    traces: {receivers: [otlp], exporters: [debug]}
";

const OBSERVABILITY: &str = "apiVersion: v1
kind: Namespace
metadata: {name: obs}
---
apiVersion: v1
kind: Service
metadata: {name: otel, namespace: obs}
spec:
  selector: {app: otel}
  ports: [{name: grpc, port: 4317, targetPort: 4317, appProtocol: grpc}]
---
apiVersion: v1
kind: Pod
metadata: {name: otel, namespace: obs, labels: {app: otel}}
spec:
  nodeName: node2
  serviceAccountName: otel
  containers:
  - name: otel
    image: karst-testapp
    command: [sleep, infinity]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: karst-system}
spec:
  tracing:
  - providers: [{name: otel}]
    randomSamplingPercentage: 100
    customTags:
      tenant: {header: {name: x-tenant}}
";

/// A Service of the shop's pods whose connections are for one request each: a connection has its span when it ends.
const FRESH: &str = "apiVersion: v1
kind: Service
metadata: {name: traced, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]
---
apiVersion: karst.dev/v1alpha1
kind: BackendTrafficPolicy
metadata: {name: traced, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: traced}]
  limits: {maxRequestsPerConnection: 1}
";

/// A span as the collector writes it.
#[derive(Debug, Clone, Default)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    kind: String,
    attributes: BTreeMap<String, String>,
    /// Trace and span of its link.
    link: Option<(String, String)>,
}

impl Span {
    fn has(&self, name: &str, value: &str) -> bool {
        self.attributes.get(name).is_some_and(|it| it == value)
    }

    fn is_outbound(&self) -> bool {
        self.service == "karst-node-agent" && self.has("direction", "outbound")
    }

    fn is_inbound(&self) -> bool {
        self.service == "karst-node-agent" && self.has("direction", "inbound")
    }

    fn is_client(&self) -> bool {
        self.service == "karst-testapp"
    }

    fn is_waypoint(&self) -> bool {
        self.service == "waypoint.shop"
    }
}

/// Reads what the collector has written so far.
fn spans(output: &Path) -> Result<Vec<Span>> {
    let text = fs::read_to_string(output)?;
    let (mut spans, mut service) = (Vec::<Span>::new(), String::new());
    let (mut in_resource, mut in_link) = (false, false);
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("ResourceSpans #") {
            (in_resource, in_link) = (true, false);
        } else if line.starts_with("Span #") {
            (in_resource, in_link) = (false, false);
            spans.push(Span {
                service: service.clone(),
                ..Span::default()
            });
        } else if line.starts_with("SpanLink #") {
            in_link = true;
            if let Some(span) = spans.last_mut() {
                span.link = Some(Default::default());
            }
        } else if let (true, Some(link)) = (in_link, line.strip_prefix("-> ")) {
            let span = spans.last_mut().context("a link of no span")?;
            let place = span.link.get_or_insert_default();
            match link.split_once(": ") {
                Some(("Trace ID", id)) => place.0 = id.to_owned(),
                Some(("ID", id)) => place.1 = id.to_owned(),
                _ => {}
            }
        } else if let Some(attribute) = line.strip_prefix("-> ") {
            let (name, value) = attribute.split_once(": ").context("an attribute")?;
            let value = value.split_once('(').map_or(value, |(_, value)| value);
            let value = value.strip_suffix(')').unwrap_or(value).to_owned();
            if in_resource && name == "service.name" {
                service = value;
            } else if let (false, Some(span)) = (in_resource, spans.last_mut()) {
                span.attributes.insert(name.to_owned(), value);
            }
        } else if let (Some((name, value)), Some(span)) = (line.split_once(':'), spans.last_mut()) {
            let value = value.trim().to_owned();
            match name.trim() {
                "Trace ID" => span.trace = value,
                "Parent ID" => span.parent = value,
                "ID" => span.id = value,
                "Kind" => span.kind = value,
                _ => {}
            }
        }
    }
    Ok(spans)
}

struct Traced {
    shop: Shop,
    output: PathBuf,
    _files: tempfile::TempDir,
    _collector: karst_harness::Running,
}

fn open() -> Result<Traced> {
    let say = |text: &str| eprintln!("{text}");
    let program = karst_cluster::collector(&say)?;
    let files = tempfile::tempdir()?;
    let place = |name: &str| files.path().join(name);
    let (mesh, own, output) = (place("mesh.yaml"), place("otel.yaml"), place("spans"));
    fs::write(&mesh, MESH_CONFIG)?;
    fs::write(&own, COLLECTOR_CONFIG)?;
    let shop = Shop::open_with("trace", vec![format!("--mesh-config={}", mesh.display())])?;
    shop.world.lab.apply(OBSERVABILITY)?;
    let command = format!(
        "exec {} --config=file:{} > {} 2> {}.log",
        program.display(),
        own.display(),
        output.display(),
        output.display(),
    );
    let collector = shop.world.lab.spawn("obs/otel", &["sh", "-c", &command])?;
    until("spans of agents and waypoint", SOON, || {
        shop.get("web:80", &[])?;
        let spans = spans(&output)?;
        ensure!(spans.iter().any(Span::is_waypoint), "{} spans", spans.len());
        ensure!(spans.iter().any(Span::is_outbound), "none outbound");
        Ok(())
    })?;
    Ok(Traced {
        shop,
        output,
        _files: files,
        _collector: collector,
    })
}

#[test]
fn agents_and_waypoint_are_in_one_trace() -> Result<()> {
    let traced = open()?;
    connections_and_requests_join(&traced)?;
    a_span_of_the_client_begins_the_trace(&traced)?;
    a_trace_of_the_application_is_followed(&traced)?;
    a_trace_that_is_not_sampled_stays_so(&traced)?;
    a_sampled_request_is_an_exemplar(&traced)?;
    the_access_log_is_what_was_asked_for(&traced)
}

/// Without a trace of the application, one begins at the client's agent: agent, waypoint, agent.
fn connections_and_requests_join(traced: &Traced) -> Result<()> {
    traced.shop.world.lab.apply(FRESH)?;
    until("a whole trace", SOON, || {
        let answer = traced
            .shop
            .get("traced:80", &["--header", "x-tenant: blue"])?;
        ensure!(answer["status"] == 200, "{answer}");
        let spans = spans(&traced.output)?;
        let found = spans.iter().find_map(|first| {
            let next = |parent: &Span, is_it: fn(&Span) -> bool| {
                let child = |span: &&Span| {
                    is_it(span) && span.trace == parent.trace && span.parent == parent.id
                };
                spans.iter().find(child).cloned()
            };
            let root = first.is_outbound() && first.parent.is_empty();
            let waypoint = next(root.then_some(first)?, Span::is_waypoint)?;
            Some((first, next(&waypoint, Span::is_inbound)?, waypoint))
        });
        let (first, last, waypoint) =
            found.with_context(|| format!("no chain in {} spans", spans.len()))?;
        ensure!(
            first.kind == "Client" && last.kind == "Server",
            "{first:?} {last:?}"
        );
        ensure!(first.has("src.workload", "client"), "{first:?}");
        ensure!(waypoint.has("http.request.method", "GET"), "{waypoint:?}");
        ensure!(
            waypoint.has("http.response.status_code", "200"),
            "{waypoint:?}"
        );
        ensure!(
            waypoint.has("dst.service", "traced.shop.svc.cluster.local"),
            "{waypoint:?}"
        );
        ensure!(waypoint.has("tenant", "blue"), "{waypoint:?}");
        ensure!(
            last.has("connection_security_policy", "mutual_tls"),
            "{last:?}"
        );
        Ok(())
    })
}

/// A client that has spans of its own: client, waypoint and the server's agent are one trace, each the parent of the
/// next. The client's agent sees bytes and no header; the waypoint's span has its connection as a link.
fn a_span_of_the_client_begins_the_trace(traced: &Traced) -> Result<()> {
    let collector = traced.shop.world.at("obs/otel", 4317)?;
    let answer = traced.shop.get("traced:80", &["--otlp", &collector])?;
    let sent = answer["traceparents"][0]
        .as_str()
        .context("the client sent no traceparent")?;
    let parts: Vec<&str> = sent.split('-').collect();
    let [_, trace, id, _] = parts[..] else {
        anyhow::bail!("{sent} is no traceparent");
    };
    let got = &answer["page"]["headers"]["traceparent"];
    until("the client's trace", SOON, || {
        let spans = spans(&traced.output)?;
        let of_trace: Vec<&Span> = spans.iter().filter(|it| it.trace == trace).collect();
        let only = |what: &str, is_it: fn(&Span) -> bool| {
            let mut found = of_trace.iter().filter(|span| is_it(span));
            let one = found
                .next()
                .with_context(|| format!("no span of the {what}"))?;
            ensure!(found.next().is_none(), "several spans of the {what}");
            Ok(*one)
        };
        let client = only("client", Span::is_client)?;
        let waypoint = only("waypoint", Span::is_waypoint)?;
        let agent = only("server's agent", Span::is_inbound)?;
        ensure!(of_trace.len() == 3, "{of_trace:#?}");
        ensure!(client.id == id && client.parent.is_empty(), "{client:?}");
        ensure!(client.kind == "Client", "{client:?}");
        ensure!(client.has("http.response.status_code", "200"), "{client:?}");
        ensure!(waypoint.parent == client.id, "{waypoint:?} of {client:?}");
        ensure!(agent.parent == waypoint.id, "{agent:?} of {waypoint:?}");
        let expected = format!("00-{trace}-{}-01", waypoint.id);
        ensure!(*got == expected, "the server got {got}, not {expected}");
        let (linked, own) = waypoint.link.as_ref().context("no link")?;
        let connection = spans.iter().find(|it| it.trace == *linked && it.id == *own);
        let connection = connection.context("the client's agent has not said its span")?;
        ensure!(connection.is_outbound(), "{connection:?}");
        ensure!(connection.has("src.workload", "client"), "{connection:?}");
        Ok(())
    })
}

/// The application's trace comes first; the connection's is linked. The next one sees the waypoint as its parent.
fn a_trace_of_the_application_is_followed(traced: &Traced) -> Result<()> {
    let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let header = format!("traceparent: 00-{trace}-{span}-01");
    let more = ["--header", &header, "--header", "tracestate: vendor=1"];
    let answer = traced.shop.get("web:80", &more)?;
    let headers = &answer["page"]["headers"];
    ensure!(headers["tracestate"] == "vendor=1", "{answer}");
    let sent = headers["traceparent"].as_str().context("no traceparent")?;
    until("the waypoint's span", SOON, || {
        let spans = spans(&traced.output)?;
        let of_trace: Vec<&Span> = spans.iter().filter(|it| it.trace == trace).collect();
        let waypoint = of_trace.iter().find(|it| it.is_waypoint());
        let waypoint = waypoint.with_context(|| format!("{of_trace:?}"))?;
        ensure!(waypoint.parent == span, "{waypoint:?}");
        let expected = format!("00-{trace}-{}-01", waypoint.id);
        ensure!(sent == expected, "{sent} is not {expected}");
        let (linked, own) = waypoint.link.as_ref().context("no link")?;
        let connection = spans.iter().find(|it| it.trace == *linked && it.id == *own);
        ensure!(connection.is_some_and(Span::is_outbound), "{connection:?}");
        Ok(())
    })
}

fn a_trace_that_is_not_sampled_stays_so(traced: &Traced) -> Result<()> {
    let trace = "1bf7651916cd43dd8448eb211c80319c";
    let own = format!("00-{trace}-b7ad6b7169203331-00");
    let answer = traced
        .shop
        .get("web:80", &["--header", &format!("traceparent: {own}")])?;
    ensure!(answer["page"]["headers"]["traceparent"] == own, "{answer}");
    // Spans of one proxy come in their order: behind this one there is none of before.
    let last = "2cf7651916cd43dd8448eb211c80319c";
    let header = format!("traceparent: 00-{last}-b7ad6b7169203331-01");
    until("a later span", SOON, || {
        traced.shop.get("web:80", &["--header", &header])?;
        let spans = spans(&traced.output)?;
        ensure!(spans.iter().any(|it| it.trace == last), "none");
        let unwanted = spans
            .iter()
            .find(|it| it.trace == trace && it.is_waypoint());
        ensure!(unwanted.is_none(), "{unwanted:?}");
        Ok(())
    })
}

/// A real Prometheus gets the waypoint's span from how long requests took, as the exemplar of the bucket; a request
/// that is not sampled takes nobody's place.
fn a_sampled_request_is_an_exemplar(traced: &Traced) -> Result<()> {
    let (shop, world) = (&traced.shop, &traced.shop.world);
    let waypoint = world.at("shop/waypoint", 15020)?;
    let targets = [("waypoint", waypoint.clone())];
    let prometheus = Prometheus::start(&world.lab, "node1", &targets)?;
    let sent = |trace: &str, flags: &str| -> Result<String> {
        let header = format!("traceparent: 00-{trace}-b7ad6b7169203331-{flags}");
        let answer = shop.get("web:80", &["--header", &header])?;
        let sent = answer["page"]["headers"]["traceparent"].as_str();
        Ok(sent.context("no traceparent")?.to_owned())
    };
    let (sampled, unsampled) = (
        "3df7651916cd43dd8448eb211c80319c",
        "4ef7651916cd43dd8448eb211c80319c",
    );
    let went_on = sent(sampled, "01")?;
    sent(unsampled, "00")?;
    let selector = "istio_request_duration_milliseconds_bucket{reporter=\"waypoint\",\
                    destination_service=\"web.shop.svc.cluster.local\",response_code=\"200\"}";
    until("the exemplar", SOON, || {
        let all = prometheus.exemplars(selector)?;
        let is_it = |(_, one): &&(Value, Value)| one["labels"]["trace_id"] == sampled;
        let found = all.iter().find(is_it);
        let (series, one) = found.with_context(|| format!("{all:?}"))?;
        let span = one["labels"]["span_id"].as_str().unwrap_or_default();
        ensure!(went_on == format!("00-{sampled}-{span}-01"), "{one}");
        let number = |value: &Value| -> Result<f64> {
            let text = value.as_str().context("no number")?;
            text.parse().with_context(|| format!("{text} in {one}"))
        };
        let (le, took) = (number(&series["le"])?, number(&one["value"])?);
        ensure!(took > 0.0 && took <= le, "{one} of {series}");
        Ok(())
    })?;
    prometheus.no_scrape_fails()?;
    let url = format!("http://{waypoint}/metrics");
    let scrape = |accept: &str| -> Result<String> {
        let accept = format!("Accept: {accept}");
        let argv = ["curl", "-sS", "--max-time", "10", "-H", &accept, &url];
        let output = world.lab.node_exec("node1", &argv)?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let open = scrape("application/openmetrics-text;version=1.0.0")?;
    let exemplar = format!(" # {{trace_id=\"{sampled}\",span_id=\"");
    let has = |line: &str| {
        line.starts_with("istio_request_duration_milliseconds_bucket{") && line.contains(&exemplar)
    };
    ensure!(open.lines().any(has), "{open}");
    ensure!(!open.contains(unsampled), "{open}");
    let text = scrape("text/plain;version=0.0.4")?;
    ensure!(
        text.contains("istio_request_duration_milliseconds_bucket{"),
        "{text}"
    );
    ensure!(!text.contains("trace_id"), "{text}");
    Ok(())
}

/// A filter by a header: what has it is in the waypoint's log, what has not is not.
fn the_access_log_is_what_was_asked_for(traced: &Traced) -> Result<()> {
    let shop = &traced.shop;
    shop.world.lab.apply(
        "apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  accessLogging:
  - filter: {expression: \"response.code >= 400 || 'x-loud' in request.headers\"}
",
    )?;
    let ask = |id: &str, more: &[&str]| {
        let id = format!("x-request-id: {id}");
        shop.get("web:80", &[&["--header", &id], more].concat())
    };
    let logged = |id: &str| -> Result<Option<Value>> {
        let log = shop.world.lab.logs("shop/waypoint")?;
        let mut lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.find(|line| line["request_id"] == id))
    };
    let mut round = 0;
    until("the filter to count", SOON, || {
        round += 1;
        let (quiet, loud) = (format!("quiet-{round}"), format!("loud-{round}"));
        ask(&quiet, &[])?;
        ask(&loud, &["--header", "x-loud: yes"])?;
        // Lines are in the order in which requests have ended.
        until("the line", Duration::from_secs(5), || {
            let line = logged(&loud)?.with_context(|| format!("{loud} is not in the log"))?;
            let trace = line["trace_id"].as_str().unwrap_or_default();
            ensure!(trace.len() == 32, "{line}");
            Ok(())
        })?;
        let line = logged(&quiet)?;
        ensure!(line.is_none(), "{line:?}");
        Ok(())
    })
}
