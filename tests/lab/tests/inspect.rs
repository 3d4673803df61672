//! `karst inspect` on a live node: it shows what is really there, its JSON is what its schemas say, it agrees with
//! bpftool, and of a node without an agent it still shows the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::until;
use karst_lab_tests::Chat;
use karst_lab_tests::scenario::port;
use karst_lab_tests::shop::{CLIENT, Shop};
use serde_json::Value;

/// The node of the client, whose agent keeps the tunnels.
const NODE: &str = "node1";

/// How long state may take to follow.
const SOON: Duration = Duration::from_secs(10);

/// Exit codes of `karst inspect` (controller/cli/README.md).
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const UNREACHABLE: i32 = 7;
const UNSUPPORTED: i32 = 8;

/// Objects that are read from the kernel, and those that the agent is asked for.
const OF_KERNEL: [&str; 4] = ["prog", "link", "map", "pod"];
const OF_AGENT: [&str; 8] = [
    "connection",
    "tunnel",
    "cert",
    "workload",
    "service",
    "policy",
    "endpoint",
    "xds",
];
const OF_WAYPOINT: [&str; 5] = ["route", "endpoint", "xds", "cert", "tunnel"];

/// `BPF_LINK_TYPE_TCX` of linux/bpf.h.
const LINK_TYPE_TCX: u64 = 11;

/// The maps of ebpf/README.md.
const MAPS: [&str; 16] = [
    "PODS",
    "POD_ADDRESSES",
    "LISTENERS",
    "PUBLISHED",
    "AUTH",
    "SKST",
    "COUNTERS",
    "CONFIG",
    "AYA_LOGS",
    "VERDICTS",
    "SERVICES",
    "ENDPOINTS",
    "FLOWS",
    "FLOW_COUNT",
    "VERDICTS_UNTIL",
    "FLOW_EVENTS",
];

/// A route with weights, and a policy that lets through what the tests do.
const OBJECTS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /beta}, headers: [{name: x-team, value: red}]}]
    backendRefs: [{name: web-v2, port: 80}]
  - backendRefs: [{name: web-v1, port: 80, weight: 3}, {name: web-v2, port: 80, weight: 1}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-the-bank, namespace: mesh}
spec:
  action: DENY
  rules: [{from: [{source: {namespaces: [bank]}}]}]
";

static SHOP: LazyLock<Result<Shop>> = LazyLock::new(|| {
    let shop = Shop::open("insp")?;
    shop.apply(OBJECTS, || {
        let routes = of_waypoint(&shop, &["route"])?;
        ensure!(named(&routes, "split").is_some(), "{routes}");
        let policies = json(&of_node(&shop, &["policy"])?)?;
        ensure!(
            named(&policies, "mesh/not-the-bank").is_some(),
            "{policies}"
        );
        Ok(())
    })?;
    Ok(shop)
});

/// One test at a time: one of them kills an agent.
static TURN: Mutex<()> = Mutex::new(());

fn shop() -> Result<(&'static Shop, MutexGuard<'static, ()>)> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let shop = SHOP.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok((shop, turn))
}

/// `karst inspect WORDS` on the node.
fn inspect(shop: &Shop, words: &[&str]) -> Result<Output> {
    shop.world.lab.inspect(NODE, words)
}

fn of_node(shop: &Shop, words: &[&str]) -> Result<String> {
    let output = inspect(shop, &[words, &["-j"]].concat())?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{words:?}: {text}");
    Ok(text)
}

fn of_waypoint(shop: &Shop, words: &[&str]) -> Result<Value> {
    let output = shop.inspect_waypoint(&[words, &["-j"]].concat())?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{words:?}: {text}");
    json(&text)
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("{text:?}"))
}

/// The items of a list.
fn items(list: &Value) -> Result<&Vec<Value>> {
    list.as_array()
        .with_context(|| format!("{list} is no list"))
}

fn named<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| item["name"] == name)
}

/// All that the items have in a field, as text.
fn column(list: &Value, pointer: &str) -> Result<BTreeSet<String>> {
    let cell = |item: &Value| match item.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    Ok(items(list)?.iter().map(cell).collect())
}

/// What the golden tests of the text are made from.
const SAMPLES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../controller/cli/testdata/inspect"
);

