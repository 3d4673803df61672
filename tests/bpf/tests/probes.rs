//! A probe of the node reaches the application past the agent; nothing that only looks like one
//! does.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::{
    Agent, Cgroup, Host, PATIENCE, QUIET, World, accept, connect, counter, echo_once, entries,
    eventually, refused,
};
use socket2::{Domain, Socket, Type};

const PORT: u16 = 8080;

/// A node with pod B enrolled and its application listening.
fn enrolled() -> Result<(World, karst_datapath::Datapath, Agent, TcpListener)> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::B)?;
    let app = world
        .app(Host::B)?
        .run(|| TcpListener::bind(("::", PORT)))??;
    Ok((world, datapath, agent, app))
}

#[test]
fn a_probe_reaches_the_application() -> Result<()> {
    let (world, datapath, agent, app) = enrolled()?;
    for ip in [Host::B.v4(), Host::B.v6()] {
        let stream = connect(&world.app(Host::Node)?, SocketAddr::new(ip, PORT))?;
        let (accepted, from) = accept(&app, PATIENCE)?.context("the probe got lost")?;
        ensure!(from.ip().to_canonical() == stream.local_addr()?.ip());
        echo_once(&stream, &accepted)?;
    }
    ensure!(counter(&datapath, "probe_authorised")? == 2);
    ensure!(counter(&datapath, "probe_verified")? == 2);
    ensure!(entries(&datapath, "AUTH")? == 0);
    ensure!(accept(&agent.inbound_v4, QUIET)?.is_none());
    Ok(())
}

/// Dials pod B from the node's namespace as a process that is not to be taken for a probe.
fn not_a_probe(cgroup: Cgroup) -> Result<()> {
    let (world, datapath, agent, app) = enrolled()?;
    let place = world.place(Host::Node, cgroup)?;
    let stream = connect(&place, SocketAddr::new(Host::B.v4(), PORT))?;
    let (accepted, _) = accept(&agent.inbound_v4, PATIENCE)?.context("the agent saw nothing")?;
    echo_once(&stream, &accepted)?;
    ensure!(accept(&app, QUIET)?.is_none(), "the application got it");
    ensure!(counter(&datapath, "probe_authorised")? == 0);
    Ok(())
}

#[test]
fn a_pod_on_the_nodes_network_is_steered() -> Result<()> {
    not_a_probe(Cgroup::HostNetworkPod)
}

#[test]
fn the_agent_is_steered() -> Result<()> {
    not_a_probe(Cgroup::Agent)
}

#[test]
fn a_process_outside_the_nodes_cgroup_is_steered() -> Result<()> {
    not_a_probe(Cgroup::Elsewhere)
}

#[test]
fn a_pod_with_the_nodes_address_is_steered() -> Result<()> {
    let (world, datapath, _agent, app) = enrolled()?;
    world.add_address(Host::A, Host::Node.v4())?;
    let source = SocketAddr::new(Host::Node.v4(), 0);
    let to = SocketAddr::new(Host::B.v4(), PORT);
    let outcome = world.app(Host::A)?.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&source.into())?;
        socket.connect_timeout(&to.into(), QUIET)?;
        std::io::Result::Ok(TcpStream::from(socket))
    })?;
    drop(outcome);
    // Whether the answer finds its way back to the forger or not, the application saw nothing.
    eventually("the forged SYN is steered", || {
        Ok(counter(&datapath, "inbound_steered")? > 0)
    })?;
    ensure!(accept(&app, QUIET)?.is_none(), "the application got it");
    ensure!(counter(&datapath, "probe_passed")? == 0);
    Ok(())
}

/// The worst case: a machine that takes the node's address over while a probe's SYN is on its
/// way, and uses the very same ports. Only the sequence number tells it from the probe.
fn forge(
    world: &World,
    datapath: &karst_datapath::Datapath,
    to: SocketAddr,
) -> Result<std::io::Result<TcpStream>> {
    world.cut_off(Host::B)?;
    let probe = world.app(Host::Node)?.run(|| {
        let probe = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        probe.set_nonblocking(true)?;
        let pending = probe
            .connect(&to.into())
            .err()
            .and_then(|error| error.raw_os_error());
        ensure!(
            pending == Some(nix::errno::Errno::EINPROGRESS as i32),
            "{pending:?}"
        );
        Ok(probe)
    })??;
    ensure!(counter(datapath, "probe_authorised")? == 1);
    let taken = probe.local_addr()?;
    world.hand_over_node_address(Host::Stranger, Host::B)?;
    world.app(Host::Stranger)?.run(|| {
        let forger = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        forger.bind(&taken)?;
        forger.connect_timeout(&to.into(), QUIET * 10)?;
        std::io::Result::Ok(TcpStream::from(forger))
    })
}

