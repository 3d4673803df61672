//! Outbound connections of an enrolled pod reach the agent, which learns where they were going;
//! nothing else is touched.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use karst_bpf_tests::{
    Agent, Cgroup, Host, PATIENCE, QUIET, World, accept, connect, counter, echo_once, entries,
    refused,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

/// Dials `destination` from pod A and checks both ends' view of it.
fn captured(destination: &str) -> Result<()> {
    let destination: SocketAddr = destination.parse()?;
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let stream = connect(&world.app(Host::A)?, destination)?;
    let canonical = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    let listener = if canonical.is_ipv4() {
        &agent.outbound_v4
    } else {
        &agent.outbound_v6
    };
    let (accepted, _) = accept(listener, PATIENCE)?.context("the agent saw nothing")?;
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
fn a_connection_to_the_listener_itself_has_no_destination() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let _stream = connect(&world.app(Host::A)?, "127.0.0.1:15001".parse()?)?;
    let (accepted, _) = accept(&agent.outbound_v4, PATIENCE)?.context("no connection")?;
    ensure!(datapath.original_destination(accepted.as_fd())?.is_none());
    Ok(())
}

#[test]
fn a_pod_that_is_not_enrolled_is_untouched() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let _agent = Agent::enrol(&world, &datapath, Host::B)?;
    let server = world
        .app(Host::Stranger)?
        .run(|| TcpListener::bind("[::]:80"))??;
    for ip in [Host::Stranger.v4(), Host::Stranger.v6()] {
        let stream = connect(&world.app(Host::A)?, SocketAddr::new(ip, 80))?;
        let (accepted, from) = accept(&server, PATIENCE)?.context("no connection")?;
        ensure!(stream.peer_addr()? == SocketAddr::new(ip, 80));
        ensure!(from.ip().to_canonical() == stream.local_addr()?.ip());
        echo_once(&stream, &accepted)?;
    }
    ensure!(counter(&datapath, "outbound_captured")? == 0);
    Ok(())
}

#[test]
fn the_agent_itself_is_untouched() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let _agent = Agent::enrol(&world, &datapath, Host::A)?;
    let server = world
        .app(Host::Stranger)?
        .run(|| TcpListener::bind("0.0.0.0:80"))??;
    let place = world.place(Host::A, Cgroup::Agent)?;
    let stream = connect(&place, SocketAddr::new(Host::Stranger.v4(), 80))?;
    let (accepted, from) = accept(&server, PATIENCE)?.context("no connection")?;
    ensure!(from.ip() == Host::A.v4(), "it keeps the pod's address");
    echo_once(&stream, &accepted)?;
    ensure!(counter(&datapath, "outbound_captured")? == 0);
    Ok(())
}

#[test]
fn udp_is_untouched() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let _agent = Agent::enrol(&world, &datapath, Host::A)?;
    let server = world
        .app(Host::Stranger)?
        .run(|| UdpSocket::bind("0.0.0.0:53"))??;
    let to = SocketAddr::new(Host::Stranger.v4(), 53);
    let client = world.app(Host::A)?.run(|| {
        let client = UdpSocket::bind("0.0.0.0:0")?;
        client.connect(to)?;
        std::io::Result::Ok(client)
    })??;
    ensure!(client.peer_addr()? == to);
    client.send(b"question")?;
    server.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer)?;
    ensure!(buffer[..length] == *b"question" && from.ip() == Host::A.v4());
    server.send_to(b"answer", from)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let length = client.recv(&mut buffer)?;
    ensure!(buffer[..length] == *b"answer");
    Ok(())
}

#[test]
fn a_socket_bound_to_a_device_is_refused() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let to: SocketAddr = "203.0.113.9:80".parse()?;
    let outcome = world.app(Host::A)?.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind_device(Some(b"eth0"))?;
        socket.connect_timeout(&to.into(), PATIENCE)
    })?;
    let error = outcome.err().context("it connected")?;
    ensure!(error.kind() == ErrorKind::PermissionDenied, "{error}");
    ensure!(counter(&datapath, "outbound_refused_bound_device")? == 1);
    ensure!(accept(&agent.outbound_v4, QUIET)?.is_none());
    Ok(())
}

#[test]
fn a_socket_bound_to_the_pods_address_is_captured() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let to: SocketAddr = "203.0.113.9:80".parse()?;
    let own = SocketAddr::new(Host::A.v4(), 0);
    let stream = world.app(Host::A)?.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&own.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        std::io::Result::Ok(TcpStream::from(socket))
    })??;
    let (accepted, from) = accept(&agent.outbound_v4, PATIENCE)?.context("no connection")?;
    ensure!(from == stream.local_addr()?);
    ensure!(datapath.original_destination(accepted.as_fd())? == Some(to));
    Ok(())
}

