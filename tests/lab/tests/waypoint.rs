//! A service behind a waypoint: requests are routed one by one, and nothing reaches it in another way.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::until;
use karst_lab_tests::shop::{CLIENT, Shop};
use serde_json::Value;

/// How long a change of routes may take to be in force.
const IN_FORCE: Duration = Duration::from_secs(1);

/// Between this test's clock and that of the client that makes the load: its start takes a moment.
const CLOCKS: Duration = Duration::from_millis(500);

static SHOP: LazyLock<Result<Shop>> = LazyLock::new(|| Shop::open("way"));

fn shop() -> Result<&'static Shop> {
    SHOP.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// A route of that name on a Service, as YAML; `rules` is a list.
fn route(name: &str, service: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: {service}, port: 80}}]
  rules: {rules}
"
    )
}

/// A Service of the same pods as `web`, for a test of its own.
fn service(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]
---
"
    )
}

fn weights(v1: u32, v2: u32) -> String {
    format!(
        "[{{backendRefs: [{{name: web-v1, port: 80, weight: {v1}}}, {{name: web-v2, port: 80, weight: {v2}}}]}}]"
    )
}

fn count(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

#[test]
fn a_canary_gets_its_five_percent() -> Result<()> {
    let shop = shop()?;
    let canary = service("canary") + &route("canary", "canary", &weights(95, 5));
    shop.apply(&canary, || shop.get("canary:80", &[]).map(drop))?;
    let report = shop.load("canary:80", &["--requests", "20000"])?;
    ensure!(report["failed"] == 0, "{report}");
    let canary = count(&report, "/versions/v2");
    ensure!(
        (800..=1200).contains(&canary),
        "{canary} of 20,000 went to v2"
    );
    ensure!(
        canary + count(&report, "/versions/v1") == 20_000,
        "{report}"
    );
    Ok(())
}

#[test]
fn weights_change_under_load_at_once_and_nothing_is_lost() -> Result<()> {
    let shop = shop()?;
    let split = |v1, v2| route("moving", "moving", &weights(v1, v2));
    shop.apply(&(service("moving") + &split(100, 0)), || {
        ensure!(shop.version("moving:80", &[])? == "v1");
        Ok(())
    })?;
    let begun = Instant::now();
    let argv = [
        "karst-testapp",
        "load",
        "moving:80",
        "--requests",
        "10000",
        "--rate",
        "500",
    ];
    let load = shop.world.lab.spawn(CLIENT, &argv)?;
    std::thread::sleep(Duration::from_secs(3));
    shop.world.lab.apply_only(&split(0, 100))?;
    let in_force = begun.elapsed() + IN_FORCE;
    let output = load.finish()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(text.lines().last().context("no report")?)?;
    ensure!(
        report["failed"] == 0 && report["requests"] == 10_000,
        "{report}"
    );
    let late = u64::try_from((in_force + CLOCKS).as_millis())? / 100;
    let timeline = report["timeline"].as_object().context("no timeline")?;
    let after: Vec<&Value> = timeline
        .iter()
        .filter(|(step, _)| step.parse::<u64>().is_ok_and(|step| step > late))
        .map(|(_, versions)| versions)
        .collect();
    ensure!(!after.is_empty(), "the load ended too early: {report}");
    ensure!(
        after.iter().all(|versions| versions.get("v1").is_none()),
        "{timeline:?}"
    );
    ensure!(count(&report, "/versions/v1") > 500, "{report}");
    Ok(())
}

#[test]
fn headers_and_paths_choose_a_version() -> Result<()> {
    let shop = shop()?;
    let rules = "
  - matches: [{headers: [{name: x-canary, value: 'yes'}]}, {path: {type: PathPrefix, value: /next}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-way, value: canary}]}}]
    backendRefs: [{name: web-v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /here}}}]
  - matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{name: web-v1, port: 80}]
";
    let routes = service("chosen") + &route("chosen", "chosen", rules);
    shop.apply(&routes, || {
        ensure!(shop.version("chosen:80", &["--path", "/next"])? == "v2");
        Ok(())
    })?;
    ensure!(shop.version("chosen:80", &[])? == "v1");
    ensure!(shop.version("chosen:80", &["--path", "/nextdoor"])? == "v1");
    let canary = shop.get("chosen:80", &["--header", "x-canary: yes"])?;
    ensure!(canary["page"]["app_version"] == "v2", "{canary}");
    ensure!(canary["page"]["headers"]["x-way"] == "canary", "{canary}");
    let moved = shop.ask("chosen:80", &["--path", "/moved/there?q=1"])?;
    ensure!(moved["status"] == 301, "{moved}");
    ensure!(
        moved["headers"]["location"] == "http://chosen/here/there?q=1",
        "{moved}"
    );
    Ok(())
}