#[test]
fn a_forged_probe_does_not_reach_the_pod() -> Result<()> {
    let (world, datapath, _agent, app) = enrolled()?;
    let forger = forge(&world, &datapath, SocketAddr::new(Host::B.v4(), PORT))?;
    ensure!(forger.is_err(), "the forger is connected");
    ensure!(counter(&datapath, "bypass_syn_dropped")? > 0);
    ensure!(accept(&app, QUIET)?.is_none(), "the application got it");
    Ok(())
}

#[test]
fn a_forged_probe_is_cut_off_where_nothing_checks_its_syn() -> Result<()> {
    let (world, datapath, _agent, app) = enrolled()?;
    world.detach_guard(Host::B)?;
    let forger = forge(&world, &datapath, SocketAddr::new(Host::B.v4(), PORT))??;
    let (mut accepted, _) = accept(&app, PATIENCE)?.context("the tuple did not let it in")?;
    ensure!(counter(&datapath, "probe_forged")? == 1);
    ensure!(counter(&datapath, "probe_verified")? == 0);
    (&forger).write_all(b"let me in")?;
    accepted.set_read_timeout(Some(QUIET))?;
    let read = accepted.read(&mut [0; 16]);
    ensure!(read.is_err(), "the application heard the forger: {read:?}");
    Ok(())
}

#[test]
fn a_refused_probe_leaves_nothing_behind() -> Result<()> {
    let (world, datapath, _agent, _app) = enrolled()?;
    let to = SocketAddr::new(Host::B.v4(), 9);
    let error = refused(&world.app(Host::Node)?, to, PATIENCE)?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    ensure!(counter(&datapath, "probe_authorised")? == 1);
    ensure!(counter(&datapath, "probe_passed")? == 1);
    ensure!(entries(&datapath, "AUTH")? == 0);
    Ok(())
}

#[test]
fn an_abandoned_probe_leaves_nothing_behind() -> Result<()> {
    let (world, datapath, _agent, _app) = enrolled()?;
    world.cut_off(Host::B)?;
    let to = SocketAddr::new(Host::B.v4(), PORT);
    let error = refused(&world.app(Host::Node)?, to, QUIET)?;
    ensure!(error.kind() == ErrorKind::TimedOut, "{error}");
    ensure!(counter(&datapath, "probe_authorised")? == 1);
    ensure!(entries(&datapath, "AUTH")? == 0);
    Ok(())
}

#[test]
fn a_hundred_probes_leave_nothing_behind() -> Result<()> {
    let (world, datapath, _agent, app) = enrolled()?;
    let to = SocketAddr::new(Host::B.v4(), PORT);
    for _ in 0..100 {
        let stream = connect(&world.app(Host::Node)?, to)?;
        let (accepted, _) = accept(&app, PATIENCE)?.context("a probe got lost")?;
        echo_once(&stream, &accepted)?;
    }
    ensure!(counter(&datapath, "probe_verified")? == 100);
    ensure!(counter(&datapath, "probe_forged")? == 0);
    ensure!(entries(&datapath, "AUTH")? == 0);
    Ok(())
}

#[test]
fn the_node_reaches_pods_that_are_not_enrolled_as_before() -> Result<()> {
    let (world, datapath, _agent, _app) = enrolled()?;
    let app = world
        .app(Host::A)?
        .run(|| TcpListener::bind(("::", PORT)))??;
    let stream = connect(&world.app(Host::Node)?, SocketAddr::new(Host::A.v4(), PORT))?;
    let (accepted, _) = accept(&app, PATIENCE)?.context("no connection")?;
    echo_once(&stream, &accepted)?;
    ensure!(counter(&datapath, "probe_authorised")? == 0);
    Ok(())
}
