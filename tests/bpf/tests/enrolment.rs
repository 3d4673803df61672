//! Enrolling and letting go, one step at a time, any number of times.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::{
    Agent, Cgroup, Host, PATIENCE, World, accept, connect, counter, echo_once, entries, eventually,
};
use karst_datapath::{Datapath, DatapathError, PodAttachment, inspect};

#[test]
fn established_connections_survive_letting_go() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let server = world
        .app(Host::Stranger)?
        .run(|| TcpListener::bind("0.0.0.0:80"))??;
    let to = SocketAddr::new(Host::Stranger.v4(), 80);
    let place = world.app(Host::A)?;
    let captured = connect(&place, to)?;
    let (accepted, _) = accept(&agent.outbound_v4, PATIENCE)?.context("nothing captured")?;
    let steered = connect(
        &world.app(Host::Stranger)?,
        SocketAddr::new(Host::A.v4(), 80),
    )?;
    let (inbound, _) = accept(&agent.inbound_v4, PATIENCE)?.context("nothing steered")?;

    datapath.unenrol(Host::A.uid())?;
    ensure!(datapath.enrolled()?.is_empty());
    for map in ["PODS", "POD_ADDRESSES", "LISTENERS", "PUBLISHED", "AUTH"] {
        ensure!(entries(&datapath, map)? == 0, "{map}");
    }
    let direct = connect(&place, to)?;
    let (at_server, _) = accept(&server, PATIENCE)?.context("new ones are the pod's own")?;
    echo_once(&direct, &at_server)?;
    echo_once(&captured, &accepted)?;
    echo_once(&steered, &inbound)?;
    ensure!(captured.peer_addr()? == to);

    agent.attach(&world, &datapath, Host::A, Host::A.uid())?;
    let again = connect(&place, to)?;
    let (accepted, _) = accept(&agent.outbound_v4, PATIENCE)?.context("captured again")?;
    echo_once(&again, &accepted)?;
    echo_once(&direct, &at_server)
}

#[test]
fn both_ways_are_idempotent() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    datapath.unenrol("never-seen")?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let before = state(&world)?;
    agent.attach(&world, &datapath, Host::A, Host::A.uid())?;
    ensure!(state(&world)? == before);
    datapath.unenrol(Host::A.uid())?;
    datapath.unenrol(Host::A.uid())?;
    ensure!(datapath.enrolled()?.is_empty());
    Ok(())
}

fn state(world: &World) -> Result<(Vec<inspect::LinkInfo>, Vec<inspect::PodEntry>)> {
    let (root, node) = (&world.config().bpffs_root, &world.config().node_name);
    Ok((inspect::links(root, node)?, inspect::pods(root, node)?))
}

#[test]
fn new_listeners_take_over_from_closed_ones() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    drop(agent);
    let (_, pods) = state(&world)?;
    ensure!(pods[0].listening.is_empty(), "{pods:?}");
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let (_, pods) = state(&world)?;
    ensure!(
        pods[0].listening == [Host::A.v4(), Host::A.v6()],
        "{pods:?}"
    );
    let stream = connect(
        &world.app(Host::Stranger)?,
        SocketAddr::new(Host::A.v4(), 80),
    )?;
    let (accepted, _) = accept(&agent.inbound_v4, PATIENCE)?.context("nothing steered")?;
    echo_once(&stream, &accepted)
}

#[test]
fn a_node_full_of_pods_refuses_one_more() -> Result<()> {
    let mut world = World::new()?;
    world.set_max_pods(1);
    let datapath = world.open()?;
    let _a = Agent::enrol(&world, &datapath, Host::A)?;
    let b = Agent::listen(&world, Host::B)?;
    let outcome = b.attach(&world, &datapath, Host::B, Host::B.uid());
    let error = outcome.err().context("it was enrolled")?;
    let error = error.downcast::<DatapathError>()?;
    ensure!(
        matches!(&error, DatapathError::PodsFull { max_pods: 1, .. }),
        "{error}"
    );
    ensure!(error.reason() == "bpf_pods_full");
    let (links, pods) = state(&world)?;
    ensure!(pods.len() == 1 && pods[0].uid == Host::A.uid());
    ensure!(links.iter().all(|link| !link.name.contains(Host::B.uid())));
    let server = world
        .app(Host::Stranger)?
        .run(|| TcpListener::bind("0.0.0.0:80"))??;
    let _direct = connect(
        &world.app(Host::B)?,
        SocketAddr::new(Host::Stranger.v4(), 80),
    )?;
    accept(&server, PATIENCE)?.context("the refused pod is untouched")?;
    Ok(())
}

