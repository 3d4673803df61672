//! What is noted of connections past the agent: exact counts of bytes, their ends however they come, and
//! nothing that stays behind.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::{
    Host, PATIENCE, Pair, QUIET, accept, connect, counter, echo_once, eventually, refused,
};
use karst_datapath::sock_diag::{TcpSocket, destroy, tcp_sockets};
use socket2::{Domain, SockRef, Socket, Type};

/// `SYN_SENT` of include/net/tcp_states.h.
const SYN_SENT: u32 = 2;

const THERE: usize = 300_000;
const BACK: usize = 70_000;

fn app4() -> SocketAddr {
    Pair::app_at(Host::B.v4())
}

/// Writes so much to one end while the other reads it.
fn move_bytes(mut from: &TcpStream, mut to: &TcpStream, bytes: usize) -> Result<()> {
    to.set_read_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        let writing = scope.spawn(move || from.write_all(&vec![7; bytes]));
        let mut read = vec![0; bytes];
        to.read_exact(&mut read)?;
        writing
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok(())
    })
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    ClientHalfCloses,
    ClientCloses,
    ServerCloses,
    ServerClosesAndClientResets,
    ClientResets,
    ServerResets,
    ClientIsKilled,
}

#[test]
fn bytes_are_exact_however_a_connection_ends() -> Result<()> {
    let mut pair = Pair::allowed()?;
    for end in [
        End::ClientHalfCloses,
        End::ClientCloses,
        End::ServerCloses,
        End::ServerClosesAndClientResets,
        End::ClientResets,
        End::ServerResets,
        End::ClientIsKilled,
    ] {
        let mut client = connect(&pair.world.app(Host::A)?, app4())?;
        let mut server = pair.accepted(&client)?;
        move_bytes(&client, &server, THERE)?;
        move_bytes(&server, &client, BACK)?;
        // What the other end has acknowledged is not what is counted, but leaves the wire quiet.
        thread::sleep(Duration::from_millis(50));
        let reset = |stream: &TcpStream| SockRef::from(stream).set_linger(Some(Duration::ZERO));
        let (mut there, mut back) = (THERE, BACK);
        match end {
            End::ClientHalfCloses => {
                client.shutdown(Shutdown::Write)?;
                ensure!(server.read(&mut [0; 8])? == 0);
                // The other direction goes on.
                server.write_all(b"one more")?;
                back += 8;
                drop(server);
                ensure!(client.read_to_end(&mut Vec::new())? == 8);
                drop(client);
            }
            End::ClientCloses => {
                drop(client);
                ensure!(server.read(&mut [0; 8])? == 0);
                thread::sleep(QUIET);
                drop(server);
            }
            End::ServerCloses => {
                drop(server);
                ensure!(client.read(&mut [0; 8])? == 0);
                client.write_all(b"too late").ok();
                there += 8;
                drop(client);
            }
            End::ServerClosesAndClientResets => {
                server.shutdown(Shutdown::Write)?;
                ensure!(client.read(&mut [0; 8])? == 0);
                reset(&client)?;
                drop(client);
                drop(server);
            }
            End::ClientResets => {
                reset(&client)?;
                drop(client);
                drop(server);
            }
            End::ServerResets => {
                reset(&server)?;
                drop(server);
                let error = client.read(&mut [0; 8]).err().context("no reset")?;
                ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
                drop(client);
            }
            End::ClientIsKilled => {
                ensure!(destroy(&pair.netns(Host::A)?, &live(&pair)?)? == 1);
                drop((client, server));
            }
        }
        let event = pair.closed(true)?;
        ensure!(
            (event.sent, event.received) == (there as u64, back as u64),
            "{end:?}: {event:?}, not {there} and {back}"
        );
        ensure!(event.old_state != SYN_SENT, "{end:?}: {event:?}");
        ensure!(event.flow.source == pair.cookie(Host::A)?);
        ensure!(event.flow.destination == pair.cookie(Host::B)?);
        ensure!(event.at_ns > event.flow.started_ns, "{event:?}");
        ensure!(event.rtt_us > 0, "{event:?}");
        pair.forgotten()?;
    }
    ensure!(counter(&pair.datapath, "bypass_event_lost")? == 0);
    Ok(())
}

