//! `cargo xtask demo`: two nodes, real programs, one label.
//!
//! Everything that is shown is read from the running system: the agents' access logs, a capture of
//! the wire between the nodes, the packet filter's rules, and what nginx, redis, curl and redis-cli
//! themselves say. The demo fails when anything it shows is not as it should be. [`play`] is the
//! story; [`scene`] has the pods, [`wire`] the capture, [`flows`] the logs, [`report`] the result.

mod flows;
mod netfilter;
mod report;
mod scene;
mod wire;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use karst_harness::{Lab, LabOptions, Lifetime, until};

use self::{
    report::Report,
    scene::{CLIENT, PLAIN_CLIENT, SHOP, SHOP_PODS, Scene, secret},
    wire::Capture,
};
use crate::{
    setup::{self, Need},
    workspace::{Workspace, require_root, say},
};

/// The demo's lab; a second demo on the same machine replaces the first.
const LAB: &str = "demo";
const LABEL: &str = "karst.dev/dataplane-mode=ambient";

/// How long anything that should happen soon may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Arguments of `demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the result as one JSON object, as the last line.
    #[arg(long)]
    json: bool,
    /// Leave the lab up; `cargo xtask lab --name demo down` removes it.
    #[arg(long)]
    keep: bool,
    /// Use the binaries as they are, without building first.
    #[arg(long)]
    no_build: bool,
}

/// Builds everything and runs the demo; fails when anything is not as it should be.
pub fn run(args: &Args) -> Result<()> {
    require_root(
        "cargo xtask demo",
        "makes network namespaces and loads eBPF programs",
    )?;
    let workspace = Workspace::locate()?;
    setup::ensure(&workspace, &[Need::Demo])?;
    if !args.no_build {
        workspace.build_all()?;
    }

    let mut report = Report::default();
    let told = perform(&workspace.target().join("demo"), args, &mut report);
    println!("{}", report.tables());
    if args.json {
        println!(
            "{}",
            serde_json::to_string(&report).context("writing the result")?
        );
    }
    told?;
    let failed: Vec<_> = report
        .failed()
        .map(|check| format!("{}: {} ({})", check.act, check.what, check.found))
        .collect();
    ensure!(
        failed.is_empty(),
        "not as it should be: {}",
        failed.join("; ")
    );
    Ok(())
}

/// Raises the lab, plays, and removes the lab whether or not the play went well.
fn perform(folder: &Path, args: &Args, report: &mut Report) -> Result<()> {
    let manifests = scene::write_files(folder)?;
    let started = Instant::now();
    Lab::tear_down(LAB)?;
    say("two nodes, the control plane, and pods with nginx, redis-server, curl and redis-cli");
    let mut options = LabOptions::new(LAB);
    options.agent_args = ["--access-log", "json"].map(str::to_owned).to_vec();
    if args.keep {
        options.lifetime = Lifetime::UntilDown;
    }
    let lab = Lab::up(options)?;
    let played = lab.apply(&manifests).and_then(|()| {
        time(report, "lab_up", started);
        play(&lab, folder, report)
    });
    if args.keep {
        say(&format!(
            "the lab stays up: `cargo xtask lab --name {LAB} status` shows it, and `down` removes it"
        ));
        return played;
    }
    report.begin("removing everything");
    let remains = remains_of(&lab);
    let downed = lab.down();
    played.and(downed)?;
    report.left_behind = remains
        .into_iter()
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    report.expect(
        "traces of the lab that are left",
        &report.left_behind.len().clone(),
        &0,
    );
    time(report, "all", started);
    Ok(())
}

/// The story. Errors are for what keeps it from going on; the rest is an expectation that fails.
fn play(lab: &Lab, folder: &Path, report: &mut Report) -> Result<()> {
    let scene = Scene::new(lab)?;
    let rules_before = netfilter::rules(lab)?;

    report.begin("before the label: plain traffic");
    let mut kept = before(&scene, folder, report)?;

    report.begin(&format!("label namespace {SHOP} {LABEL}"));
    let labelled = Instant::now();
    lab.label_namespace(SHOP, LABEL)?;
    for pod in SHOP_PODS {
        lab.wait_enrolled(pod)?;
    }
    time(report, "enrol", labelled);
    count_enrolled(lab, report)?;
    report.established_connection_survives = kept.ask("PING")? == "PONG";
    report.expect(
        "a connection from before the label lives on",
        &report.established_connection_survives.clone(),
        &true,
    );
    drop(kept);

    report.begin("after the label: the same requests");
    after(&scene, folder, report)?;
    report.netfilter_rules_added = netfilter::rules(lab)?.saturating_sub(rules_before);
    report.expect(
        "packet filter rules added",
        &report.netfilter_rules_added.clone(),
        &0,
    );

    report.begin("karst inspect, on the client's node");
    inspect(lab, report)?;

    report.begin("kill -9 the agent of the client's node");
    agent_down(&scene, folder, report)
}