#[test]
fn what_cannot_be_described_is_refused() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::listen(&world, Host::A)?;
    let netns = world.netns(Host::A)?;
    let (v4, v6) = (Host::A.v4(), Host::A.v6());
    let listener = [(Host::B.v4(), agent.inbound_v4.as_fd())];
    let long = "x".repeat(65);
    let refused = |uid: &str, addresses: &[_], plaintext_listeners: &[_]| {
        let pod = PodAttachment {
            uid,
            netns: &netns,
            addresses,
            plaintext_listeners,
        };
        let error = datapath.enrol(&pod).err().context("it was enrolled")?;
        ensure!(error.reason() == "bpf_pod_invalid", "{error}");
        Ok(())
    };
    refused("", &[v4], &[])?;
    refused("../escape", &[v4], &[])?;
    refused(&long, &[v4], &[])?;
    refused("uid", &[], &[])?;
    refused("uid", &[v4, Host::B.v4()], &[])?;
    refused("uid", &[v4, v6, Host::B.v6()], &[])?;
    refused("uid", &["127.0.0.1".parse()?], &[])?;
    refused("uid", &["::".parse()?], &[])?;
    refused("uid", &[v4], &listener)?;
    ensure!(datapath.enrolled()?.is_empty());
    ensure!(entries(&datapath, "LISTENERS")? == 0);
    Ok(())
}

#[test]
fn a_reused_address_stays_with_its_new_pod() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let _old = Agent::enrol(&world, &datapath, Host::A)?;
    let new = Agent::listen(&world, Host::B)?;
    datapath.enrol(&PodAttachment {
        uid: "successor",
        netns: &world.netns(Host::B)?,
        addresses: &[Host::A.v4()],
        plaintext_listeners: &[(Host::A.v4(), new.inbound_v4.as_fd())],
    })?;
    datapath.unenrol(Host::A.uid())?;
    let (_, pods) = state(&world)?;
    ensure!(pods.len() == 1 && pods[0].uid == "successor");
    ensure!(pods[0].listening == [Host::A.v4()], "{pods:?}");
    ensure!(entries(&datapath, "POD_ADDRESSES")? == 1);
    ensure!(entries(&datapath, "LISTENERS")? == 1);
    Ok(())
}

#[test]
fn a_pod_in_a_new_namespace_leaves_the_old_one() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let old = datapath.enrolled()?[0].netns_cookie;
    drop(agent);
    world.delete_netns(Host::A)?;
    world.remake_netns(Host::A)?;
    let _agent = Agent::enrol(&world, &datapath, Host::A)?;
    let pods = datapath.enrolled()?;
    ensure!(pods.len() == 1 && pods[0].netns_cookie != old, "{pods:?}");
    let (links, _) = state(&world)?;
    let pin = format!("sk_lookup-{}", Host::A.uid());
    let link = links
        .iter()
        .find(|link| link.name == pin)
        .context("no link")?;
    let ino = world.netns(Host::A)?.id().ino;
    ensure!(link.netns_ino.map(u64::from) == Some(ino), "{link:?}");
    Ok(())
}

#[test]
fn retaining_lets_go_of_all_others() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let _a = Agent::enrol(&world, &datapath, Host::A)?;
    let _b = Agent::enrol(&world, &datapath, Host::B)?;
    ensure!(datapath.retain(&[Host::B.uid(), "unknown"])? == [Host::A.uid()]);
    let left = datapath.enrolled()?;
    ensure!(left.len() == 1 && left[0].uid == Host::B.uid());
    Ok(())
}