#[test]
fn what_was_asked_for_is_told() -> Result<()> {
    let mut pair = Pair::allowed()?;
    let vip: SocketAddr = "10.96.0.10:80".parse()?;
    pair.serve(vip, 1, &[app4()], 0)?;
    let client = connect(&pair.world.app(Host::A)?, vip)?;
    let server = pair.accepted(&client)?;
    let flows = pair.datapath.flows()?;
    ensure!(flows.len() == 1 && pair.flow_count()? == 1, "{flows:?}");
    let (cookie, flow) = flows[0];
    ensure!(flow.original.to_socket_addr() == vip);
    ensure!(flow.tuple.source.to_socket_addr() == client.local_addr()?);
    ensure!(flow.tuple.destination.to_socket_addr() == app4());
    drop((client, server));
    let event = pair.closed(true)?;
    ensure!(event.socket == cookie && event.flow == flow);
    pair.forgotten()
}

#[test]
fn a_port_that_refuses_leaves_nothing_behind() -> Result<()> {
    let mut pair = Pair::new()?;
    pair.allow(9)?;
    let to = SocketAddr::new(Host::B.v4(), 9);
    let error = refused(&pair.world.app(Host::A)?, to, PATIENCE)?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    let event = pair.closed(false)?;
    ensure!(
        event.old_state == SYN_SENT && event.sent == 0 && event.received == 0,
        "{event:?}"
    );
    ensure!(counter(&pair.datapath, "bypass_passed")? == 1);
    pair.forgotten()
}

#[test]
fn a_socket_that_was_refused_dials_again() -> Result<()> {
    let mut pair = Pair::allowed()?;
    pair.allow(9)?;
    let socket = pair.world.app(Host::A)?.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let refusal = socket.connect(&SocketAddr::new(Host::B.v4(), 9).into());
        ensure!(refusal.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
        socket.connect(&app4().into())?;
        Ok(TcpStream::from(socket))
    })??;
    let server = pair.accepted(&socket)?;
    echo_once(&socket, &server)?;
    drop((socket, server));
    eventually("both ends are told", || {
        Ok(pair.datapath.flows()?.is_empty())
    })?;
    ensure!(pair.events().len() == 3, "refused, opened, closed");
    pair.forgotten()
}

#[test]
fn a_connect_that_is_given_up_leaves_nothing_behind() -> Result<()> {
    let mut pair = Pair::allowed()?;
    let pending = pair.held_open(app4())?;
    pair.events();
    let flows = pair.datapath.flows()?;
    ensure!(flows.len() == 1, "{flows:?}");
    drop(pending);
    let event = pair.closed(false)?;
    ensure!(
        event.old_state == SYN_SENT && event.socket == flows[0].0,
        "{event:?}"
    );
    pair.forgotten()
}

#[test]
fn a_syn_that_is_lost_is_sent_again() -> Result<()> {
    let mut pair = Pair::allowed()?;
    let known = connect(&pair.world.app(Host::A)?, app4())?;
    drop((pair.accepted(&known)?, known));
    pair.closed(true)?;
    pair.world.cut_off(Host::B)?;
    let place = pair.world.app(Host::A)?;
    let client = thread::scope(|scope| {
        let dialling = scope.spawn(|| connect(&place, app4()));
        thread::sleep(QUIET);
        pair.world.rejoin(Host::B)?;
        dialling
            .join()
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })?;
    let server = pair.accepted(&client)?;
    echo_once(&client, &server)?;
    ensure!(counter(&pair.datapath, "bypass_syn_dropped")? == 0);
    drop((client, server));
    let event = pair.closed(true)?;
    ensure!(event.retransmits > 0, "{event:?}");
    pair.forgotten()
}

#[test]
fn syn_cookies_do_not_matter() -> Result<()> {
    let pair = Pair::allowed()?;
    pair.world
        .set_parameter(Host::B, "net/ipv4/tcp_syncookies", "2")?;
    for ip in [Host::B.v4(), Host::B.v6()] {
        let client = connect(&pair.world.app(Host::A)?, Pair::app_at(ip))?;
        let server = pair.accepted(&client)?;
        echo_once(&client, &server)?;
    }
    // The third packet of the handshake looked the listener up as well.
    ensure!(counter(&pair.datapath, "bypass_passed")? == 4);
    ensure!(counter(&pair.datapath, "bypass_verified")? == 2);
    ensure!(accept(&pair.b.inbound_v4, QUIET)?.is_none());
    pair.forgotten()
}