/// Plain traffic, seen on the wire: the capture works. Returns a connection that stays open.
fn before(scene: &Scene<'_>, folder: &Path, report: &mut Report) -> Result<scene::Conversation> {
    let (http, redis, last) = (secret()?, secret()?, secret()?);
    let capture = Capture::start(scene.lab, folder.join("before.pcap"))?;
    let web = scene.http(CLIENT, &scene.web.to_string(), &http)?;
    report.expect("curl to nginx", &web.outcome(), &"ok".to_owned());
    let (stored, _) = scene.redis(CLIENT, &scene.cache.to_string(), &redis)?;
    report.expect("redis-cli to redis", &stored, &true);
    scene.http(PLAIN_CLIENT, &scene.plain_web.to_string(), &last)?;
    let seen = capture.finish(&last, &[&http, &redis])?;
    report.wire.packets_before = seen.packets;
    report.wire.plaintext_bytes_seen_before = seen.secret_bytes;
    report.expect_that(
        "bytes of the secrets on the wire",
        seen.secret_bytes,
        || seen.secret_bytes > 0,
    );

    let mut kept = scene.conversation(CLIENT, &scene.cache.to_string())?;
    report.expect(
        "a connection is opened and kept",
        &kept.ask("PING")?,
        &"PONG".to_owned(),
    );
    Ok(kept)
}

fn count_enrolled(lab: &Lab, report: &mut Report) -> Result<()> {
    let status = lab.status()?;
    let enrolled = |namespace: &str| {
        status
            .pods
            .iter()
            .filter(|pod| pod.enrolled && pod.namespace == namespace)
            .count()
    };
    report.enrolled_pods = enrolled(SHOP);
    report.unenrolled.enrolled_pods = enrolled("plain");
    report.expect(
        "enrolled pods of the labelled namespace",
        &report.enrolled_pods.clone(),
        &SHOP_PODS.len(),
    );
    report.expect(
        "enrolled pods of the other namespace",
        &report.unenrolled.enrolled_pods.clone(),
        &0,
    );
    Ok(())
}

/// The same requests, now through the mesh, and the neighbours without a label.
fn after(scene: &Scene<'_>, folder: &Path, report: &mut Report) -> Result<()> {
    let ok = "ok".to_owned();
    let (http, redis, service, plain) = (secret()?, secret()?, secret()?, secret()?);
    let capture = Capture::start(scene.lab, folder.join("after.pcap"))?;
    let web = scene.http(CLIENT, &scene.web.to_string(), &http)?;
    report.expect("curl to nginx", &web.outcome(), &ok);
    let (stored, redis_saw) = scene.redis(CLIENT, &scene.cache.to_string(), &redis)?;
    report.expect("redis-cli to redis", &stored, &true);
    let by_name = scene.http(CLIENT, "web.shop", &service)?;
    report.expect("curl to the Service web.shop", &by_name.outcome(), &ok);
    // Not enrolled, so in plain text as before; and the last message, which ends the capture.
    let neighbour = scene.http(PLAIN_CLIENT, &scene.plain_web.to_string(), &plain)?;
    let seen = capture.finish(&plain, &[&http, &redis, &service])?;

    report.wire.packets = seen.packets;
    report.wire.plaintext_bytes_seen = seen.secret_bytes;
    report.expect_that("packets on the wire", seen.packets, || seen.packets > 0);
    report.expect("bytes of the secrets on the wire", &seen.secret_bytes, &0);

    let client_preserved =
        web.client_seen == scene.client.to_string() && redis_saw == web.client_seen;
    let peer_preserved = web.peer_seen == scene.web.to_string();
    let what = format!("nginx and redis see {} as their client", scene.client);
    report.expect_that(&what, &web.client_seen, || client_preserved);
    report.expect_that(
        &format!("curl sees {} as its peer", scene.web),
        &web.peer_seen,
        || peer_preserved,
    );
    report.app_sees.client_ip_preserved = client_preserved;
    report.app_sees.destination_preserved = peer_preserved;
    report.app_sees.client_ip = web.client_seen;

    report.unenrolled.connect = neighbour.outcome();
    report.expect(
        "the namespace without the label, to itself",
        &neighbour.outcome(),
        &ok,
    );
    let (seen, own) = (&neighbour.client_seen, scene.plain_client.to_string());
    report.expect("the client that its nginx sees", seen, &own);
    let inwards = scene.http(PLAIN_CLIENT, &scene.web.to_string(), &secret()?)?;
    report.unenrolled.connect_to_enrolled = inwards.outcome();
    report.expect("from it into the mesh", &inwards.outcome(), &ok);
    let outwards = scene.http(CLIENT, &scene.plain_web.to_string(), &secret()?)?;
    report.unenrolled.connect_from_enrolled = outwards.outcome();
    report.expect("from the mesh to it", &outwards.outcome(), &ok);
    collect_flows(scene, report)
}

