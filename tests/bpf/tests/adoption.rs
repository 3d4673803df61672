//! Agents come and go; what is attached stays, once, and is handed from one to the next.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::{
    Agent, Cgroup, Host, PATIENCE, World, accept, connect, counter, echo_once, eventually,
    leftovers,
};
use karst_datapath::inspect::{self, AttachedProgram, LinkInfo};
use karst_datapath::{Datapath, DatapathError};

fn attached(world: &World) -> Result<Vec<AttachedProgram>> {
    Ok(inspect::attached(&world.config().node_cgroup)?)
}

fn links(world: &World) -> Result<Vec<LinkInfo>> {
    let config = world.config();
    Ok(inspect::links(&config.bpffs_root, &config.node_name)?)
}

fn link_ids(world: &World) -> Result<BTreeSet<(String, u32)>> {
    let links = links(world)?.into_iter();
    Ok(links.map(|link| (link.name, link.id)).collect())
}

/// One program at each of the five hooks, the very ones the pinned links run.
fn attached_once(world: &World) -> Result<()> {
    let programs = attached(world)?;
    let hooks: BTreeSet<_> = programs
        .iter()
        .map(|program| &program.attach_type)
        .collect();
    ensure!(programs.len() == 5 && hooks.len() == 5, "{programs:?}");
    let run: BTreeSet<u32> = links(world)?.iter().map(|link| link.program_id).collect();
    let unpinned = programs
        .iter()
        .find(|program| !run.contains(&program.program_id));
    ensure!(unpinned.is_none(), "{unpinned:?} is not ours");
    Ok(())
}

/// A connection of pod A reaches `agent` with its destination.
fn captures(world: &World, datapath: &Datapath, agent: &Agent) -> Result<()> {
    let to: SocketAddr = "203.0.113.9:80".parse()?;
    let stream = connect(&world.app(Host::A)?, to)?;
    let (accepted, _) = accept(&agent.outbound_v4, PATIENCE)?.context("nothing captured")?;
    ensure!(datapath.original_destination(accepted.as_fd())? == Some(to));
    ensure!(stream.peer_addr()? == to);
    echo_once(&stream, &accepted)
}

/// A stranger's connection to pod A reaches `agent`.
fn steers(world: &World, agent: &Agent) -> Result<()> {
    let stream = connect(
        &world.app(Host::Stranger)?,
        SocketAddr::new(Host::A.v4(), 80),
    )?;
    let (accepted, _) = accept(&agent.inbound_v4, PATIENCE)?.context("nothing steered")?;
    echo_once(&stream, &accepted)
}

#[test]
fn opening_twice_attaches_once() -> Result<()> {
    let world = World::new()?;
    let first = world.open()?;
    let _agent = Agent::enrol(&world, &first, Host::A)?;
    attached_once(&world)?;
    let ids = link_ids(&world)?;
    let before = attached(&world)?;
    let second = world.open()?;
    attached_once(&world)?;
    ensure!(link_ids(&world)? == ids, "the links are the same");
    ensure!(attached(&world)? != before, "they run the new programs");
    drop((first, second));
    attached_once(&world)
}

#[test]
fn a_new_agent_takes_over() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    captures(&world, &datapath, &agent)?;
    let to: SocketAddr = "203.0.113.7:7".parse()?;
    let old = connect(&world.app(Host::A)?, to)?;
    let (old_accepted, _) = accept(&agent.outbound_v4, PATIENCE)?.context("no connection")?;
    let enrolled = datapath.enrolled()?;
    ensure!(enrolled.len() == 1 && enrolled[0].uid == Host::A.uid());
    ensure!(enrolled[0].addresses == [Host::A.v4(), Host::A.v6()]);
    drop((datapath, agent));

    let datapath = world.open()?;
    ensure!(
        datapath.enrolled()? == enrolled,
        "it finds what is enrolled"
    );
    ensure!(old.peer_addr()? == to, "open connections keep their peer");
    ensure!(datapath.original_destination(old_accepted.as_fd())? == Some(to));
    echo_once(&old, &old_accepted)?;
    ensure!(
        counter(&datapath, "outbound_captured")? == 2,
        "counters go on"
    );
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    captures(&world, &datapath, &agent)?;
    steers(&world, &agent)?;
    attached_once(&world)
}

#[test]
fn another_layout_takes_over_the_pods() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let enrolled = datapath.enrolled()?;
    let ids = link_ids(&world)?;
    drop((datapath, agent));
    let config = world.config().clone();
    let next = karst_datapath::LAYOUT_VERSION + 1;
    let open = || Datapath::open_as_layout(&config, next);
    let datapath = world.run(Host::Node, Cgroup::Agent, open)??;
    ensure!(
        datapath.enrolled()? == enrolled,
        "the pods are still enrolled"
    );
    ensure!(link_ids(&world)? == ids, "the links are the same");
    let folders: BTreeSet<String> = std::fs::read_dir(world.node_pins())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let expected = BTreeSet::from(["links".to_owned(), format!("maps-v{next}")]);
    ensure!(folders == expected, "{folders:?}");
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    captures(&world, &datapath, &agent)?;
    steers(&world, &agent)?;
    attached_once(&world)
}

