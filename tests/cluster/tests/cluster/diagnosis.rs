//! The faults of the lab's `faults.rs`, each staged on a real cluster: before it its cause is not named, then
//! `karst` names it, and when all is as it was it is named no more. Other tests' faults may be on the cluster at the
//! same time, so only what is said of a scene's own objects is looked at.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Output, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use karst_cluster::{API_SERVER, Cluster, NODES};
use karst_harness::{Doctor, EndingAuthority, NewerController, Place, by_hand, host, netns, until};
use serde_json::{Value, json};

use crate::mesh::{
    AGENTS, CONTROLLERS, LABEL, NO_LABEL, SYSTEM, enrolled_shop, karst_output, label, pod, text,
    wait_enrolled, with_karst,
};
use crate::outage::scale;
use crate::shared::{APP_IMAGE, LIMIT, alone, ask as page, shared};
use crate::waypoint::{ask, weights, with_gateway_api};

/// The namespace of the shop that the scenes share.
const SHOP: &str = "diagnosis";

/// That of [`outsider`].
const PLAIN: &str = "diagnosis-plain";

/// That of the pod whose certificate ends.
const BRIEF: &str = "diagnosis-brief";

/// How long the authority of the outage lasts: long enough for a controller and a pod to start on a busy machine.
const ENDS: Duration = Duration::from_secs(60);

/// How long an authority lasts that is not to end during a test.
const LASTS: Duration = Duration::from_secs(3600);

/// How long a certificate may take to be at its half, or at its end.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// Nobody has this network namespace.
const COOKIE: u64 = 0x7777_7777;

/// Where the links and the maps of node1 are pinned.
const PINS: &str = "/sys/fs/bpf/karst/node1";

fn explain(cluster: &Cluster, arguments: &[&str]) -> Result<Output> {
    karst_output(cluster, &[&["explain", "-j"], arguments].concat())
}

/// From a laptop: what a node holds is compared there, through the agent's container.
fn from_afar(cluster: &Cluster) -> Doctor<'_> {
    Doctor::new(
        |node| {
            karst_output(
                cluster,
                &["inspect", "diff", "--settle=3", "-j", "--node", node],
            )
        },
        |arguments| explain(cluster, arguments),
    )
}

/// As root on the node, with the administrator's configuration: objects are compared too, and no agent is needed.
fn on_node(cluster: &Cluster) -> Doctor<'_> {
    Doctor::new(
        |node| {
            const CONFIG: &str = "/run/karst-admin.conf";
            let admin = std::fs::read(cluster.kubeconfig("admin"))?;
            let keep = ["sh", "-c", &format!("cat > {CONFIG}")];
            host::run_with_input(&mut cluster.node_command(node, &keep)?, &admin)?;
            // A node sees the machine's files, but for those of /tmp and /run.
            let program = std::fs::canonicalize(karst_cluster::binary("karst")?)?;
            let program = program.display().to_string();
            let diff = ["inspect", "diff", "--settle=3", "-j", "--node", node];
            let argv = [&[program.as_str()], &diff[..], &["--kubeconfig", CONFIG]].concat();
            Ok(cluster.node_command(node, &argv)?.output()?)
        },
        |arguments| explain(cluster, arguments),
    )
}

/// The shop, open: its client is on node1, its server on node2. Opening what is open changes nothing.
fn open(cluster: &Cluster) {
    static OPENING: Mutex<()> = Mutex::new(());
    let _one = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    with_karst(cluster);
    enrolled_shop(cluster, SHOP);
}

/// `NAMESPACE/POD`.
fn named(cluster: &Cluster, app: &str) -> String {
    format!(
        "{SHOP}/{}",
        text(&pod(cluster, SHOP, app), "/metadata/name")
    )
}

/// A pod on node1 that is not in the mesh.
fn outsider(cluster: &Cluster) -> Result<()> {
    cluster.apply(&format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {PLAIN}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: outsider, namespace: {PLAIN}}}
---
{}",
        single(PLAIN, "outsider")
    ))?;
    cluster.wait_for(&["pod/outsider", "-n", PLAIN], "condition=Ready", LIMIT)
}

/// A pod on node1 with an account of its own.
fn single(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  serviceAccountName: {name}
  terminationGracePeriodSeconds: 1
  nodeSelector: {{kubernetes.io/hostname: node1}}
  containers: [{{name: app, image: {APP_IMAGE}, imagePullPolicy: Never, args: [serve]}}]
"
    )
}