/// Dials from a port of its own.
fn dial_from(pair: &Pair, port: u16) -> Result<TcpStream> {
    let from = SocketAddr::new(Host::A.v4(), port);
    let dialled = pair.world.app(Host::A)?.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&app4().into(), PATIENCE)?;
        std::io::Result::Ok(TcpStream::from(socket))
    })?;
    dialled.context("dial")
}

#[test]
fn the_same_ports_again_over_time_wait() -> Result<()> {
    let mut pair = Pair::allowed()?;
    for server_first in [false, false, true, true, false] {
        let client = dial_from(&pair, 45678)?;
        let mut server = pair.accepted(&client)?;
        echo_once(&client, &server)?;
        if server_first {
            drop(server);
            ensure!((&client).read(&mut [0])? == 0);
            drop(client);
        } else {
            drop(client);
            ensure!(server.read(&mut [0])? == 0);
            drop(server);
        }
        pair.closed(true)?;
    }
    ensure!(counter(&pair.datapath, "bypass_verified")? == 5);
    ensure!(accept(&pair.b.inbound_v4, QUIET)?.is_none());
    pair.forgotten()
}

#[test]
fn two_hundred_at_once_leave_nothing_behind() -> Result<()> {
    let mut pair = Pair::allowed()?;
    let mut ends = Vec::new();
    for _ in 0..200 {
        let client = connect(&pair.world.app(Host::A)?, app4())?;
        let server = pair.accepted(&client)?;
        ends.push((client, server));
    }
    ensure!(pair.datapath.flows()?.len() == 200 && pair.flow_count()? == 200);
    for (client, server) in &ends {
        echo_once(client, server)?;
    }
    drop(ends);
    pair.forgotten()?;
    ensure!(pair.events().len() == 400);
    ensure!(counter(&pair.datapath, "bypass_verified")? == 200);
    Ok(())
}

/// The sockets in pod A that FLOWS speaks of.
fn live(pair: &Pair) -> Result<Vec<TcpSocket>> {
    let flows = pair.datapath.flows()?;
    let mut sockets = tcp_sockets(&pair.netns(Host::A)?)?.sockets;
    sockets.retain(|socket| flows.iter().any(|(cookie, _)| *cookie == socket.cookie));
    Ok(sockets)
}

#[test]
fn connections_are_ended() -> Result<()> {
    let mut pair = Pair::allowed()?;
    let mapped: SocketAddr = format!("[::ffff:{}]:8080", Host::B.v4()).parse()?;
    for to in [app4(), Pair::app_at(Host::B.v6()), mapped] {
        let mut client = connect(&pair.world.app(Host::A)?, to)?;
        let mut server = pair.accepted(&client)?;
        let doomed = live(&pair)?;
        ensure!(doomed.len() == 1, "{doomed:?}");
        ensure!(destroy(&pair.netns(Host::A)?, &doomed)? == 1, "{to}");
        let error = client.read(&mut [0]).err().context("it lives")?;
        ensure!(error.kind() == ErrorKind::ConnectionAborted, "{error}");
        let error = server.read(&mut [0]).err().context("it lives")?;
        ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
        pair.closed(true)?;
        pair.forgotten()?;
        ensure!(
            destroy(&pair.netns(Host::A)?, &doomed)? == 0,
            "gone already"
        );
    }
    ensure!(destroy(&pair.netns(Host::A)?, &[])? == 0);
    Ok(())
}

#[test]
fn a_connection_in_its_handshake_is_ended() -> Result<()> {
    let mut pair = Pair::allowed()?;
    let pending = pair.held_open(app4())?;
    pair.events();
    let doomed = live(&pair)?;
    ensure!(
        doomed.len() == 1 && doomed[0].state == "syn_sent",
        "{doomed:?}"
    );
    ensure!(destroy(&pair.netns(Host::A)?, &doomed)? == 1);
    let error = pending.take_error()?.context("it goes on")?;
    ensure!(error.kind() == ErrorKind::ConnectionAborted, "{error}");
    let event = pair.closed(false)?;
    ensure!(event.old_state == SYN_SENT);
    pair.forgotten()
}

#[test]
fn records_have_one_reader() -> Result<()> {
    let pair = Pair::new()?;
    let error = pair.datapath.flow_events().err().context("a second one")?;
    ensure!(error.reason() == "bpf_flow_events_taken");
    Ok(())
}