#[test]
fn a_socket_that_dials_again_forgets_its_first_destination() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    drop(agent);
    let place = world.app(Host::A)?;
    let server = place.run(|| TcpListener::bind("127.0.0.1:0"))??;
    let to = server.local_addr()?;
    let elsewhere: SocketAddr = "203.0.113.9:80".parse()?;
    let stream = place.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let first = socket.connect(&elsewhere.into()).err();
        ensure!(first.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused));
        socket.connect(&to.into())?;
        Ok(TcpStream::from(socket))
    })??;
    ensure!(stream.peer_addr()? == to, "{}", stream.peer_addr()?);
    ensure!(counter(&datapath, "outbound_captured")? == 1);
    Ok(())
}

#[test]
fn without_an_agent_connections_are_refused_at_once() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let server = world
        .app(Host::Stranger)?
        .run(|| TcpListener::bind("[::]:80"))??;
    drop(agent);
    drop(datapath);
    for ip in [Host::Stranger.v4(), Host::Stranger.v6()] {
        let to = SocketAddr::new(ip, 80);
        let error = refused(&world.app(Host::A)?, to, PATIENCE)?;
        ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
        let _untouched = connect(&world.app(Host::B)?, to)?;
        let (_, from) = accept(&server, PATIENCE)?.context("no connection")?;
        ensure!(from.ip().to_canonical() != Host::A.v4(), "leaked");
    }
    ensure!(accept(&server, QUIET)?.is_none(), "leaked");
    Ok(())
}

/// Connections held open at once.
const MANY: u16 = 2_000;
/// Threads that dial.
const DIALLERS: u16 = 8;

#[test]
fn two_thousand_at_once_all_find_their_destination() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let world = World::new()?;
    let datapath = world.open()?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    let place = world.app(Host::A)?;
    let (dialled, seen) = thread::scope(|scope| {
        let accepting = scope.spawn(|| accept_all(&agent.outbound_v4, &datapath));
        let dialling: Vec<_> = (0..DIALLERS)
            .map(|number| {
                scope.spawn({
                    let place = &place;
                    move || dial_share(place, number)
                })
            })
            .collect();
        let mut dialled = HashMap::new();
        for thread in dialling {
            dialled.extend(thread.join().map_err(|_| anyhow!("a dialler panicked"))??);
        }
        let seen = accepting
            .join()
            .map_err(|_| anyhow!("the accepter panicked"))??;
        anyhow::Ok((dialled, seen))
    })?;
    ensure!(
        dialled.len() == usize::from(MANY),
        "{} local ends",
        dialled.len()
    );
    for (local, (stream, destination)) in &dialled {
        let (_, original) = seen
            .get(local)
            .with_context(|| format!("{local} never arrived"))?;
        ensure!(
            original == destination,
            "{local} went to {destination}, not {original}"
        );
        ensure!(stream.peer_addr()? == *destination);
    }
    ensure!(entries(&datapath, "PUBLISHED")? == 0);
    ensure!(counter(&datapath, "original_claimed")? == u64::from(MANY));
    Ok(())
}

type Ends = HashMap<SocketAddr, (TcpStream, SocketAddr)>;

fn dial_share(place: &karst_bpf_tests::Place, number: u16) -> Result<Ends> {
    let share = MANY / DIALLERS;
    place.run(|| {
        let mut ends = HashMap::new();
        for index in number * share..(number + 1) * share {
            let [high, low] = index.to_be_bytes();
            let ip = IpAddr::V4(Ipv4Addr::new(203, 0, high, low));
            let destination = SocketAddr::new(ip, 1 + index);
            let stream = TcpStream::connect_timeout(&destination, PATIENCE)?;
            ends.insert(stream.local_addr()?, (stream, destination));
        }
        Ok(ends)
    })?
}

fn accept_all(listener: &TcpListener, datapath: &karst_datapath::Datapath) -> Result<Ends> {
    let mut ends = HashMap::new();
    for _ in 0..MANY {
        let (accepted, from) = accept(listener, PATIENCE)?.context("too few arrived")?;
        let original = datapath.original_destination(accepted.as_fd())?;
        let original = original.with_context(|| format!("{from} has no destination"))?;
        ends.insert(from, (accepted, original));
    }
    Ok(ends)
}