/// A Service of the shop, with port 80.
fn service(name: &str, labels: &str, app: &str, target: u16) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {SHOP}, labels: {{{labels}}}}}
spec: {{selector: {{app: {app}}}, ports: [{{port: 80, targetPort: {target}}}]}}
"
    )
}

fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: {SHOP}}}
spec: {spec}
"
    )
}

fn delete(cluster: &Cluster, what: &str, namespace: &str) -> Result<()> {
    cluster
        .kubectl(&["delete", what, "-n", namespace])
        .map(drop)
}

/// Stages a fault, asks `question` of it and takes it back, whatever came of it. A question that was not answered counts for
/// more than a fault that could not be taken back.
fn staged<T>(
    stage: impl FnOnce() -> Result<()>,
    question: impl FnOnce() -> Result<T>,
    undo: impl FnOnce() -> Result<()>,
) -> Result<T> {
    let answer = stage().and_then(|()| question());
    let undone = undo().context("taking the fault back");
    let answer = answer?;
    undone.map(|()| answer)
}

/// Waits until the client of the shop gets an answer, or none.
fn wait_answer(cluster: &Cluster, argv: &[&str], wanted: bool) -> Result<()> {
    until(&format!("{argv:?} to be {wanted}"), LIMIT, || {
        let said = ask(cluster, SHOP, argv)?;
        ensure!(said["ok"] == wanted, "{said}");
        Ok(())
    })
}

/// Waits until `karst explain` says what it should: what it reads follows what was applied.
fn explained<T>(check: impl FnMut() -> Result<T>) -> Result<T> {
    until("karst explain", LIMIT, check)
}

#[test]
fn no_endpoint() -> Result<()> {
    let cluster = shared();
    open(&cluster);
    let (doctor, client) = (from_afar(&cluster), named(&cluster, "client"));
    let at = format!("front.{SHOP}:80");
    cluster.apply(&service("front", "", "server", 8080))?;
    wait_answer(&cluster, &["http", "front:80"], true)?;
    explained(|| doctor.allows(&client, &at))?;
    staged(
        || {
            cluster
                .apply(&service("front", "", "nobody", 8080))
                .map(drop)
        },
        || {
            let why = ("no_healthy_upstream", "diagnosis/front");
            explained(|| doctor.denies(&client, &at, why))?;
            wait_answer(&cluster, &["http", "front:80"], false)
        },
        || {
            cluster
                .apply(&service("front", "", "server", 8080))
                .map(drop)
        },
    )?;
    explained(|| doctor.allows(&client, &at))?;
    delete(&cluster, "service/front", SHOP)
}

#[test]
fn a_deny_policy() -> Result<()> {
    let cluster = shared();
    open(&cluster);
    let (doctor, client) = (from_afar(&cluster), named(&cluster, "client"));
    let at = format!("{}:7000", named(&cluster, "server"));
    let address = text(&pod(&cluster, SHOP, "server"), "/status/podIP").to_owned() + ":7000";
    let chat = ["connect", &address, "--send", "hello", "--read-lines", "1"];
    wait_answer(&cluster, &chat, true)?;
    doctor.allows(&client, &at)?;
    // For this port alone: the scenes beside this one have the same server.
    let spec = "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/diagnosis/sa/client]}}], \
                to: [{operation: {ports: ['7000']}}]}]}";
    let said = staged(
        || {
            let denied = policy("AuthorizationPolicy", "no-client", spec);
            cluster.apply(&denied).map(drop)
        },
        || {
            wait_answer(&cluster, &chat, false)?;
            doctor.denies(&client, &at, ("policy_denied", "diagnosis/no-client"))
        },
        || delete(&cluster, "authorizationpolicy/no-client", SHOP),
    )?;
    let hops = said["hops"].as_array().context("no hops")?;
    ensure!(
        hops.iter()
            .any(|hop| hop["policy"] == "diagnosis/no-client"),
        "{said}"
    );
    doctor.allows(&client, &at)?;
    wait_answer(&cluster, &chat, true)
}

