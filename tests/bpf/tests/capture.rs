//! Outbound connections of an enrolled pod reach the agent, which learns where they were going;
//! nothing else is touched.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::{Agent, Host, PATIENCE, World, accept, connect, counter, echo_once, entries};

/// Dials `destination` from pod A and checks both ends' view of it.
fn captured(destination: &str) -> Result<()> {
    let destination: SocketAddr = destination.parse()?;
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let stream = connect(&world.app(Host::A)?, destination)?;
    let mapped = matches!(destination, SocketAddr::V6(to) if to.ip().to_ipv4_mapped().is_some());
    let listener = if destination.is_ipv4() || mapped {
        &agent.outbound_v4
    } else {
        &agent.outbound_v6
    };
    let (accepted, _) = accept(listener, PATIENCE)?.context("the agent saw nothing")?;
    let canonical = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    let original = datapath.original_destination(accepted.as_fd())?;
    ensure!(original == Some(canonical), "{original:?}");
    ensure!(stream.peer_addr()? == destination);
    echo_once(&stream, &accepted)?;
    echo_once(&accepted, &stream)?;
    ensure!(counter(&datapath, "outbound_captured")? == 1);
    ensure!(counter(&datapath, "original_claimed")? == 1);
    ensure!(entries(&datapath, "PUBLISHED")? == 0);
    Ok(())
}

#[test]
fn ipv4() -> Result<()> {
    captured("203.0.113.9:8080")
}

#[test]
fn ipv6() -> Result<()> {
    captured("[2001:db8::9]:8080")
}

#[test]
fn ipv4_mapped_into_ipv6() -> Result<()> {
    captured("[::ffff:203.0.113.9]:8080")
}

#[test]
fn another_pod_on_this_node() -> Result<()> {
    captured("10.77.0.3:80")
}

#[test]
fn every_cpu_program_loads() -> Result<()> {
    let _ = TcpListener::bind("127.0.0.1:0")?;
    Ok(())
}