/// Debian's validator of JSON schemas: another program than the one that wrote the answer. That it is missing is
/// an error.
fn valid(schema: &str, text: &str) -> Result<()> {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../controller/cli/schemas");
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("karst-{}-{number}.json", std::process::id()));
    fs::write(&file, text)?;
    let output = Command::new("jsonschema")
        .arg("-i")
        .arg(&file)
        .arg(schemas.join(format!("{schema}.json")))
        .output()
        .context("starting jsonschema (Debian package python3-jsonschema; `cargo xtask setup`)")?;
    fs::remove_file(&file)?;
    ensure!(
        output.status.success(),
        "{text}\nis not what {schema}.json says: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn bpftool(words: &[&str]) -> Result<Output> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH")?);
    Command::new("bpftool")
        .args(words)
        .env("PATH", path)
        .output()
        .context("starting bpftool (Debian package bpftool; `cargo xtask setup`)")
}

fn bpftool_json(words: &[&str]) -> Result<Value> {
    let output = bpftool(&[&["-j"], words].concat())?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "bpftool {words:?}: {text}");
    json(&text)
}

/// A connection that is open while a test looks.
fn chat(shop: &Shop) -> Result<Chat> {
    let server = shop.world.at("mesh/server", port::ECHO)?;
    Chat::open(&shop.world.lab, "mesh/client", &server)
}