#[test]
fn strict_against_plaintext() -> Result<()> {
    let cluster = shared();
    open(&cluster);
    outsider(&cluster)?;
    let doctor = from_afar(&cluster);
    let outsider = format!("{PLAIN}/outsider");
    let at = format!("{}:8080", named(&cluster, "server"));
    let server = pod(&cluster, SHOP, "server");
    let address = format!("{}:8080", text(&server, "/status/podIP"));
    doctor.allows(&outsider, &at)?;
    page(&cluster, PLAIN, "outsider", &address)?;
    let said = staged(
        || {
            let strict = policy("PeerAuthentication", "strict", "{mtls: {mode: STRICT}}");
            cluster.apply(&strict).map(drop)
        },
        || {
            until("plaintext to be refused", LIMIT, || {
                let answer = page(&cluster, PLAIN, "outsider", &address);
                ensure!(answer.is_err(), "{answer:?}");
                Ok(())
            })?;
            doctor.allows(&named(&cluster, "client"), &at)?;
            doctor.denies(&outsider, &at, ("policy_denied", "STRICT"))
        },
        || delete(&cluster, "peerauthentication/strict", SHOP),
    )?;
    let hops = said["hops"].as_array().context("no hops")?;
    ensure!(
        hops.iter()
            .any(|hop| hop["mtls"]["by"] == "diagnosis/strict"),
        "{said}"
    );
    doctor.allows(&outsider, &at)
}

#[test]
fn a_missing_waypoint() -> Result<()> {
    let cluster = shared();
    open(&cluster);
    let (doctor, client) = (on_node(&cluster), named(&cluster, "client"));
    let at = format!("guarded.{SHOP}:80");
    let ghost = "waypoint diagnosis/ghost";
    cluster.apply(&service("guarded", "", "server", 8080))?;
    wait_answer(&cluster, &["http", "guarded:80"], true)?;
    explained(|| doctor.allows(&client, &at))?;
    doctor.finds_no("node1", "KARST1011", ghost)?;
    staged(
        || {
            let labels = "karst.dev/use-waypoint: ghost";
            let labelled = service("guarded", labels, "server", 8080);
            cluster.apply(&labelled).map(drop)
        },
        || {
            wait_answer(&cluster, &["http", "guarded:80"], false)?;
            let why = ("waypoint_unknown", "diagnosis/ghost");
            explained(|| doctor.denies(&client, &at, why))?;
            doctor.finds("node1", "KARST1011", ghost)?;
            doctor.finds("node2", "KARST1011", ghost)
        },
        || delete(&cluster, "service/guarded", SHOP),
    )?;
    doctor.finds_no("node1", "KARST1011", ghost)
}

#[test]
fn a_wrong_service_port() -> Result<()> {
    let cluster = shared();
    open(&cluster);
    let (doctor, client) = (on_node(&cluster), named(&cluster, "client"));
    explained(|| doctor.allows(&client, &format!("server.{SHOP}:80")))?;
    // A port that the Service does not have.
    let why = ("service_port_unknown", "diagnosis/server");
    doctor.denies(&client, &format!("server.{SHOP}:81"), why)?;
    // A port of the pod where nobody listens.
    let server = format!("pod {}", named(&cluster, "server"));
    doctor.finds_no("node2", "KARST1204", &server)?;
    let said = staged(
        || {
            cluster
                .apply(&service("wrong", "", "server", 7999))
                .map(drop)
        },
        || doctor.finds("node2", "KARST1204", &server),
        || delete(&cluster, "service/wrong", SHOP),
    )?;
    let expected = said["expected"].as_str().unwrap_or_default();
    ensure!(
        expected.contains("diagnosis/wrong port 80") && expected.contains("7999"),
        "{said}"
    );
    doctor.finds_no("node2", "KARST1204", &server)
}

/// The agent of node1.
fn agent(cluster: &Cluster) -> Result<Value> {
    let which = [
        "-n",
        SYSTEM,
        "-l",
        AGENTS,
        "--field-selector=spec.nodeName=node1",
    ];
    let list = cluster.get(&[&["pods"], &which[..]].concat())?;
    let pods = list["items"].as_array().context("no list")?;
    let there = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    pods.iter()
        .find(there)
        .cloned()
        .context("no agent on node1")
}

