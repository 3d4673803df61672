//! Faults that operators meet, each staged for real: before it nothing is said to be wrong, and then the
//! user's command names the true cause.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::{Doctor, EndingAuthority, Lab, LabOptions, Lifetime, Mesh, by_hand, until};
use karst_lab_tests::scenario::port;
use karst_lab_tests::shop::Shop;
use karst_lab_tests::{AMBIENT, World};
use serde_json::{Value, json};

const NODES: [&str; 2] = ["node1", "node2"];
const CLIENT: &str = "mesh/client";

/// How long a certificate of [`short_lived`] may take to be at its half, or at its end.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

/// How long an authority lasts that is not to end during a test.
const LASTS: Duration = Duration::from_secs(3600);

/// A policy of the kind with `spec`, of namespace `mesh`.
fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: mesh}}\nspec: {spec}\n"
    )
}

#[test]
fn no_endpoint() -> Result<()> {
    let world = World::up("noend", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    doctor.allows(CLIENT, "server.mesh:80")?;
    world.lab.delete_pod("mesh/server")?;
    let why = ("no_healthy_upstream", "mesh/server");
    doctor.denies(CLIENT, "server.mesh:80", why)?;
    doctor.healthy(&NODES)
}

#[test]
fn a_deny_policy() -> Result<()> {
    let world = World::up("deny", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    doctor.allows(CLIENT, "server.mesh:7000")?;
    let spec = "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}]}";
    world
        .lab
        .apply(&policy("AuthorizationPolicy", "no-client", spec))?;
    let said = doctor.denies(
        CLIENT,
        "server.mesh:7000",
        ("policy_denied", "mesh/no-client"),
    )?;
    let hops = said["hops"].as_array().context("no hops")?;
    ensure!(
        hops.iter().any(|hop| hop["policy"] == "mesh/no-client"),
        "{said}"
    );
    // Agents have it: nothing differs.
    doctor.healthy(&NODES)
}

#[test]
fn strict_against_plaintext() -> Result<()> {
    let world = World::up("strict", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    doctor.allows("plain/client", "mesh/server:7000")?;
    world.lab.apply(&policy(
        "PeerAuthentication",
        "strict",
        "{mtls: {mode: STRICT}}",
    ))?;
    let said = doctor.denies(
        "plain/client",
        "mesh/server:7000",
        ("policy_denied", "STRICT"),
    )?;
    let hops = said["hops"].as_array().context("no hops")?;
    ensure!(
        hops.iter().any(|hop| hop["mtls"]["by"] == "mesh/strict"),
        "{said}"
    );
    doctor.allows(CLIENT, "mesh/server:7000")?;
    doctor.healthy(&NODES)
}

/// A world whose certificates are all of an authority that ends in so many seconds.
fn short_lived(tag: &str, seconds: u32, folder: &std::path::Path) -> Result<World> {
    let ending = EndingAuthority::new(Duration::from_secs(seconds.into()))?;
    let controller_args = ending.controller_args(folder)?;
    World::up_with(tag, Mesh::On, |options| LabOptions {
        controller_args,
        ..options
    })
}

#[test]
fn an_expired_certificate() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let world = short_lived("expired", 60, folder.path())?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    let client = "certificate spiffe://cluster.local/ns/mesh/sa/client";
    let said = until("the certificate to expire", ENDS_WITHIN, || {
        doctor.finds("node1", "KARST1013", client)
    })?;
    let found = said["found"].as_str().unwrap_or_default();
    ensure!(found.starts_with("it expired at 20"), "{said}");
    let server = "certificate spiffe://cluster.local/ns/mesh/sa/server";
    doctor.finds("node2", "KARST1013", server).map(drop)
}

#[test]
fn an_unreachable_certificate_authority() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let world = short_lived("ca", 100, folder.path())?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    world.lab.stop_controller()?;
    let said = doctor.finds("node1", "KARST1003", "agent of node1")?;
    ensure!(
        said["found"]
            .as_str()
            .is_some_and(|text| text.starts_with("none: controller_")),
        "no reason: {said}"
    );
    // At half of the lifetime agents ask for new certificates; those that there are still good.
    let said = until("the renewal to fail", ENDS_WITHIN, || {
        doctor.finds("node1", "KARST1014", "certificate authority")
    })?;
    ensure!(
        said["object"].to_string().contains(":15012")
            && said["found"]
                .as_str()
                .is_some_and(|text| text.starts_with("ca_unreachable: ")),
        "the agent's error is not given: {said}"
    );
    let all = doctor.differences("node1")?;
    ensure!(
        all.iter().all(|one| one["code"] != "KARST1013"),
        "a certificate has expired already: {all:?}"
    );
    Ok(())
}

#[test]
fn a_dead_agent() -> Result<()> {
    let world = World::up("dead", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    world.lab.kill_agent("node1")?;
    doctor.finds("node1", "KARST1001", "agent of node1")?;
    // What is below it is compared all the same: nobody listens in its pods any more.
    let said = doctor.finds("node1", "KARST1202", "pod mesh/client")?;
    ensure!(said["expected"].to_string().contains(":15001"), "{said}");
    let codes: Vec<_> = doctor.differences("node1")?;
    ensure!(
        codes
            .iter()
            .all(|one| one["code"] != "KARST1102" && one["code"] != "KARST1106"),
        "pods and links are there without it: {codes:?}"
    );
    doctor.healthy(&["node2"])?;
    world.lab.start_agent("node1")?;
    doctor.healthy(&NODES)
}

/// The folder of a node's pinned maps.
fn maps(world: &World, node: &str) -> Result<PathBuf> {
    let node = world.lab.bpffs_root().join(node);
    let mut folders = fs::read_dir(&node)?.filter_map(Result::ok);
    let folder = folders.find(|one| one.file_name().to_string_lossy().starts_with("maps-v"));
    Ok(folder.context("no maps are pinned")?.path())
}

/// Writes an entry into a pinned map as somebody with bpftool would.
fn write_entry(map: &std::path::Path, key: &[u8], value: &[u8]) -> Result<()> {
    let map = map.display().to_string();
    let output = Command::new("bpftool")
        .args(by_hand::write_entry(&map, key, value))
        .output()
        .context("running bpftool")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn stale_map_entries() -> Result<()> {
    let world = World::up("stale", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    let maps = maps(&world, "node1")?;
    // A pod of which nobody knows; the agent looks every half a minute for such.
    let pod = by_hand::pods_value("0badcafe-stale", Some([10, 99, 99, 99]));
    let cookie = 0x7777_7777_u64;
    let said = doctor.finds_kept("node1", ("KARST1103", "0badcafe-stale"), || {
        write_entry(&maps.join("PODS"), &cookie.to_ne_bytes(), &pod)
    })?;
    ensure!(said["found"].to_string().contains("2004318071"), "{said}");
    // And an address of a pod given to it.
    let address = world.v4(CLIENT)?;
    let std::net::IpAddr::V4(v4) = address else {
        anyhow::bail!("{address} is not IPv4")
    };
    let key = v4.to_ipv6_mapped().octets();
    write_entry(&maps.join("POD_ADDRESSES"), &key, &cookie.to_ne_bytes())?;
    let said = doctor.finds("node1", "KARST1105", "pod mesh/client")?;
    ensure!(said["found"] == "2004318071", "{said}");
    doctor.healthy(&["node2"])
}

#[test]
fn a_detached_program() -> Result<()> {
    let world = World::up("detach", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    let links = world.lab.bpffs_root().join("node1/links");
    let output = Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(links.join("connect4"))
        .output()
        .context("running bpftool")?;
    ensure!(output.status.success(), "{output:?}");
    doctor.finds("node1", "KARST1107", "link connect4")?;
    fs::remove_file(links.join("connect6"))?;
    doctor.finds("node1", "KARST1106", "link connect6")?;
    let uid = world.lab.pod_uid(CLIENT)?;
    fs::remove_file(links.join(format!("sk_lookup-{uid}")))?;
    doctor.finds("node1", "KARST1106", "pod mesh/client")?;
    doctor.healthy(&["node2"])?;
    // An agent that comes back puts them in place again.
    world.lab.stop_agent("node1")?;
    world.lab.start_agent("node1")?;
    doctor.healthy(&NODES)
}

#[test]
fn a_missing_waypoint() -> Result<()> {
    let world = World::up("nowp", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    doctor.allows(CLIENT, "server.mesh:80")?;
    world
        .lab
        .label_namespace("mesh", "karst.dev/use-waypoint=ghost")?;
    doctor.finds("node1", "KARST1011", "waypoint mesh/ghost")?;
    doctor.finds("node2", "KARST1011", "waypoint mesh/ghost")?;
    let why = ("waypoint_unknown", "mesh/ghost");
    doctor.denies(CLIENT, "server.mesh:80", why)?;
    world
        .lab
        .label_namespace("mesh", "karst.dev/use-waypoint-")?;
    doctor.healthy(&NODES)
}

#[test]
fn a_wrong_service_port() -> Result<()> {
    let world = World::up("port", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    doctor.allows(CLIENT, "server.mesh:80")?;
    // A port that the Service does not have.
    let why = ("service_port_unknown", "mesh/server");
    doctor.denies(CLIENT, "server.mesh:81", why)?;
    // A port of the pod where nobody listens.
    world.lab.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: wrong, namespace: mesh}}\n\
         spec: {{selector: {{app: near}}, ports: [{{port: 80, targetPort: {}}}]}}\n",
        port::CLOSED
    ))?;
    let said = doctor.finds("node1", "KARST1204", "pod mesh/near")?;
    let expected = said["expected"].as_str().unwrap_or_default();
    ensure!(
        expected.contains("mesh/wrong port 80") && expected.contains("7999"),
        "{said}"
    );
    doctor.healthy(&["node2"])
}

#[test]
fn a_full_map() -> Result<()> {
    let world = World::up_with("full", Mesh::On, |options| LabOptions {
        agent_args: vec!["--max-pods=3".to_owned()],
        ..options
    })?;
    let lab = &world.lab;
    let doctor = Doctor::of_lab(lab);
    doctor.healthy(&NODES)?;
    let more = karst_lab_tests::manifest("plain", "more", "node1", "more", "wait");
    lab.apply(&more)?;
    doctor.healthy(&NODES)?;
    // Two of four pods of the node are in the mesh; of the two others only one finds room.
    lab.label_namespace("plain", AMBIENT)?;
    let said = doctor.finds("node1", "KARST1111", "map PODS")?;
    ensure!(said["found"] == "3 entries", "{said}");
    let said = doctor.finds("node1", "KARST1004", "pod plain/")?;
    ensure!(said["found"].to_string().contains("pods_full"), "{said}");
    let all = doctor.differences("node2")?;
    ensure!(
        all.iter().all(|one| one["code"] != "KARST1111"),
        "the other node has room: {all:?}"
    );
    Ok(())
}

#[test]
fn a_rejected_resource() -> Result<()> {
    let world = World::up("nack", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    // A controller that comes back with another trust domain, of which this mesh's agents take no pods.
    world.lab.stop_controller()?;
    let _same = Lab::up(LabOptions {
        lifetime: Lifetime::UntilDown,
        controller_args: vec!["--trust-domain=other.example".to_owned()],
        ..LabOptions::new(world.lab.name())
    })?;
    let uid = world.lab.pod_uid(CLIENT)?;
    let said = doctor.finds("node1", "KARST1010", &uid)?;
    let found = said["found"].as_str().unwrap_or_default();
    ensure!(
        found.contains("trust_domain") && found.contains("other.example"),
        "the reason is not given: {said}"
    );
    ensure!(
        said["object"].to_string().contains("NodePod"),
        "the type is not named: {said}"
    );
    // One that has the mesh's own again has nothing new to say of the pods, and all is well.
    world.lab.stop_controller()?;
    let _same = Lab::up(LabOptions {
        lifetime: Lifetime::UntilDown,
        ..LabOptions::new(world.lab.name())
    })?;
    doctor.healthy(&NODES)
}

/// A route that leads all requests for `web` to that version of it.
fn route_to(version: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: all, namespace: shop}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]\n  \
         rules: [{{backendRefs: [{{name: web-{version}, port: 80}}]}}]\n"
    )
}

fn of_waypoint(shop: &Shop, words: &[&str]) -> Result<Value> {
    let output = shop.inspect_waypoint(&[words, &["-j"]].concat())?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn a_nacked_route() -> Result<()> {
    const ROUTE: &str = "HTTPRoute/shop/all";
    const WHY: &str = "http_rules[1].matches[0].path.kind is missing, or not known to this version";
    let folder = tempfile::tempdir()?;
    let authority = EndingAuthority::new(LASTS)?;
    let controller_args = authority.controller_args(folder.path())?;
    let world = World::up_with("nackrt", Mesh::On, |options| LabOptions {
        controller_args,
        ..options
    })?;
    // The waypoint's controller is to be of a newer version, as in the middle of an upgrade.
    let newer = world.lab.newer_controller(&authority)?;
    let shop = Shop::open_in(world, &newer.address().to_string())?;
    let doctor = Doctor::of_lab(&shop.world.lab);
    let answers = |version: &str| {
        let answering = shop.version("web:80", &[])?;
        ensure!(answering == version, "{answering} answers");
        Ok(())
    };
    shop.apply(&route_to("v1"), || answers("v1"))?;
    doctor.healthy(&NODES)?;

    newer.renew(ROUTE);
    let object = format!("route {ROUTE} at proxy shop/waypoint of Gateway shop/waypoint");
    let said = doctor.finds("node2", "KARST1010", &object)?;
    ensure!(said["found"] == WHY, "the reason is not given: {said}");
    let types = of_waypoint(&shop, &["xds"])?;
    let types = types.as_array().context("no list")?;
    let nacked = types.iter().filter(|one| !one["last_nack"].is_null());
    let nacked: Vec<_> = nacked.collect();
    ensure!(
        nacked.len() == 1
            && nacked[0]["type"].to_string().contains(".Route")
            && nacked[0]["last_nack"]["over"] == false
            && nacked[0]["last_nack"]["resources"] == json!([{"name": ROUTE, "reason": WHY}]),
        "{types:?}"
    );
    // The last good route is in force, also when the object changes.
    let nacks = nacked[0]["nacks"].as_u64().context("no count")?;
    shop.apply(&route_to("v2"), || {
        let types = of_waypoint(&shop, &["xds"])?;
        let mut types = types.as_array().into_iter().flatten();
        let more = types.any(|one| one["nacks"].as_u64() > Some(nacks));
        ensure!(more, "it has not come yet");
        Ok(())
    })?;
    for _ in 0..20 {
        answers("v1")?;
    }
    let said = doctor.finds("node2", "KARST1010", &object)?;
    ensure!(said["found"] == WHY, "the reason is not given: {said}");
    let elsewhere = doctor.differences("node1")?;
    ensure!(elsewhere.is_empty(), "{elsewhere:?}");

    newer.take_back();
    doctor.healthy(&NODES)?;
    answers("v2")
}

#[test]
fn nothing_is_said_of_a_mesh_that_changes() -> Result<()> {
    let world = World::up("churn", Mesh::On)?;
    let doctor = Doctor::of_lab(&world.lab);
    doctor.healthy(&NODES)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                // As a Deployment does it: each pod has a name of its own.
                let name = format!("fleeting-{rounds}");
                let pod = karst_lab_tests::manifest("mesh", &name, "node1", "fleeting", "serve");
                let service = format!(
                    "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: mesh}}\n\
                     spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}\n"
                );
                world.lab.apply(&service)?;
                world.lab.apply(&pod)?;
                world.lab.label_namespace("plain", AMBIENT)?;
                world.lab.delete_pod(&format!("mesh/{name}"))?;
                world.lab.delete(&service)?;
                let off = "karst.dev/dataplane-mode-";
                world.lab.label_namespace("plain", off)?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let looked = (0..8).try_for_each(|_| {
            for node in NODES {
                let found = doctor.differences(node)?;
                ensure!(found.is_empty(), "on {node}: {found:?}");
            }
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let rounds = changing
            .join()
            .map_err(|_| anyhow::anyhow!("changing panicked"))??;
        looked?;
        ensure!(rounds > 3, "the mesh changed only {rounds} times");
        Ok(())
    })?;
    doctor.healthy(&NODES)
}