#[test]
fn the_schemas_refuse_what_is_not_so() -> Result<()> {
    valid("error", r#"{"error": "no pod 'x'", "reason": "not_found"}"#)?;
    for wrong in [
        "[]",
        "{}",
        r#"{"error": 1, "reason": "r"}"#,
        r#"{"error": "e", "reason": "r", "more": 1}"#,
    ] {
        ensure!(valid("error", wrong).is_err(), "{wrong} passed");
    }
    for object in OF_KERNEL.iter().chain(&OF_AGENT).chain(&["route", "diff"]) {
        let sample = fs::read_to_string(format!("{SAMPLES}/{object}.json"))?;
        valid(object, &sample)?;
    }
    let no_layers =
        r#"{"node": "n", "layers": [], "not_compared": [], "passing": 0, "differences": []}"#;
    ensure!(valid("diff", no_layers).is_err(), "no layers passed");
    let map = r#"[{"key": {"netns_cookie": "x"}, "value": {"uid": "u", "v4": "", "v6": "", "guard": "0"}}]"#;
    ensure!(
        valid("map-dump", map).is_err(),
        "a cookie that is no number passed"
    );
    Ok(())
}

#[test]
fn every_object_is_as_its_schema_says_and_as_text_too() -> Result<()> {
    let (shop, _turn) = shop()?;
    let mut chat = chat(shop)?;
    chat.say("hello")?;
    shop.get("web:80", &[])?;
    for object in OF_KERNEL.iter().chain(&OF_AGENT) {
        let text = of_node(shop, &[object, "show"])?;
        valid(object, &text).with_context(|| (*object).to_owned())?;
        let count = items(&json(&text)?)?.len();
        ensure!(count > 0, "there is no {object}");
        // The pool and the list of connections may change between two looks.
        let output = inspect(shop, &[object, "list"])?;
        let shown = String::from_utf8(output.stdout)?;
        ensure!(
            output.status.success() && shown.lines().count() > 1,
            "{object}: {shown}"
        );
        ensure!(!shown.contains("no such"), "{shown}");
        let indented = inspect(shop, &[object, "-p"])?;
        ensure!(
            String::from_utf8(indented.stdout)?.starts_with("[\n"),
            "{object} -p"
        );
    }
    // With or without differences: the lab's objects are not this command's.
    let compared = inspect(shop, &["diff", "--no-intent", "-j"])?;
    valid("diff", &String::from_utf8(compared.stdout)?).context("diff")?;
    for object in OF_WAYPOINT {
        let output = shop.inspect_waypoint(&[object, "-j"])?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{object} of the waypoint: {text}");
        valid(object, &text).with_context(|| object.to_owned())?;
        ensure!(
            !items(&json(&text)?)?.is_empty(),
            "the waypoint has no {object}"
        );
        let shown = shop.inspect_waypoint(&[object])?;
        ensure!(shown.status.success(), "{object} of the waypoint");
    }
    chat.end()
}

#[test]
fn what_is_shown_is_what_is_there() -> Result<()> {
    let (shop, _turn) = shop()?;
    let lab = &shop.world.lab;
    let mut chat = chat(shop)?;
    chat.say("hello")?;
    let list = |words: &[&str]| json(&of_node(shop, words)?);
    let pods = list(&["pod"])?;
    let uids = ["mesh/client", "mesh/near", CLIENT].map(|pod| lab.pod_uid(pod));
    let uids: BTreeSet<String> = uids.into_iter().collect::<Result<_>>()?;
    ensure!(uids.is_subset(&column(&pods, "/uid")?), "{pods}");
    let one = list(&["pod", "show", "mesh/client"])?;
    ensure!(items(&one)?.len() == 1 && one[0]["uid"] == lab.pod_uid("mesh/client")?.as_str());
    let programs = list(&["prog"])?;
    ensure!(items(&programs)?.len() == 7, "{programs}");
    ensure!(list(&["prog", "show", "name", "karst_connect4"])?[0]["links"][0] == "connect4");
    let maps = list(&["map"])?;
    let names = column(&maps, "/name")?;
    ensure!(MAPS.iter().all(|map| names.contains(*map)), "{names:?}");
    let pods_map = named(&maps, "PODS").context("no PODS")?;
    let full = pods_map["fill_percent"].as_f64().context("no fill level")?;
    ensure!(
        full > 0.0 && pods_map["entries"] == items(&pods)?.len(),
        "{pods_map}"
    );
    let services = list(&["service", "show", "web"])?;
    ensure!(services[0]["port_summary"][0] == "80->3", "{services}");
    let endpoints = list(&["endpoint", "show", "shop/web.shop.svc.cluster.local"])?;
    let of_80: Vec<_> = items(&endpoints)?
        .iter()
        .filter(|e| e["port"] == 80)
        .collect();
    ensure!(
        of_80.len() == 3 && of_80.iter().all(|e| e["target_port"] == 8080),
        "{endpoints}"
    );
    let policies = list(&["policy", "show", "name", "mesh/not-the-bank"])?;
    ensure!(policies[0]["action"] == "DENY", "{policies}");
    let certificates = column(&list(&["cert"])?, "/id")?;
    ensure!(
        certificates
            .iter()
            .any(|id| id.ends_with("/ns/shop/sa/client")),
        "{certificates:?}"
    );
    let tunnels = list(&["tunnel"])?;
    let busy = items(&tunnels)?
        .iter()
        .any(|t| t["pod"] == "mesh/client" && t["streams"] == 1);
    ensure!(busy, "{tunnels}");
    let connections = list(&["conn"])?;
    ensure!(
        items(&connections)?
            .iter()
            .any(|c| c["pod"] == "mesh/client"),
        "{connections}"
    );
    let types = list(&["xds"])?;
    let addresses = named(&types, "Address").context("no addresses")?;
    ensure!(
        addresses["synced"] == true && addresses["acks"].as_u64() > Some(0),
        "{addresses}"
    );
    ensure!(
        addresses["held"].as_u64() > Some(0) && addresses["last_nack"].is_null(),
        "{addresses}"
    );
    chat.end()
}

#[test]
fn a_waypoint_shows_weights_latency_and_what_it_was_sent() -> Result<()> {
    let (shop, _turn) = shop()?;
    shop.load("web:80", &["--requests", "200"])?;
    let routes = of_waypoint(shop, &["route", "show", "shop/split"])?;
    let route = &routes[0];
    ensure!(route["state"] == "active", "{route}");
    let web = "service web.shop.svc.cluster.local:80";
    ensure!(column(&route["attached_to"], "")?.contains(web), "{route}");
    let percents = |rule: &Value| -> Result<Vec<(String, f64)>> {
        let one = |b: &Value| {
            let name = b["backend"].as_str().unwrap_or_default().to_owned();
            (name, b["percent"].as_f64().unwrap_or(-1.0))
        };
        Ok(items(&rule["backends"])?.iter().map(one).collect())
    };
    let rules = items(&route["rules"])?;
    ensure!(rules.len() == 2, "{route}");
    let split = rules
        .iter()
        .find(|rule| rule["matches"][0]["path"] == "prefix /");
    let split = percents(split.context("no default rule")?)?;
    ensure!(
        split.len() == 2 && (split[0].1, split[1].1) == (75.0, 25.0),
        "{split:?}"
    );
    let beta = rules
        .iter()
        .find(|rule| rule["matches"][0]["path"] == "prefix /beta");
    let beta = beta.context("no rule for /beta")?;
    ensure!(beta["matches"][0]["headers"][0] == "x-team", "{beta}");
    ensure!(
        !beta.to_string().contains("red"),
        "a header's value is shown: {beta}"
    );
    let endpoints = of_waypoint(shop, &["endpoint"])?;
    let used = items(&endpoints)?.iter().filter(|e| {
        let is_v1 = e["service"] == "web-v1.shop.svc.cluster.local";
        is_v1 && e["latency_ms"].as_f64() > Some(0.0) && e["weight"] == 1.0 && e["ejected"] == false
    });
    ensure!(used.count() == 2, "{endpoints}");
    let types = of_waypoint(shop, &["xds"])?;
    ensure!(
        named(&types, "Route").is_some_and(|t| t["acks"].as_u64() > Some(0)),
        "{types}"
    );
    let certificates = of_waypoint(shop, &["cert"])?;
    ensure!(certificates[0]["state"] == "available", "{certificates}");
    let refused = shop.inspect_waypoint(&["pod"])?;
    ensure!(refused.status.code() == Some(UNSUPPORTED), "{refused:?}");
    Ok(())
}

#[test]
fn every_map_dumps_decoded() -> Result<()> {
    let (shop, _turn) = shop()?;
    let lab = &shop.world.lab;
    let mut chat = chat(shop)?;
    chat.say("hello")?;
    for map in MAPS {
        let text = of_node(shop, &["map", "dump", "name", map])?;
        valid("map-dump", &text).with_context(|| map.to_owned())?;
        let output = inspect(shop, &["map", "dump", map])?;
        let shown = String::from_utf8(output.stdout)?;
        ensure!(shown.contains("Found "), "{map}: {shown}");
        let note = String::from_utf8(output.stderr)?;
        let is_special = ["SKST", "AYA_LOGS", "FLOW_EVENTS"].contains(&map);
        ensure!(
            note.starts_with(&format!("{map}: ")) == is_special,
            "{map}: {note}"
        );
    }
    let pods = json(&of_node(shop, &["map", "dump", "PODS"])?)?;
    let client = lab.pod_uid("mesh/client")?;
    let row = items(&pods)?
        .iter()
        .find(|e| e["value"]["uid"] == client.as_str());
    let row = row.context("the client is not in PODS")?;
    ensure!(
        row["value"]["v4"] == shop.world.v4("mesh/client")?.to_string().as_str(),
        "{row}"
    );
    let storage = json(&of_node(shop, &["map", "dump", "SKST"])?)?;
    let server = shop.world.at("mesh/server", port::ECHO)?;
    let held = items(&storage)?
        .iter()
        .filter(|e| e["value"]["endpoint"] == server.as_str());
    // The application's end, and the agent's that it was led to.
    ensure!(held.count() == 2, "{storage}");
    let counters = json(&of_node(shop, &["map", "dump", "COUNTERS"])?)?;
    let captured = items(&counters)?
        .iter()
        .find(|e| e["key"]["reason"] == "outbound_captured");
    let captured = captured.and_then(|e| e["value"]["value"].as_str()?.parse::<u64>().ok());
    ensure!(captured > Some(0), "{counters}");
    chat.end()?;
    until("the storage to go with its sockets", SOON, || {
        let storage = json(&of_node(shop, &["map", "dump", "SKST"])?)?;
        let left = items(&storage)?
            .iter()
            .filter(|e| e["value"]["endpoint"] == server.as_str());
        ensure!(left.count() == 0, "{storage}");
        Ok(())
    })
}

/// What bpftool says under a key, which some versions leave out.
fn same(ours: &Value, theirs: &Value, pairs: &[(&str, &str)]) -> Result<()> {
    for (own, other) in pairs {
        ensure!(
            ours[*own] == theirs[*other],
            "{own}: karst says {}, bpftool {} of {theirs}",
            ours[*own],
            theirs[*other]
        );
    }
    Ok(())
}

#[test]
fn bpftool_says_the_same() -> Result<()> {
    let (shop, _turn) = shop()?;
    let list = |words: &[&str]| json(&of_node(shop, words)?);
    let programs = list(&["prog"])?;
    let all = bpftool_json(&["prog", "show"])?;
    for ours in items(&programs)? {
        let theirs = items(&all)?.iter().find(|p| p["id"] == ours["id"]);
        let theirs = theirs.with_context(|| format!("bpftool does not see {ours}"))?;
        let fields = ["name", "type", "tag", "gpl_compatible", "loaded_at", "uid"];
        let sizes = [
            "bytes_xlated",
            "bytes_jited",
            "jited",
            "bytes_memlock",
            "map_ids",
        ];
        let pairs: Vec<_> = fields.iter().chain(&sizes).map(|f| (*f, *f)).collect();
        same(ours, theirs, &pairs)?;
    }
    for map in items(&list(&["map"])?)? {
        let id = map["id"].to_string();
        let theirs = bpftool_json(&["map", "show", "id", &id])?;
        let fields = [
            "id",
            "type",
            "name",
            "flags",
            "bytes_key",
            "bytes_value",
            "max_entries",
        ];
        let pairs: Vec<_> = fields.map(|f| (f, f)).into();
        same(map, &theirs, &pairs)?;
    }
    for link in items(&list(&["link"])?)? {
        let id = link["id"].to_string();
        let theirs = bpftool_json(&["link", "show", "id", &id])?;
        same(link, &theirs, &[("id", "id"), ("prog_id", "prog_id")])?;
        // An older bpftool has only the number of this type, and does not show what it is attached to.
        if theirs["type"] == LINK_TYPE_TCX {
            ensure!(link["type"] == "tcx", "{link}");
            continue;
        }
        same(link, &theirs, &[("type", "type")])?;
        let target = match link["type"].as_str() {
            Some("cgroup") => "cgroup_id",
            Some("tcx") => "ifindex",
            _ => "netns_ino",
        };
        same(link, &theirs, &[(target, target)])?;
    }
    Ok(())
}

/// The bytes of a key or value of bpftool's dump.
fn bytes(value: &Value) -> Result<Vec<u8>> {
    let byte = |text: &Value| {
        let text = text.as_str().and_then(|text| text.strip_prefix("0x"));
        let text = text.context("no byte")?;
        Ok(u8::from_str_radix(text, 16)?)
    };
    items(value)?.iter().map(byte).collect()
}

#[test]
fn dumps_have_the_entries_that_bpftool_sees() -> Result<()> {
    let (shop, _turn) = shop()?;
    let list = |words: &[&str]| json(&of_node(shop, words)?);
    for map in ["PODS", "POD_ADDRESSES", "CONFIG"] {
        let of = list(&["map", "show", "name", map])?;
        let pin = of[0]["pinned"].as_str().context("no pin")?.to_owned();
        let theirs = bpftool_json(&["map", "dump", "pinned", &pin])?;
        let ours = list(&["map", "dump", "pinned", &pin])?;
        ensure!(
            items(&ours)?.len() == items(&theirs)?.len() && !items(&ours)?.is_empty(),
            "{map}: karst {}, bpftool {}",
            items(&ours)?.len(),
            items(&theirs)?.len()
        );
        ensure!(of[0]["entries"] == items(&theirs)?.len(), "{of}");
    }
    // By name bpftool sees those of all nodes of the lab; the pin says which are this node's.
    let pin = list(&["map", "show", "PODS"])?[0]["pinned"].clone();
    let theirs = bpftool_json(&["map", "dump", "pinned", pin.as_str().context("no pin")?])?;
    let mut cookies = BTreeMap::new();
    for entry in items(&theirs)? {
        let key: [u8; 8] = bytes(&entry["key"])?
            .try_into()
            .map_err(|_| anyhow!("no cookie"))?;
        let value = bytes(&entry["value"])?;
        cookies.insert(u64::from_ne_bytes(key).to_string(), value);
    }
    for entry in items(&list(&["map", "dump", "PODS"])?)? {
        let cookie = entry["key"]["netns_cookie"].as_str().context("no cookie")?;
        let value = cookies.get(cookie).context("bpftool has no such cookie")?;
        let uid = entry["value"]["uid"].as_str().context("no uid")?;
        let holds = value.windows(uid.len()).any(|part| part == uid.as_bytes());
        ensure!(holds, "bpftool's value of {cookie} does not hold {uid}");
    }
    Ok(())
}

/// The error of either program, by JSON and by text.
fn errors(output: [Output; 2]) -> Result<String> {
    let [as_json, as_text] = output;
    ensure!(!as_json.status.success() && !as_text.status.success());
    let error = json(&String::from_utf8(as_json.stdout)?)?;
    let error = error["error"].as_str().context("no error")?.to_owned();
    let text = String::from_utf8(as_text.stderr)?;
    ensure!(
        text.trim_end() == format!("Error: {error}"),
        "{text:?} and {error:?}"
    );
    ensure!(as_text.stdout.is_empty(), "an error is no output");
    Ok(error)
}

#[test]
fn errors_are_in_bpftools_words() -> Result<()> {
    let (shop, _turn) = shop()?;
    let dir = std::env::temp_dir().join(format!("karst-batch-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path: PathBuf = dir.join(name);
        fs::write(&path, text)?;
        Ok(path.to_str().context("a path")?.to_owned())
    };
    for words in [
        &["prog", "show", "id"][..],
        &["prog", "show", "id", "x"],
        &["prog", "show", "id", "3x"],
        &["prog", "show", "idd", "3"],
        &["prog", "show", "foo", "bar"],
        &["prog", "show", "id", "1", "more"],
        &["map", "show", "idd", "3"],
        &["map", "show", "pinned"],
        &["batch"],
        &["batch", "file"],
        &["batch", "file", "/nonexistent"],
    ] {
        let ours = errors([
            inspect(shop, &[words, &["-j"]].concat())?,
            inspect(shop, words)?,
        ])?;
        let theirs = errors([bpftool(&[&["-j"], words].concat())?, bpftool(words)?])?;
        ensure!(
            ours == theirs,
            "{words:?}: karst {ours:?}, bpftool {theirs:?}"
        );
    }
    // bpftool 7.1 has no keywords of which it refuses a prefix as ambiguous in what it shares with karst; its
    // words are taken from itself.
    let program = fs::read("/usr/sbin/bpftool").context("reading bpftool")?;
    let holds = |text: &[u8]| program.windows(text.len()).any(|part| part == text);
    ensure!(holds(b"ambiguous prefix: '%s' could be '\0") && holds(b"' or '\0"));
    let output = inspect(shop, &["po"])?;
    ensure!(output.status.code() == Some(USAGE), "{output:?}");
    let said = String::from_utf8(output.stderr)?;
    ensure!(
        said == "Error: ambiguous prefix: 'po' could be 'pod' or 'policy'\n",
        "{said}"
    );
    // Help is for people: nothing on standard output, and null for programs.
    for words in [&["help"][..], &["prog", "help"], &[]] {
        let (ours, theirs) = (inspect(shop, words)?, bpftool(words)?);
        for output in [ours, theirs] {
            ensure!(
                output.status.success() && output.stdout.is_empty(),
                "{words:?}: {output:?}"
            );
            ensure!(
                output.stderr.starts_with(b"Usage: "),
                "{words:?}: {output:?}"
            );
        }
        let quiet = [words, &["-j"]].concat();
        for output in [inspect(shop, &quiet)?, bpftool(&quiet)?] {
            ensure!(
                output.stdout.trim_ascii() == b"null",
                "{quiet:?}: {output:?}"
            );
        }
    }
    // Batches: what is printed, where they stop, and what is made of quotes, comments and continued lines.
    let good = file("good", "# all\nversion\n  ver\\\nsion # again\n\n")?;
    let bad = file("bad", "version\nprog show id 'x'\nversion\n")?;
    let open = file("open", "prog show name \"a\nversion\n")?;
    for program in [inspect, |_: &Shop, words: &[&str]| bpftool(words)] {
        let output = program(shop, &["batch", "file", &good])?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(
            output.status.success() && text.ends_with("processed 2 commands\n"),
            "{text}"
        );
        let output = program(shop, &["-j", "batch", "file", &bad])?;
        let list = json(&String::from_utf8(output.stdout)?)?;
        ensure!(
            !output.status.success() && items(&list)?.len() == 2,
            "{list}"
        );
        ensure!(
            list[1]["command"] == serde_json::json!(["prog", "show", "id", "x"]),
            "{list}"
        );
        ensure!(
            list[1]["output"]["error"] == "can't parse x as ID",
            "{list}"
        );
        let output = program(shop, &["-j", "batch", "file", &open])?;
        let list = json(&String::from_utf8(output.stdout)?)?;
        ensure!(
            list[0]["error"] == "unterminated quoted string in command 0",
            "{list}"
        );
    }
    let output = inspect(shop, &["-j", "batch", "file", &bad])?;
    valid("batch", &String::from_utf8(output.stdout)?)?;
    fs::remove_dir_all(&dir)?;
    Ok(())
}

#[test]
fn every_failure_has_its_exit_code() -> Result<()> {
    let (shop, _turn) = shop()?;
    for (words, code) in [
        (&["nonsense"][..], USAGE),
        (&["map", "dump"], USAGE),
        (&["pod", "--stats", "1"], USAGE),
        (&["pod", "show", "nobody"], NOT_FOUND),
        (&["map", "dump", "NOPE"], NOT_FOUND),
        (&["prog", "show", "id", "4294967295"], NOT_FOUND),
        (&["route"], UNSUPPORTED),
    ] {
        let output = inspect(shop, &[words, &["-j"]].concat())?;
        ensure!(output.status.code() == Some(code), "{words:?}: {output:?}");
        valid("error", &String::from_utf8(output.stdout)?)?;
        ensure!(output.stderr.is_empty(), "{words:?}");
    }
    Ok(())
}

#[test]
fn runs_are_counted_for_as_long_as_is_asked() -> Result<()> {
    let (shop, _turn) = shop()?;
    let setting = || fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled");
    let before = setting()?;
    let text = std::thread::scope(|scope| -> Result<String> {
        let looking = scope.spawn(|| of_node(shop, &["prog", "show", "--stats", "3"]));
        while !looking.is_finished() {
            shop.get("web:80", &[])?;
        }
        looking.join().map_err(|_| anyhow!("it panicked"))?
    })?;
    valid("prog", &text)?;
    let programs = json(&text)?;
    let connect = named(&programs, "karst_connect4").context("no karst_connect4")?;
    ensure!(connect["stats"]["seconds"] == 3, "{connect}");
    ensure!(connect["stats"]["run_cnt"].as_u64() > Some(0), "{connect}");
    ensure!(
        connect["stats"]["run_time_ns"].as_u64() > Some(0),
        "{connect}"
    );
    ensure!(setting()? == before, "counting was left on");
    let quiet = inspect(shop, &["prog"])?;
    let said = String::from_utf8(quiet.stderr)?;
    ensure!(before.trim() != "0" || said.contains("--stats"), "{said}");
    Ok(())
}

#[test]
fn without_an_agent_there_is_still_the_kernel() -> Result<()> {
    let (shop, _turn) = shop()?;
    let lab = &shop.world.lab;
    let uid = lab.pod_uid("mesh/client")?;
    lab.kill_agent(NODE)?;
    let looked = (|| {
        for object in OF_KERNEL {
            let text = of_node(shop, &[object])?;
            valid(object, &text)?;
            ensure!(!items(&json(&text)?)?.is_empty(), "no {object}");
        }
        for map in MAPS {
            valid("map-dump", &of_node(shop, &["map", "dump", map])?)?;
        }
        let pods = json(&of_node(shop, &["pod", "show", "uid", &uid])?)?;
        ensure!(
            pods[0]["listening"] == serde_json::json!([]),
            "nobody listens: {pods}"
        );
        ensure!(
            pods[0].get("name").is_none(),
            "nobody knows its name: {pods}"
        );
        for object in OF_AGENT {
            let output = inspect(shop, &[object, "-j"])?;
            ensure!(
                output.status.code() == Some(UNREACHABLE),
                "{object}: {output:?}"
            );
            let text = String::from_utf8(output.stdout)?;
            valid("error", &text)?;
            ensure!(json(&text)?["reason"] == "unreachable", "{text}");
            let output = inspect(shop, &[object])?;
            let said = String::from_utf8(output.stderr)?;
            ensure!(
                said.starts_with("Error: the agent at ") && output.stdout.is_empty(),
                "{said}"
            );
        }
        Ok(())
    })();
    lab.start_agent(NODE)?;
    lab.wait_enrolled("mesh/client")?;
    lab.wait_enrolled(CLIENT)?;
    looked
}