/// Reads the connections out of the agents' logs, which are written when a connection has ended.
fn collect_flows(scene: &Scene<'_>, report: &mut Report) -> Result<()> {
    let (lab, status) = (scene.lab, scene.lab.status()?);
    let mut logged = Vec::new();
    let waited = until("both agents' records of the connections", LIMIT, || {
        let logs = status
            .nodes
            .iter()
            .map(|node| lab.agent_log(&node.name))
            .collect::<Result<Vec<_>>>()?;
        logged = flows::flows(&logs, &status);
        for server in ["shop/web", "shop/cache"] {
            ensure!(
                logged.iter().any(|flow| flow.dst == server),
                "no record of a connection to {server}"
            );
        }
        Ok(())
    });
    report.expect_that("connections in both agents' logs", logged.len(), || {
        waited.is_ok()
    });
    // The first of each kind is enough to show.
    for flow in logged {
        if !report.flows.iter().any(|shown| shown.dst == flow.dst) {
            report.flows.push(flow);
        }
    }
    let as_should = report.flows.iter().all(|flow| {
        flow.src_identity.ends_with("/ns/shop/sa/client")
            && flow.dst_identity.ends_with(&format!(
                "/ns/shop/sa/{}",
                flow.dst.trim_start_matches("shop/")
            ))
            && flow.tls_version.contains("1_3")
            && flow.node_src != flow.node_dst
    });
    report.expect(
        "identities, TLS 1.3, two nodes",
        &(as_should && !report.flows.is_empty()),
        &true,
    );
    Ok(())
}

/// Shows what the user's command line shows of the client's node.
fn inspect(lab: &Lab, report: &mut Report) -> Result<()> {
    for subject in ["prog", "map", "pod", "cert"] {
        let ask = |more: &[&str]| {
            let output = lab.inspect("node1", &[&[subject, "show"], more].concat())?;
            if !output.status.success() {
                bail!(
                    "karst inspect {subject} show: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        println!("$ karst inspect {subject} show\n{}", ask(&[])?.trim_end());
        let listed: serde_json::Value =
            serde_json::from_str(&ask(&["-j"])?).context("reading karst inspect")?;
        let count = listed.as_array().map_or(0, Vec::len);
        report.inspect.insert(subject.to_owned(), count);
        report.expect_that(&format!("entries of {subject} show"), count, || count > 0);
    }
    Ok(())
}

/// With the client's agent gone, an enrolled pod's connection is refused and leaks nothing; then the
/// agent comes back.
fn agent_down(scene: &Scene<'_>, folder: &Path, report: &mut Report) -> Result<()> {
    let (lab, ok) = (scene.lab, "ok".to_owned());
    let (hidden, plain) = (secret()?, secret()?);
    let capture = Capture::start(lab, folder.join("down.pcap"))?;
    lab.kill_agent("node1")?;
    let enrolled = scene.http(CLIENT, &scene.web.to_string(), &hidden)?;
    report.agent_down.enrolled_connect = enrolled.outcome();
    report.expect(
        "a connection of an enrolled pod",
        &enrolled.outcome(),
        &"refused".to_owned(),
    );
    let unenrolled = scene.http(PLAIN_CLIENT, &scene.plain_web.to_string(), &plain)?;
    report.agent_down.unenrolled_connect = unenrolled.outcome();
    report.expect(
        "a connection of a pod without the label",
        &unenrolled.outcome(),
        &ok,
    );
    let seen = capture.finish(&plain, &[&hidden])?;
    report.agent_down.plaintext_bytes_seen = seen.secret_bytes;
    report.expect(
        "bytes of the enrolled pod's secret on the wire",
        &seen.secret_bytes,
        &0,
    );

    report.begin("the agent comes back");
    let restarted = Instant::now();
    lab.start_agent("node1")?;
    let back = until("a connection of the enrolled pod", LIMIT, || {
        let web = scene.http(CLIENT, &scene.web.to_string(), &secret()?)?;
        ensure!(web.outcome() == ok, "{}", web.outcome());
        Ok(())
    });
    time(report, "agent_back", restarted);
    report.expect_that(
        "a connection of the enrolled pod",
        if back.is_ok() { "ok" } else { "not ok" },
        || back.is_ok(),
    );
    Ok(())
}

/// Where the lab leaves traces while it is up.
fn remains_of(lab: &Lab) -> Vec<PathBuf> {
    let mut traces = vec![lab.bpffs_root(), lab.manifests_dir()];
    if let Ok(status) = lab.status() {
        let nodes = status.nodes.into_iter().map(|node| node.netns);
        let pods = status.pods.into_iter().map(|pod| pod.netns);
        traces.extend(
            nodes
                .chain(pods)
                .map(|netns| Path::new("/run/netns").join(netns)),
        );
    }
    traces
}

fn time(report: &mut Report, what: &str, since: Instant) {
    report
        .timings_ms
        .insert(what.to_owned(), since.elapsed().as_millis());
}
