//! Inbound connections of an enrolled pod reach the agent, whatever port they are for; the pod's
//! own do not, and the application sees its real client.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::{
    Agent, Cgroup, Host, PATIENCE, QUIET, World, accept, connect, counter, echo_once, entries,
    refused,
};
use karst_datapath::Datapath;
use socket2::{Domain, Socket, Type};

/// An application's port.
const PORT: u16 = 8080;

/// Dials pod B from `from` and checks that the agent got it and the application did not.
fn steered(from: Host, cgroup: Cgroup, to: SocketAddr) -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::B)?;
    let app = world
        .app(Host::B)?
        .run(|| TcpListener::bind(("::", PORT)))??;
    let stream = connect(&world.place(from, cgroup)?, to)?;
    let listener = if to.is_ipv4() {
        &agent.inbound_v4
    } else {
        &agent.inbound_v6
    };
    let (accepted, peer) = accept(listener, PATIENCE)?.context("the agent saw nothing")?;
    ensure!(accepted.local_addr()? == to, "the agent sees where it went");
    ensure!(peer == stream.local_addr()?, "and from where");
    ensure!(datapath.original_destination(accepted.as_fd())?.is_none());
    echo_once(&stream, &accepted)?;
    ensure!(accept(&app, QUIET)?.is_none(), "the application got it");
    ensure!(counter(&datapath, "inbound_steered")? >= 1);
    Ok(())
}

#[test]
fn a_stranger_on_ipv4_is_steered() -> Result<()> {
    let to = SocketAddr::new(Host::B.v4(), PORT);
    steered(Host::Stranger, Cgroup::Elsewhere, to)
}

#[test]
fn a_stranger_on_ipv6_is_steered() -> Result<()> {
    let to = SocketAddr::new(Host::B.v6(), PORT);
    steered(Host::Stranger, Cgroup::Elsewhere, to)
}

#[test]
fn a_port_nobody_listens_on_is_steered_too() -> Result<()> {
    let to = SocketAddr::new(Host::B.v4(), 9);
    steered(Host::Stranger, Cgroup::Elsewhere, to)
}

#[test]
fn a_pod_that_is_not_enrolled_is_steered() -> Result<()> {
    let to = SocketAddr::new(Host::B.v4(), PORT);
    steered(Host::A, Cgroup::PodA, to)
}

#[test]
fn the_agents_own_captured_port_cannot_be_reached_from_outside() -> Result<()> {
    let to = SocketAddr::new(Host::B.v4(), 15001);
    steered(Host::Stranger, Cgroup::Elsewhere, to)
}

#[test]
fn a_pod_reaches_itself_and_its_loopback() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let _agent = Agent::enrol(&world, &datapath, Host::B)?;
    let place = world.app(Host::B)?;
    let app = place.run(|| TcpListener::bind(("::", PORT)))??;
    let loopbacks = [
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
    ];
    let own = [Host::B.v4(), Host::B.v6()];
    for ip in loopbacks.iter().map(|ip| ip.parse()).chain(own.map(Ok)) {
        let to = SocketAddr::new(ip?, PORT);
        let stream = connect(&place, to)?;
        let (accepted, _) = accept(&app, PATIENCE)?.with_context(|| format!("nothing by {to}"))?;
        echo_once(&stream, &accepted)?;
    }
    ensure!(counter(&datapath, "outbound_captured")? == 0);
    ensure!(counter(&datapath, "inbound_steered")? == 0);
    Ok(())
}

#[test]
fn hbone_reaches_its_own_listener() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::B)?;
    let hbone = SocketAddr::new(Host::B.v4(), 15008);
    let listener = world.run(Host::B, Cgroup::Agent, || TcpListener::bind(hbone))??;
    let stream = connect(&world.app(Host::Stranger)?, hbone)?;
    let (accepted, _) = accept(&listener, PATIENCE)?.context("no connection")?;
    echo_once(&stream, &accepted)?;
    ensure!(accept(&agent.inbound_v4, QUIET)?.is_none());
    Ok(())
}