#[test]
fn a_dead_agent() -> Result<()> {
    let cluster = alone();
    open(&cluster);
    let doctor = on_node(&cluster);
    let client = format!("pod {}", named(&cluster, "client"));
    doctor.finds_no("node1", "KARST1001", "agent of node1")?;
    doctor.finds_no("node1", "KARST1202", &client)?;
    let agent = agent(&cluster)?;
    let container = text(&agent, "/status/containerStatuses/0/containerID");
    let container = container.trim_start_matches("containerd://");
    let said = staged(
        || {
            // The kubelet would start it again at once.
            cluster.stop_kubelet(1)?;
            let kill = [
                "ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", container,
            ];
            cluster.node_exec("node1", &kill).map(drop)
        },
        || {
            doctor.finds("node1", "KARST1001", "agent of node1")?;
            doctor.finds_no("node2", "KARST1001", "agent of node2")?;
            let said = doctor.finds("node1", "KARST1202", &client)?;
            let all = doctor.differences("node1")?;
            let gone = all
                .iter()
                .any(|one| one["code"] == "KARST1102" || one["code"] == "KARST1106");
            ensure!(!gone, "pods and links are there without it: {all:?}");
            Ok(said)
        },
        || cluster.start_kubelet(1),
    )?;
    ensure!(said["expected"].to_string().contains(":15001"), "{said}");
    doctor.finds_no("node1", "KARST1001", "agent of node1")?;
    doctor.finds_no("node1", "KARST1202", &client)?;
    wait_agents(&cluster)
}

/// Waits until the kubelets' word of the agents is that they are ready, for the tests that come after.
fn wait_agents(cluster: &Cluster) -> Result<()> {
    let status = [
        "rollout",
        "status",
        "-n",
        SYSTEM,
        "daemonset/karst-node-agent",
    ];
    let status = [&status[..], &["--timeout=120s"]].concat();
    cluster.kubectl(&status).map(drop)
}

/// The folder of node1's pinned maps.
fn maps(cluster: &Cluster) -> Result<String> {
    let find = format!("echo {PINS}/maps-v*");
    let found = cluster.node_exec("node1", &["sh", "-c", &find])?;
    let found = found.trim().to_owned();
    ensure!(!found.contains('*') && !found.contains(' '), "{found}");
    Ok(found)
}

fn bpftool(cluster: &Cluster, arguments: &[String]) -> Result<()> {
    let arguments = arguments.iter().map(String::as_str);
    let argv: Vec<&str> = ["bpftool"].into_iter().chain(arguments).collect();
    cluster.node_exec("node1", &argv).map(drop)
}

#[test]
fn stale_map_entries() -> Result<()> {
    let cluster = alone();
    open(&cluster);
    let doctor = from_afar(&cluster);
    let maps = maps(&cluster)?;
    let (pods, addresses) = (format!("{maps}/PODS"), format!("{maps}/POD_ADDRESSES"));
    let uid = "0badcafe-stale";
    let client = pod(&cluster, SHOP, "client");
    let named = format!("pod {SHOP}/{}", text(&client, "/metadata/name"));
    let v4: std::net::Ipv4Addr = text(&client, "/status/podIP").parse()?;
    let address = v4.to_ipv6_mapped().octets();
    doctor.finds_no("node1", "KARST1103", uid)?;
    doctor.finds_no("node1", "KARST1105", &named)?;
    let dump = [
        "map",
        "dump",
        "name",
        "POD_ADDRESSES",
        "-j",
        "--node",
        "node1",
    ];
    let dump = karst_output(&cluster, &[&["inspect"], &dump[..]].concat())?;
    let dump: Value = serde_json::from_slice(&dump.stdout)?;
    let entries = dump.as_array().context("no entries")?;
    let entry = entries
        .iter()
        .find(|entry| entry["key"].to_string().contains(&format!("\"{v4}\"")));
    let cookie = entry.and_then(|entry| entry["value"].as_object()?.values().next()?.as_str());
    let cookie: u64 = cookie
        .with_context(|| format!("no {v4} in {dump}"))?
        .parse()?;
    // A pod of which nobody knows; the agent looks every half a minute for such.
    let stranger = || {
        let value = by_hand::pods_value(uid, Some([10, 99, 99, 99]));
        let entry = by_hand::write_entry(&pods, &COOKIE.to_ne_bytes(), &value);
        bpftool(&cluster, &entry)
    };
    let (stale, wrong) = staged(
        || {
            stranger()?;
            // And an address of a pod given to it.
            let owner = COOKIE.to_ne_bytes();
            bpftool(
                &cluster,
                &by_hand::write_entry(&addresses, &address, &owner),
            )
        },
        || {
            let stale = doctor.finds_kept("node1", ("KARST1103", uid), stranger)?;
            let wrong = doctor.finds("node1", "KARST1105", &named)?;
            doctor.finds_no("node2", "KARST1103", uid)?;
            Ok((stale, wrong))
        },
        || {
            // The stranger goes when the agent looks next.
            let owner = cookie.to_ne_bytes();
            let entry = by_hand::write_entry(&addresses, &address, &owner);
            bpftool(&cluster, &entry)
        },
    )?;
    ensure!(
        stale["found"].to_string().contains(&COOKIE.to_string()),
        "{stale}"
    );
    ensure!(
        wrong["found"].as_str() == Some(&COOKIE.to_string()),
        "{wrong}"
    );
    doctor.finds_no("node1", "KARST1103", uid)?;
    doctor.finds_no("node1", "KARST1105", &named)
}

