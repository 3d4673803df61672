//! Connections between two pods of one node that go past the agent: applications see what they would see
//! without a mesh, and what is not allowed or not known goes to the agent.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::{
    APP_PORT, Host, PATIENCE, Pair, QUIET, accept, connect, counter, echo_once, eventually, refused,
};

const VIP4: &str = "10.96.0.10:80";
const VIP6: &str = "[fd96::10]:80";

/// A connection of pod A to `to` reaches the application, and nobody else.
fn reaches(pair: &Pair, to: SocketAddr) -> Result<()> {
    let stream = connect(&pair.world.app(Host::A)?, to)?;
    let accepted = pair.accepted(&stream)?;
    ensure!(stream.peer_addr()? == to, "{:?}", stream.peer_addr());
    let own = stream.local_addr()?.ip().to_canonical();
    ensure!(own == Host::A.v4() || own == Host::A.v6(), "{own}");
    let local = accepted.local_addr()?;
    ensure!(local.port() == APP_PORT);
    echo_once(&stream, &accepted)?;
    echo_once(&accepted, &stream)?;
    Ok(())
}

#[test]
fn pods_are_guarded_where_their_interfaces_are_veths_of_the_node() -> Result<()> {
    let pair = Pair::new()?;
    let enrolled = pair.datapath.enrolled()?;
    ensure!(
        enrolled.len() == 2 && enrolled.iter().all(|pod| pod.guarded),
        "{enrolled:?}"
    );
    Ok(())
}

#[test]
fn a_pod_is_reached_by_its_addresses() -> Result<()> {
    let pair = Pair::allowed()?;
    let mapped = match Host::B.v4() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    };
    for to in [Host::B.v4(), Host::B.v6(), mapped.into()] {
        reaches(&pair, Pair::app_at(to))?;
    }
    ensure!(counter(&pair.datapath, "bypass_chosen")? == 3);
    ensure!(counter(&pair.datapath, "bypass_authorised")? == 3);
    ensure!(counter(&pair.datapath, "bypass_verified")? == 3);
    ensure!(counter(&pair.datapath, "bypass_passed")? == 3);
    for none in [
        "bypass_syn_dropped",
        "bypass_forged",
        "bypass_revoked",
        "outbound_captured",
    ] {
        ensure!(counter(&pair.datapath, none)? == 0, "{none}");
    }
    ensure!(accept(&pair.b.inbound_v4, QUIET)?.is_none());
    pair.forgotten()
}

#[test]
fn a_pod_is_reached_by_a_services_address() -> Result<()> {
    let pair = Pair::allowed()?;
    pair.serve(VIP4.parse()?, 1, &[Pair::app_at(Host::B.v4())], 0)?;
    pair.serve(VIP6.parse()?, 2, &[Pair::app_at(Host::B.v6())], 0)?;
    reaches(&pair, VIP4.parse()?)?;
    reaches(&pair, VIP6.parse()?)?;
    reaches(&pair, "[::ffff:10.96.0.10]:80".parse()?)?;
    ensure!(counter(&pair.datapath, "bypass_verified")? == 3);
    pair.forgotten()
}
