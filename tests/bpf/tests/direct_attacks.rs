//! What a neighbour on the bridge can try while a handshake between two pods is authorised: it knows the
//! addresses and ports, and not the sequence number.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::raw::{self, Packing};
use karst_bpf_tests::{Host, PATIENCE, Pair, QUIET, accept, counter, eventually};
use socket2::{Domain, Socket, Type};

/// How a SYN is packed, and behind how many tags of VLAN 0, which receivers ignore.
type Way = (Packing, usize);

const V4: [Way; 6] = [
    (Packing::Plain, 0),
    (Packing::Options, 0),
    (Packing::TinyFragment, 0),
    (Packing::Fragment, 0),
    (Packing::Plain, 1),
    (Packing::Plain, 2),
];
const V6: [Way; 5] = [
    (Packing::Plain, 0),
    (Packing::Options, 0),
    (Packing::Fragment, 0),
    (Packing::ManyHeaders, 0),
    (Packing::Plain, 2),
];
/// The kernel has a check of its own for this one.
const TINY_V6: Way = (Packing::TinyFragment, 0);

fn are_dropped(to: SocketAddr, ways: &[Way]) -> Result<()> {
    let pair = Pair::allowed()?;
    let victim = pair.held_open(to)?;
    let from = victim.local_addr()?.as_socket().context("no address")?;
    let passed = counter(&pair.datapath, "bypass_passed")?;
    for way in ways {
        let before = counter(&pair.datapath, "bypass_syn_dropped")?;
        raw::syn(&pair.world, Host::Stranger, from, to, *way)?;
        eventually(&format!("{way:?} is dropped"), || {
            Ok(counter(&pair.datapath, "bypass_syn_dropped")? > before)
        })?;
    }
    ensure!(
        accept(&pair.app, QUIET)?.is_none(),
        "the application got one"
    );
    ensure!(
        counter(&pair.datapath, "bypass_passed")? == passed,
        "one got through"
    );
    Ok(())
}

#[test]
fn a_forged_ipv4_syn_is_dropped_however_it_is_packed() -> Result<()> {
    are_dropped(Pair::app_at(Host::B.v4()), &V4)
}

#[test]
fn a_forged_ipv6_syn_is_dropped_however_it_is_packed() -> Result<()> {
    let ways = [&V6[..], &[TINY_V6]].concat();
    are_dropped(Pair::app_at(Host::B.v6()), &ways)
}

/// Where nothing checks them the same packets reach the lookup: what is dropped above is no accident.
fn would_get_through(to: SocketAddr, ways: &[Way]) -> Result<()> {
    for way in ways {
        let pair = Pair::allowed()?;
        let victim = pair.held_open(to)?;
        let from = victim.local_addr()?.as_socket().context("no address")?;
        pair.world.detach_guard(Host::B)?;
        let passed = counter(&pair.datapath, "bypass_passed")?;
        raw::syn(&pair.world, Host::Stranger, from, to, *way)?;
        eventually(&format!("{way:?} gets through"), || {
            Ok(counter(&pair.datapath, "bypass_passed")? > passed)
        })?;
    }
    Ok(())
}

#[test]
fn without_the_check_a_forged_ipv4_syn_would_get_through() -> Result<()> {
    would_get_through(Pair::app_at(Host::B.v4()), &V4)
}

#[test]
fn without_the_check_a_forged_ipv6_syn_would_get_through() -> Result<()> {
    would_get_through(Pair::app_at(Host::B.v6()), &V6)
}

/// A neighbour that has taken the address over and dials from the very same port.
fn neighbour(pair: &Pair, to: SocketAddr) -> Result<(Socket, std::io::Result<TcpStream>)> {
    let victim = pair.held_open(to)?;
    let taken = victim.local_addr()?;
    pair.world.take_over(Host::Stranger, Host::A)?;
    let forger = pair.world.app(Host::Stranger)?.run(|| {
        let forger = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        forger.bind(&taken)?;
        forger.connect_timeout(&to.into(), QUIET * 10)?;
        std::io::Result::Ok(TcpStream::from(forger))
    })?;
    Ok((victim, forger))
}

#[test]
fn a_neighbour_with_the_address_of_another_is_not_let_in() -> Result<()> {
    for ip in [Host::B.v4(), Host::B.v6()] {
        let pair = Pair::allowed()?;
        let (_victim, forger) = neighbour(&pair, Pair::app_at(ip))?;
        ensure!(forger.is_err(), "{ip}: the forger is connected");
        ensure!(counter(&pair.datapath, "bypass_syn_dropped")? > 0);
        ensure!(
            accept(&pair.app, QUIET)?.is_none(),
            "{ip}: the application got it"
        );
    }
    Ok(())
}

/// Where the check is gone, the pod's own end finds out and cuts the connection off.
#[test]
fn a_neighbour_is_cut_off_where_nothing_checks_its_syn() -> Result<()> {
    for ip in [Host::B.v4(), Host::B.v6()] {
        let pair = Pair::allowed()?;
        pair.world.detach_guard(Host::B)?;
        let (_victim, forger) = neighbour(&pair, Pair::app_at(ip))?;
        let forger = forger.context("the scene is not what it should be")?;
        let (mut accepted, _) = accept(&pair.app, PATIENCE)?.context("nothing accepted")?;
        ensure!(counter(&pair.datapath, "bypass_forged")? == 1);
        (&forger).write_all(b"let me in")?;
        accepted.set_read_timeout(Some(QUIET))?;
        let read = accepted.read(&mut [0; 16]);
        ensure!(
            read.is_err(),
            "{ip}: the application heard the forger: {read:?}"
        );
    }
    Ok(())
}