#[test]
fn inspection_works_without_an_agent() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let _stream = connect(&world.app(Host::A)?, "203.0.113.9:80".parse()?)?;
    let (_accepted, _) = accept(&agent.outbound_v4, PATIENCE)?.context("nothing captured")?;
    eventually("the connection is counted", || {
        Ok(counter(&datapath, "original_claimed")? == 1)
    })?;
    let cookie = world.netns(Host::A)?.cookie()?;
    drop((agent, datapath));
    let (root, node) = (
        &world.config().bpffs_root,
        world.config().node_name.as_str(),
    );
    ensure!(inspect::nodes(root)? == [node]);
    let programs = inspect::programs(root, node)?;
    ensure!(programs.len() == 7, "{programs:?}");
    let kinds: Vec<_> = programs
        .iter()
        .filter(|program| program.kind == "cgroup_sock_addr")
        .collect();
    ensure!(
        kinds.len() == 4
            && kinds
                .iter()
                .all(|program| program.name.starts_with("karst_"))
    );
    ensure!(
        programs
            .iter()
            .all(|program| program.jited_bytes > 0 && program.tag.len() == 16)
    );
    ensure!(
        programs
            .iter()
            .all(|program| program.verified_instructions > 0)
    );
    let maps = inspect::maps(root, node)?;
    let ids: Vec<u32> = maps.iter().map(|map| map.id).collect();
    let pins: Vec<u32> = maps
        .iter()
        .filter(|map| map.pinned.is_some())
        .map(|map| map.id)
        .collect();
    let (pinned, others): (Vec<_>, Vec<_>) = maps.iter().partition(|map| map.pinned.is_some());
    ensure!(pinned.len() == 14, "{maps:?}");
    let log = others.iter().find(|map| map.name == "AYA_LOGS");
    let log = log.context("no AYA_LOGS")?;
    ensure!(
        log.kind == "ringbuf" && log.fill_percent.is_some(),
        "{log:?}"
    );
    let connect4 = programs
        .iter()
        .find(|program| program.links == ["connect4"]);
    let connect4 = connect4.context("no connect4")?;
    ensure!(
        connect4
            .map_ids
            .iter()
            .filter(|id| pins.contains(id))
            .count()
            == 10
            && connect4.map_ids.iter().all(|id| ids.contains(id)),
        "{connect4:?}"
    );
    let dumped = inspect::dump_map(root, node, "PODS")?;
    let text = format!("{dumped:?}");
    ensure!(dumped.len() == 1 && text.contains(Host::A.uid()) && text.contains("10.77.0.2"));
    let value = |name: &str| {
        let counters = inspect::counters(root, node)?;
        let found = counters.iter().find(|counter| counter.reason == name);
        anyhow::Ok(found.map(|counter| counter.value))
    };
    ensure!(value("outbound_captured")? == Some(1));
    for map in &maps {
        inspect::dump_map(root, node, &map.name)?;
    }
    // Both ends of the connection have storage; the kernel gives it to an iterator alone.
    let storage = inspect::dump_map(root, node, "SKST")?;
    let original = storage.iter().filter(|entry| {
        let text = format!("{:?}", entry.value);
        text.contains("203.0.113.9:80")
    });
    ensure!(original.count() == 2, "{storage:?}");
    let error = inspect::dump_map(root, node, "NOPE")
        .err()
        .context("dumped nothing")?;
    ensure!(error.reason() == "bpf_map_unknown");
    let pods = inspect::pods(root, node)?;
    ensure!(pods.len() == 1 && pods[0].netns_cookie == cookie);
    ensure!(pods[0].netns_ino.map(u64::from) == Some(world.netns(Host::A)?.id().ino));
    Ok(())
}

#[test]
fn two_nodes_on_one_machine_do_not_meet() -> Result<()> {
    let one = World::new()?;
    let two = World::new()?;
    let datapath_one = one.open()?;
    let datapath_two = two.open()?;
    let agent = Agent::enrol(&one, &datapath_one, Host::A)?;
    let _other = Agent::enrol(&two, &datapath_two, Host::B)?;
    let _stream = connect(&one.app(Host::A)?, "203.0.113.9:80".parse()?)?;
    accept(&agent.outbound_v4, PATIENCE)?.context("nothing captured")?;
    ensure!(counter(&datapath_one, "outbound_captured")? == 1);
    ensure!(counter(&datapath_two, "outbound_captured")? == 0);
    Datapath::remove_all(two.config())?;
    ensure!(inspect::attached(&one.config().node_cgroup)?.len() == 5);
    let _stream = connect(&one.app(Host::A)?, "203.0.113.9:80".parse()?)?;
    accept(&agent.outbound_v4, PATIENCE)?.context("nothing captured")?;
    Ok(())
}

#[test]
fn the_agents_namespace_is_the_nodes() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    // Opened anew from somewhere else, the node's own namespace is no longer the node's.
    let config = world.config().clone();
    let elsewhere = world.run(Host::Stranger, Cgroup::Agent, || Datapath::open(&config))??;
    let to = SocketAddr::new(Host::A.v4(), 80);
    let _stream = connect(&world.app(Host::Node)?, to)?;
    accept(&agent.inbound_v4, PATIENCE)?.context("nothing steered")?;
    ensure!(counter(&elsewhere, "probe_authorised")? == 0);
    Ok(())
}