/// Cgroups of the agent that serves and of the one before it, neither of which is captured.
fn agents(world: &World) -> Result<[u64; 2]> {
    let config = world.config();
    let settings = inspect::dump_map(&config.bpffs_root, &config.node_name, "CONFIG")?;
    let settings = &settings.first().context("no settings")?.value.0;
    let field = |name: &str| -> Result<u64> {
        let found = settings.iter().find(|(field, _)| *field == name);
        Ok(found.context("no such field")?.1.parse()?)
    };
    Ok([field("agent_cgroup")?, field("former_agent_cgroup")?])
}

/// The datapath as an agent in the cgroup `folder` opens it, and the id of that cgroup.
fn open_in(world: &World, folder: &str, layout: u32) -> Result<(Datapath, u64)> {
    let mut config = world.config().clone();
    config.agent_cgroup = config.node_cgroup.join(folder);
    let id = std::fs::metadata(&config.agent_cgroup)?.ino();
    let open = move || Datapath::open_as_layout(&config, layout);
    Ok((world.run(Host::Node, Cgroup::Agent, open)??, id))
}

#[test]
fn an_agent_whose_successors_fail_stays_named() -> Result<()> {
    let world = World::new()?;
    let layout = karst_datapath::LAYOUT_VERSION;
    let (serving, own) = open_in(&world, "karst-agent", layout)?;
    for folder in ["host", "kubepods/pod-a"] {
        let (failed, other) = open_in(&world, folder, layout)?;
        ensure!(agents(&world)? == [other, own]);
        drop(failed);
        serving.claim()?;
        ensure!(agents(&world)? == [own, other]);
    }
    Ok(())
}

#[test]
fn an_agent_of_another_layout_stays_named() -> Result<()> {
    let world = World::new()?;
    let layout = karst_datapath::LAYOUT_VERSION;
    let (former, its) = open_in(&world, "karst-agent", layout + 1)?;
    let (_now, own) = open_in(&world, "host", layout)?;
    drop(former);
    ensure!(agents(&world)? == [own, its]);
    Ok(())
}

#[test]
fn a_pod_whose_namespace_is_gone_is_let_go() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent_a = Agent::enrol(&world, &datapath, Host::A)?;
    let agent_b = Agent::enrol(&world, &datapath, Host::B)?;
    drop((datapath, agent_a, agent_b));
    world.delete_netns(Host::A)?;
    let pin = format!("sk_lookup-{}", Host::A.uid());
    eventually("the kernel tears the namespace down", || {
        let links = links(&world)?;
        Ok(links
            .iter()
            .any(|link| link.name == pin && link.netns_ino == Some(0)))
    })?;
    let datapath = world.open()?;
    let uids: Vec<_> = datapath
        .enrolled()?
        .into_iter()
        .map(|pod| pod.uid)
        .collect();
    ensure!(uids == [Host::B.uid()], "{uids:?}");
    ensure!(links(&world)?.iter().all(|link| link.name != pin));
    Ok(())
}

#[test]
fn the_nodes_cgroup_made_anew_is_attached_to_anew() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    // Sockets made in the old cgroup keep its links alive.
    drop((datapath, agent));
    world.remake_cgroups()?;
    let gone = |link: &LinkInfo| link.cgroup_id == Some(0);
    eventually("the kernel lets go of the cgroup", || {
        Ok(links(&world)?.iter().filter(|link| gone(link)).count() == 5)
    })?;
    let datapath = world.open()?;
    attached_once(&world)?;
    let agent = Agent::enrol(&world, &datapath, Host::B)?;
    let stream = connect(&world.app(Host::B)?, "203.0.113.9:80".parse()?)?;
    let (accepted, _) = accept(&agent.outbound_v4, PATIENCE)?.context("nothing captured")?;
    echo_once(&stream, &accepted)
}

#[test]
fn a_link_of_another_version_is_removed() -> Result<()> {
    let world = World::new()?;
    drop(world.open()?);
    let links = world.node_pins().join("links");
    std::fs::rename(links.join("connect4"), links.join("connect4-of-old"))?;
    let _datapath = world.open()?;
    attached_once(&world)
}

#[test]
fn a_map_of_another_shape_is_refused_and_nothing_detached() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let maps = world
        .node_pins()
        .join(format!("maps-v{}", karst_datapath::LAYOUT_VERSION));
    std::fs::remove_file(maps.join("AUTH"))?;
    std::fs::rename(maps.join("CONFIG"), maps.join("AUTH"))?;
    let config = world.config().clone();
    let outcome = world.run(Host::Node, Cgroup::Agent, || Datapath::open(&config))?;
    let error = outcome.err().context("it was taken")?;
    ensure!(matches!(error, DatapathError::MapShape { .. }), "{error}");
    ensure!(error.reason() == "bpf_map_shape");
    attached_once(&world)?;
    captures(&world, &datapath, &agent)
}

#[test]
fn removing_all_leaves_nothing() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let _agent = Agent::enrol(&world, &datapath, Host::A)?;
    Datapath::remove_all(world.config())?;
    // The kernel frees a link a moment after its last pin.
    eventually("nothing is attached", || Ok(attached(&world)?.is_empty()))?;
    ensure!(inspect::nodes(&world.config().bpffs_root)?.is_empty());
    let server = world
        .app(Host::Stranger)?
        .run(|| TcpListener::bind("0.0.0.0:80"))??;
    let _direct = connect(
        &world.app(Host::A)?,
        SocketAddr::new(Host::Stranger.v4(), 80),
    )?;
    accept(&server, PATIENCE)?.context("still captured")?;
    let config = world.config().clone();
    drop(world);
    ensure!(leftovers(&config).is_empty(), "{:?}", leftovers(&config));
    Ok(())
}