#[test]
fn without_an_agent_inbound_connections_are_refused() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::B)?;
    let app = world
        .app(Host::B)?
        .run(|| TcpListener::bind(("::", PORT)))??;
    drop(agent);
    drop(datapath);
    for ip in [Host::B.v4(), Host::B.v6()] {
        let to = SocketAddr::new(ip, PORT);
        let error = refused(&world.app(Host::Stranger)?, to, PATIENCE)?;
        ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    }
    ensure!(accept(&app, QUIET)?.is_none(), "leaked to the application");
    let datapath = world.open()?;
    ensure!(counter(&datapath, "inbound_dropped_no_listener")? >= 2);
    Ok(())
}

/// The agent's connection to the application in pod B, made to look like `client`'s.
fn dial_as(
    world: &World,
    datapath: &Datapath,
    client: SocketAddr,
    to: SocketAddr,
) -> Result<TcpStream> {
    world.run(Host::B, Cgroup::Agent, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        datapath.set_source(socket.as_fd(), client)?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        anyhow::Ok(TcpStream::from(socket))
    })?
}

/// Checks what the application listening on `listen` sees of `client`.
fn source_seen(listen: &str, client: &str, to: SocketAddr, seen: &str) -> Result<()> {
    let listen: SocketAddr = listen.parse()?;
    let seen: SocketAddr = seen.parse()?;
    let world = World::new()?;
    let datapath = world.open()?;
    let _agent = Agent::enrol(&world, &datapath, Host::B)?;
    let place = world.app(Host::B)?;
    let app = place.run(|| TcpListener::bind(listen))??;
    let stream = dial_as(&world, &datapath, client.parse()?, to)?;
    let (accepted, from) = accept(&app, PATIENCE)?.context("no connection")?;
    ensure!(from == seen, "accept() says {from}");
    ensure!(
        accepted.peer_addr()? == seen,
        "getpeername() says {}",
        accepted.peer_addr()?
    );
    ensure!(stream.peer_addr()? == to, "the agent sees the application");
    echo_once(&stream, &accepted)?;
    ensure!(counter(&datapath, "source_claimed")? == 1);
    ensure!(entries(&datapath, "PUBLISHED")? == 0);
    Ok(())
}

#[test]
fn an_ipv4_application_sees_its_client() -> Result<()> {
    let client = "198.51.100.77:55555";
    source_seen(
        "0.0.0.0:8080",
        client,
        SocketAddr::new(Host::B.v4(), PORT),
        client,
    )
}

#[test]
fn a_dual_stack_application_sees_its_ipv4_client() -> Result<()> {
    let to = SocketAddr::new(Host::B.v4(), PORT);
    source_seen(
        "[::]:8080",
        "198.51.100.77:55555",
        to,
        "[::ffff:198.51.100.77]:55555",
    )
}

#[test]
fn a_dual_stack_application_sees_its_ipv6_client() -> Result<()> {
    let client = "[2001:db8::77]:55555";
    source_seen(
        "[::]:8080",
        client,
        SocketAddr::new(Host::B.v6(), PORT),
        client,
    )
}

#[test]
fn an_ipv6_client_of_an_ipv4_application_is_not_shown_wrongly() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let _agent = Agent::enrol(&world, &datapath, Host::B)?;
    let place = world.app(Host::B)?;
    let app = place.run(|| TcpListener::bind(("0.0.0.0", PORT)))??;
    let to = SocketAddr::new(Host::B.v4(), PORT);
    let stream = dial_as(&world, &datapath, "[2001:db8::77]:55555".parse()?, to)?;
    let (_, from) = accept(&app, PATIENCE)?.context("no connection")?;
    ensure!(from == stream.local_addr()?, "{from}");
    Ok(())
}