#[test]
fn a_detached_program() -> Result<()> {
    let cluster = alone();
    open(&cluster);
    let doctor = from_afar(&cluster);
    let uid = text(&pod(&cluster, SHOP, "client"), "/metadata/uid").to_owned();
    let client = format!("pod {}", named(&cluster, "client"));
    let faults = [
        ("KARST1107", "link connect4"),
        ("KARST1106", "link connect6"),
        ("KARST1106", &client),
    ];
    for (code, object) in faults {
        doctor.finds_no("node1", code, object)?;
    }
    staged(
        || {
            let detach = ["link", "detach", "pinned"].map(str::to_owned);
            let link = format!("{PINS}/links/connect4");
            bpftool(&cluster, &[&detach[..], &[link]].concat())?;
            for link in ["connect6", &format!("sk_lookup-{uid}")] {
                let link = format!("{PINS}/links/{link}");
                cluster.node_exec("node1", &["rm", &link])?;
            }
            Ok(())
        },
        || {
            for (code, object) in faults {
                doctor.finds("node1", code, object)?;
            }
            doctor.finds_no("node2", "KARST1107", "link connect4")
        },
        || {
            // An agent that comes back puts them in place again.
            let agent = agent(&cluster)?;
            let name = format!("pod/{}", text(&agent, "/metadata/name"));
            delete(&cluster, &name, SYSTEM)?;
            wait_agents(&cluster)
        },
    )?;
    for (code, object) in faults {
        doctor.finds_no("node1", code, object)?;
    }
    wait_answer(&cluster, &["http", "server:80"], true)
}

#[test]
fn a_full_map() -> Result<()> {
    let cluster = alone();
    open(&cluster);
    outsider(&cluster)?;
    let doctor = on_node(&cluster);
    let map = format!("{}/PODS", maps(&cluster)?);
    let outsider = format!("pod {PLAIN}/outsider");
    doctor.finds_no("node1", "KARST1111", "map PODS")?;
    doctor.finds_no("node1", "KARST1004", &outsider)?;
    let shown = cluster.node_exec("node1", &["bpftool", "-j", "map", "show", "pinned", &map])?;
    let shown: Value = serde_json::from_str(&shown)?;
    let room = shown["max_entries"].as_u64().context("no max_entries")?;
    let batch = |lines: Vec<Vec<String>>| -> Result<Output> {
        let lines: Vec<String> = lines.iter().map(|argv| argv.join(" ")).collect();
        let argv = ["bpftool", "batch", "file", "-"];
        let mut child = cluster
            .node_command("node1", &argv)?
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("no input")?;
        // It ends at its first error, with what comes after it unread.
        let _ = input.write_all((lines.join("\n") + "\n").as_bytes());
        drop(input);
        Ok(child.wait_with_output()?)
    };
    let key = |number: u64| (COOKIE + number).to_ne_bytes();
    let (full, refused) = staged(
        || {
            let entry = |number: u64| {
                let value = by_hand::pods_value(&format!("stale-{number}"), None);
                by_hand::write_entry(&map, &key(number), &value)
            };
            // There is not room for all of them, as pods of the mesh are there.
            let output = batch((0..room).map(entry).collect())?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                said.contains("Argument list too long"),
                "{}: {said}",
                output.status
            );
            label(&cluster, PLAIN, LABEL);
            Ok(())
        },
        || {
            let full = doctor.finds("node1", "KARST1111", "map PODS")?;
            doctor.finds_no("node2", "KARST1111", "map PODS")?;
            Ok((full, doctor.finds("node1", "KARST1004", &outsider)?))
        },
        || {
            // They are removed in the order in which they were written, up to the first that found no room.
            let remove = |number: u64| by_hand::remove_entry(&map, &key(number));
            batch((0..room).map(remove).collect()).map(drop)
        },
    )?;
    ensure!(full["found"] == format!("{room} entries"), "{full}");
    ensure!(
        refused["found"].to_string().contains("pods_full"),
        "{refused}"
    );
    // There is room for it now.
    doctor.finds_no("node1", "KARST1111", "map PODS")?;
    doctor.finds_no("node1", "KARST1004", &outsider)?;
    label(&cluster, PLAIN, NO_LABEL);
    wait_enrolled(&cluster, PLAIN, false);
    Ok(())
}