#[test]
fn calls_of_one_connection_are_balanced_over_all_pods() -> Result<()> {
    let report = shop()?.load(
        "web:9000",
        &["--grpc", "--requests", "3000", "--connections", "1"],
    )?;
    ensure!(report["failed"] == 0, "{report}");
    let pods = report["pods"].as_object().context("no pods")?;
    ensure!(pods.len() == 3, "{report}");
    ensure!(
        pods.values().all(|calls| calls.as_u64() >= Some(150)),
        "{report}"
    );
    Ok(())
}

#[test]
fn streams_stream() -> Result<()> {
    let world = &shop()?.world;
    let socket = world.app_ok(CLIENT, &["websocket", "web:80"])?;
    ensure!(socket["ok"] == true, "{socket}");
    let calls = world.app_ok(CLIENT, &["grpc", "web:9000"])?;
    ensure!(calls["unary"] == 1 && calls["stream"] == 3, "{calls}");
    let events = world.app_ok(CLIENT, &["events", "web:80", "--path", "/events/4/2000"])?;
    let arrivals = events["arrivals_ms"].as_array().context("no arrivals")?;
    ensure!(arrivals.len() == 4, "{events}");
    // The first one did not wait for the last.
    let (first, last) = (arrivals[0].as_u64(), arrivals[3].as_u64());
    ensure!(
        first
            .zip(last)
            .is_some_and(|(first, last)| first + 4000 < last),
        "{events}"
    );
    Ok(())
}

#[test]
fn the_application_learns_who_asks() -> Result<()> {
    let shop = shop()?;
    let answer = shop.get("web:80", &[])?;
    let headers = &answer["page"]["headers"];
    let client = shop.world.v4(CLIENT)?.to_string();
    ensure!(headers["x-forwarded-for"] == client.as_str(), "{answer}");
    let certificate = headers["x-forwarded-client-cert"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        certificate.contains("spiffe://cluster.local/ns/shop/sa/client"),
        "{answer}"
    );
    // What a client says of itself counts for nothing.
    let forged = "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/root";
    let answer = shop.get("web:80", &["--header", forged])?;
    let certificate = answer["page"]["headers"]["x-forwarded-client-cert"].as_str();
    ensure!(
        !certificate.unwrap_or_default().contains("sa/root"),
        "{answer}"
    );
    Ok(())
}

#[test]
fn what_is_not_http_passes_as_it_is() -> Result<()> {
    let report = shop()?
        .world
        .app_ok(CLIENT, &["storm", "web:7000", "200"])?;
    ensure!(report["failed"] == 0, "{report}");
    Ok(())
}

#[test]
fn a_route_to_nowhere_fails_for_its_share_alone() -> Result<()> {
    let shop = shop()?;
    let rules = "
  - matches: [{path: {type: PathPrefix, value: /half}}]
    backendRefs: [{name: web-v1, port: 80, weight: 1}, {name: nowhere, port: 80, weight: 1}]
  - matches: [{path: {type: Exact, value: /good}}]
    backendRefs: [{name: web-v1, port: 80}]
";
    let routes = service("halved") + &route("halved", "halved", rules);
    shop.apply(&routes, || {
        shop.get("halved:80", &["--path", "/good"]).map(drop)
    })?;
    let report = shop.load("halved:80", &["--path", "/half", "--requests", "1000"])?;
    let (good, bad) = (
        count(&report, "/statuses/200"),
        count(&report, "/statuses/500"),
    );
    ensure!(good + bad == 1000 && (400..=600).contains(&bad), "{report}");
    let unknown = shop.ask("halved:80", &["--path", "/unknown"])?;
    ensure!(unknown["status"] == 404, "{unknown}");
    Ok(())
}

#[test]
fn nothing_goes_around_the_waypoint() -> Result<()> {
    let shop = Shop::open("wayonly")?;
    let world = &shop.world;
    let server = pod_of(&shop, "web-v1")?;
    let at = world.at(&server, 8080)?;
    // By its own address, a pod is reached through the waypoint as well.
    let answer = shop.get(&at, &[])?;
    ensure!(
        answer["page"]["headers"]["x-forwarded-for"].is_string(),
        "{answer}"
    );
    // From outside the mesh it is not reached at all.
    let outside = world.app("plain/client", &["http", &at])?;
    ensure!(outside["ok"] == false, "{outside}");
    // Nor from a pod of the mesh once the waypoint is gone.
    world.lab.delete_pod("shop/waypoint")?;
    until("requests to be refused", Duration::from_secs(20), || {
        for target in ["web:80", &at] {
            let answer = shop.ask(target, &[])?;
            ensure!(answer["ok"] == false, "{target}: {answer}");
        }
        Ok(())
    })
}

/// A pod of a Deployment of the shop.
fn pod_of(shop: &Shop, deployment: &str) -> Result<String> {
    let name = format!("{deployment}-");
    let pods = shop.world.lab.status()?.pods.into_iter();
    let found = pods
        .filter(|pod| pod.namespace == "shop")
        .find(|pod| pod.name.starts_with(&name));
    Ok(format!("shop/{}", found.context("no such pod")?.name))
}