/// Sets an argument of the controllers, and waits until all of them have it.
fn argue(cluster: &Cluster, name: &str, value: &str) -> Result<()> {
    let deployment = ["deployment/karst-controller", "-n", SYSTEM];
    let object = cluster.get(&deployment)?;
    let path = "/spec/template/spec/containers/0/args";
    let arguments = object.pointer(path).and_then(Value::as_array);
    let arguments = arguments.context("no arguments")?;
    let start = format!("{name}=");
    let is_it = |one: &Value| one.as_str().is_some_and(|text| text.starts_with(&start));
    let at = arguments
        .iter()
        .position(is_it)
        .context("no such argument")?;
    let value = format!("{name}={value}");
    let patch = json!([{"op": "replace", "path": format!("{path}/{at}"), "value": value}]);
    let patch = patch.to_string();
    let how = ["--type=json", "-p", &patch];
    cluster.kubectl(&[&["patch"], &deployment[..], &how].concat())?;
    let status = [&["rollout", "status"], &deployment[..], &["--timeout=120s"]].concat();
    cluster.kubectl(&status).map(drop)
}

/// Controllers with another trust domain, of which this mesh's agents take no pods.
#[test]
fn a_rejected_resource() -> Result<()> {
    let cluster = alone();
    open(&cluster);
    let doctor = from_afar(&cluster);
    let uid = text(&pod(&cluster, SHOP, "client"), "/metadata/uid").to_owned();
    doctor.finds_no("node1", "KARST1010", &uid)?;
    let said = staged(
        || argue(&cluster, "--trust-domain", "other.example"),
        || doctor.finds("node1", "KARST1010", &uid),
        || argue(&cluster, "--trust-domain", "cluster.local"),
    )?;
    let found = said["found"].as_str().unwrap_or_default();
    ensure!(
        found.contains("trust_domain") && found.contains("other.example"),
        "the reason is not given: {said}"
    );
    ensure!(said["object"].to_string().contains("NodePod"), "{said}");
    doctor.finds_no("node1", "KARST1010", &uid)
}

/// One below the mesh's own authority.
fn authority(cluster: &Cluster, left: Duration) -> Result<EndingAuthority> {
    let secret = cluster.get(&["secret/karst-ca", "-n", SYSTEM])?;
    let part = |name: &str| -> Result<String> {
        let bytes = STANDARD.decode(secret["data"][name].as_str().context("no data")?)?;
        Ok(String::from_utf8(bytes)?)
    };
    EndingAuthority::under(&part("root-cert.pem")?, &part("ca-key.pem")?, left)
}

/// A controller of a newer version before one of the cluster's, on the control plane's host.
fn newer_controller(cluster: &Cluster) -> Result<NewerController> {
    let running = "--field-selector=status.phase=Running";
    let pods = cluster.get(&["pods", "-n", SYSTEM, "-l", CONTROLLERS, running])?;
    let address: IpAddr = text(&pods, "/items/0/status/podIP").parse()?;
    let place = Place {
        netns: netns::file(&cluster.control_netns()),
        listen: (API_SERVER, 0).into(),
        controller: (address, 15012).into(),
        name: format!("karst-controller.{SYSTEM}.svc"),
    };
    NewerController::start(place, &authority(cluster, LASTS)?)
}

/// Leads new connections to the Service of the controllers to `newer`, or to the controllers again.
fn lead(cluster: &Cluster, newer: Option<&NewerController>) -> Result<()> {
    const SLICE: &str = "newer-controller";
    let app = newer.map_or("karst-controller", |_| "none");
    let patch = json!({"spec": {"selector": {"app.kubernetes.io/name": app}}}).to_string();
    let service = ["patch", "service/karst-controller", "-n", SYSTEM];
    cluster.kubectl(&[&service[..], &["-p", &patch]].concat())?;
    if let Some(newer) = newer {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": SLICE,
                "namespace": SYSTEM,
                "labels": {
                    "kubernetes.io/service-name": "karst-controller",
                    "endpointslice.kubernetes.io/managed-by": "tests.karst.dev",
                },
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [newer.address().ip()]}],
            "ports": [{"name": "grpc-tls", "port": newer.address().port()}],
        });
        cluster.apply(&slice.to_string())?;
    } else {
        delete(cluster, &format!("endpointslice/{SLICE}"), SYSTEM)?;
    }
    until("the nodes to follow", LIMIT, || {
        for node in (1..=NODES).map(|number| format!("node{number}")) {
            let list = ["nft", "list", "table", "ip", "kube-proxy"];
            let rules = cluster.node_exec(&node, &list)?;
            // Chains that nothing leads to any more stay for a while.
            let ends = rules.split("goto ").skip(1).filter_map(|name| {
                let name = name.split_whitespace().next()?;
                name.split_once("/karst-controller/tcp/grpc-tls__")
            });
            let ends: Vec<&str> = ends.map(|(_, end)| end).collect();
            let wanted = |end: &&str| end.starts_with(&format!("{API_SERVER}/")) == newer.is_some();
            ensure!(
                !ends.is_empty() && ends.iter().all(wanted),
                "{node}: {ends:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_nacked_route() -> Result<()> {
    const PLACE: &str = "diagnosis-route";
    const WHY: &str = "http_rules[1].matches[0].path.kind is missing, or not known to this version";
    let cluster = alone();
    with_karst(&cluster);
    with_gateway_api(&cluster);
    let doctor = on_node(&cluster);
    let route = format!("HTTPRoute/{PLACE}/web");
    let object = format!("route {route} at proxy {PLACE}/waypoint-");
    let answers = |version: &str| {
        let answer = ask(&cluster, PLACE, &["http", "web:80"])?;
        let page = &answer["page"];
        ensure!(
            page["app_version"] == version && page["headers"]["x-forwarded-for"].is_string(),
            "{answer}"
        );
        Ok(())
    };
    let newer = newer_controller(&cluster)?;
    staged(
        || lead(&cluster, Some(&newer)),
        || {
            let yaml = include_str!("canary.yaml")
                .replace("NAMESPACE", PLACE)
                .replace("IMAGE", APP_IMAGE);
            cluster.apply(&yaml)?;
            cluster.apply(&weights(PLACE, 100, 0))?;
            for name in ["client", "web-v1", "web-v2"] {
                let what = [&format!("deployment/{name}"), "-n", PLACE];
                cluster.wait_for(&what, "condition=Available", LIMIT)?;
            }
            // Both of them: one that comes while the route is rejected has no last good one.
            let proxies = ["deployment/waypoint", "-n", PLACE];
            let both = "jsonpath={.status.availableReplicas}=2";
            cluster.wait_for(&proxies, both, LIMIT)?;
            until("the waypoints to answer", LIMIT, || answers("v1"))?;
            let which = ["-l", "gateway.networking.k8s.io/gateway-name=waypoint"];
            let proxies = cluster.get(&[&["pods", "-n", PLACE], &which[..]].concat())?;
            let node = text(&proxies, "/items/0/spec/nodeName");
            doctor.finds_no(node, "KARST1010", &object)?;

            newer.renew(&route);
            let said = doctor.finds(node, "KARST1010", &object)?;
            ensure!(said["found"] == WHY, "the reason is not given: {said}");
            // The last good route is in force, also when the object changes.
            cluster.apply(&weights(PLACE, 0, 100))?;
            let said = from_afar(&cluster).finds(node, "KARST1010", &object)?;
            ensure!(said["found"] == WHY, "the reason is not given: {said}");
            (0..20).try_for_each(|_| answers("v1"))?;

            newer.take_back();
            doctor.finds_no(node, "KARST1010", &object)?;
            until("the new route to be in force", LIMIT, || answers("v2"))
        },
        || {
            lead(&cluster, None)?;
            cluster
                .kubectl(&[
                    "delete",
                    "namespace",
                    PLACE,
                    "--ignore-not-found",
                    "--wait=false",
                ])
                .map(drop)
        },
    )
}

/// What is said while the authority cannot be reached: at once, when a certificate was to be renewed, and when it has
/// ended.
struct Outage {
    away: Value,
    failing: Value,
    /// All that differs at that moment.
    meanwhile: Vec<Value>,
    expired: Value,
}

/// One outage for the two tests that ask about it. Certificates of the mesh last a day, so that a pod is given one by
/// an authority below the mesh's root that has a minute left.
static OUTAGE: LazyLock<Result<Outage, String>> = LazyLock::new(|| {
    let cluster = alone();
    outage(&cluster).map_err(|error| format!("{error:#}"))
});

/// Ends all controllers.
fn no_controller(cluster: &Cluster) -> Result<()> {
    let none = [
        "scale",
        "deployment/karst-controller",
        "--replicas=0",
        "-n",
        SYSTEM,
    ];
    cluster.kubectl(&none)?;
    let pods = ["pods", "-n", SYSTEM, "-l", CONTROLLERS];
    until("the controllers to be gone", LIMIT, || {
        let left = cluster.get(&pods)?;
        ensure!(left["items"] == json!([]), "some are left");
        Ok(())
    })
}

fn outage(cluster: &Cluster) -> Result<Outage> {
    open(cluster);
    let doctor = from_afar(cluster);
    let id = format!("spiffe://cluster.local/ns/{BRIEF}/sa/brief");
    let certificate = format!("certificate {id}");
    doctor.finds_no("node1", "KARST1003", "agent of node1")?;
    doctor.finds_no("node1", "KARST1014", "certificate authority")?;
    doctor.finds_no("node1", "KARST1013", &certificate)?;
    staged(
        || {
            no_controller(cluster)?;
            let authority = authority(cluster, ENDS)?;
            let secret = json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "cacerts", "namespace": SYSTEM},
                "stringData": {
                    "ca-cert.pem": authority.certificate,
                    "ca-key.pem": authority.key,
                    "root-cert.pem": authority.root,
                },
            });
            cluster.apply(&secret.to_string())?;
            cluster.apply(&format!(
                "apiVersion: v1
kind: Namespace
metadata: {{name: {BRIEF}, labels: {{karst.dev/dataplane-mode: ambient}}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: brief, namespace: {BRIEF}}}
---
{}",
                single(BRIEF, "brief")
            ))?;
            scale(cluster, 1);
            until("the certificate", LIMIT, || {
                let cert = ["inspect", "cert", "-j", "--node", "node1"];
                let list: Value = serde_json::from_slice(&karst_output(cluster, &cert)?.stdout)?;
                let all = list.as_array().into_iter().flatten();
                let mut own = all.filter(|one| one["id"] == id.as_str());
                ensure!(own.any(|one| one["state"] == "available"), "{list}");
                Ok(())
            })?;
            no_controller(cluster)
        },
        || {
            let away = doctor.finds("node1", "KARST1003", "agent of node1")?;
            // At half of its lifetime the agent asks for a new one; the old one is still good.
            let failing = until("the renewal to fail", ENDS_WITHIN, || {
                doctor.finds("node1", "KARST1014", "certificate authority")
            })?;
            let meanwhile = doctor.differences("node1")?;
            let expired = until("the certificate to expire", ENDS_WITHIN, || {
                doctor.finds("node1", "KARST1013", &certificate)
            })?;
            Ok(Outage {
                away,
                failing,
                meanwhile,
                expired,
            })
        },
        || {
            delete(cluster, "secret/cacerts", SYSTEM)?;
            cluster.kubectl(&["delete", "namespace", BRIEF])?;
            scale(cluster, 2);
            doctor.finds_no("node1", "KARST1003", "agent of node1")?;
            doctor.finds_no("node1", "KARST1014", "certificate authority")?;
            doctor.finds_no("node1", "KARST1013", &certificate)
        },
    )
}

#[test]
fn an_unreachable_certificate_authority() -> Result<()> {
    let outage = OUTAGE.as_ref().map_err(|error| anyhow!("{error}"))?;
    let (away, failing) = (&outage.away, &outage.failing);
    let why = away["found"].as_str().unwrap_or_default();
    ensure!(why.starts_with("none: controller_"), "no reason: {away}");
    let why = failing["found"].as_str().unwrap_or_default();
    ensure!(
        failing["object"].to_string().contains(":15012") && why.starts_with("ca_unreachable: "),
        "the agent's error is not given: {failing}"
    );
    let all = &outage.meanwhile;
    ensure!(
        all.iter().all(|one| one["code"] != "KARST1013"),
        "a certificate has expired already: {all:?}"
    );
    Ok(())
}

#[test]
fn an_expired_certificate() -> Result<()> {
    let outage = OUTAGE.as_ref().map_err(|error| anyhow!("{error}"))?;
    let found = outage.expired["found"].as_str().unwrap_or_default();
    ensure!(found.starts_with("it expired at 20"), "{}", outage.expired);
    Ok(())
}
