//! Connections between two pods of one node that go past the agent: applications see what they would see
//! without a mesh, and what is not allowed or not known goes to the agent.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_bpf_common::layout::VERDICT_ASK;
use karst_bpf_tests::{
    APP_PORT, Agent, Cgroup, Host, PATIENCE, Pair, QUIET, VERDICT_ALLOW, World, accept, connect,
    counter, echo_once,
};
use karst_datapath::{Datapath, Original};

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

/// A connection of pod A to `to` goes to the agent in pod A.
fn is_captured(pair: &Pair, to: SocketAddr) -> Result<Original> {
    let stream = connect(&pair.world.app(Host::A)?, to)?;
    let listener = match to.ip().to_canonical().is_ipv4() {
        true => &pair.a.outbound_v4,
        false => &pair.a.outbound_v6,
    };
    let (accepted, _) = accept(listener, PATIENCE)?.context("the agent saw nothing")?;
    let original = pair.datapath.original(accepted.as_fd())?;
    let original = original.context("no destination")?;
    ensure!(
        original.address == to && stream.peer_addr()? == to,
        "{original:?}"
    );
    ensure!(pair.datapath.original_destination(accepted.as_fd())? == Some(to));
    echo_once(&stream, &accepted)?;
    Ok(original)
}

fn app4() -> SocketAddr {
    Pair::app_at(Host::B.v4())
}

#[test]
fn without_a_verdict_the_agent_decides() -> Result<()> {
    let pair = Pair::new()?;
    ensure!(!is_captured(&pair, app4())?.elsewhere);
    pair.allow(APP_PORT)?;
    reaches(&pair, app4())?;
    pair.datapath.remove_verdict(&pair.key(APP_PORT)?)?;
    is_captured(&pair, app4())?;
    ensure!(counter(&pair.datapath, "bypass_chosen")? == 1);
    pair.forgotten()
}

#[test]
fn a_verdict_is_of_one_direction() -> Result<()> {
    let pair = Pair::allowed()?;
    let _app = pair
        .world
        .app(Host::A)?
        .run(|| TcpListener::bind(("::", APP_PORT)))??;
    let _stream = connect(&pair.world.app(Host::B)?, Pair::app_at(Host::A.v4()))?;
    accept(&pair.b.outbound_v4, PATIENCE)?.context("the agent saw nothing")?;
    Ok(())
}

#[test]
fn a_verdict_of_a_port_goes_before_that_of_all() -> Result<()> {
    let pair = Pair::new()?;
    pair.allow(0)?;
    reaches(&pair, app4())?;
    pair.datapath
        .set_verdict(&pair.key(APP_PORT)?, VERDICT_ASK)?;
    is_captured(&pair, app4())?;
    pair.allow(APP_PORT)?;
    pair.datapath.set_verdict(&pair.key(0)?, VERDICT_ASK)?;
    reaches(&pair, app4())
}

#[test]
fn the_agents_own_ports_are_not_reached_past_it() -> Result<()> {
    let pair = Pair::new()?;
    pair.allow(0)?;
    for port in [15001, 15006, 15008] {
        pair.allow(port)?;
        is_captured(&pair, SocketAddr::new(Host::B.v4(), port))?;
    }
    ensure!(counter(&pair.datapath, "bypass_chosen")? == 0);
    Ok(())
}

#[test]
fn verdicts_that_nobody_confirms_do_not_hold() -> Result<()> {
    let pair = Pair::allowed()?;
    pair.datapath.confirm_verdicts(Duration::from_millis(1))?;
    thread::sleep(Duration::from_millis(20));
    is_captured(&pair, app4())?;
    is_captured(&pair, SocketAddr::new(Host::B.v4(), 9))?;
    ensure!(
        counter(&pair.datapath, "bypass_expired")? == 1,
        "what was allowed counts"
    );
    pair.datapath.confirm_verdicts(Duration::from_secs(600))?;
    reaches(&pair, app4())?;
    pair.datapath.confirm_verdicts(Duration::ZERO)?;
    is_captured(&pair, app4())?;
    ensure!(
        counter(&pair.datapath, "bypass_expired")? == 1,
        "switched off is not late"
    );
    pair.forgotten()
}

#[test]
fn when_there_is_no_room_for_more_the_agent_takes_them() -> Result<()> {
    let pair = Pair::allowed()?;
    let limit = karst_bpf_common::FLOW_ENTRIES - karst_bpf_common::FLOW_SLACK;
    pair.datapath.pretend_flows(limit.into())?;
    is_captured(&pair, app4())?;
    ensure!(counter(&pair.datapath, "bypass_flows_full")? == 1);
    pair.datapath.pretend_flows(u64::from(limit) - 1)?;
    reaches(&pair, app4())?;
    pair.datapath.recount_flows()?;
    pair.forgotten()
}

#[test]
fn a_pod_that_is_let_go_is_not_reached_past_the_agent() -> Result<()> {
    let pair = Pair::allowed()?;
    pair.datapath.unenrol(Host::B.uid())?;
    is_captured(&pair, app4())?;
    ensure!(counter(&pair.datapath, "bypass_chosen")? == 0);
    Ok(())
}

#[test]
fn a_pod_whose_handshakes_nobody_checks_is_not_reached_past_the_agent() -> Result<()> {
    let pair = Pair::allowed()?;
    pair.world.detach_guard(Host::B)?;
    // The next agent finds out.
    let next = pair.world.open()?;
    let pod = next
        .enrolled()?
        .into_iter()
        .find(|pod| pod.uid == Host::B.uid());
    ensure!(pod.is_some_and(|pod| !pod.guarded));
    is_captured(&pair, app4())?;
    pair.b.attach(&pair.world, &next, Host::B, Host::B.uid())?;
    ensure!(next.enrolled()?.iter().all(|pod| pod.guarded));
    reaches(&pair, app4())
}

#[test]
fn a_pod_without_a_veth_of_the_node_is_enrolled_all_the_same() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    world.delete_netns(Host::A)?;
    world.remake_netns(Host::A)?;
    let agent = Agent::enrol(&world, &datapath, Host::A)?;
    ensure!(
        datapath.enrolled()?.iter().all(|pod| !pod.guarded),
        "it has no interface"
    );
    world.add_bridge(Host::A)?;
    agent.attach(&world, &datapath, Host::A, Host::A.uid())?;
    ensure!(
        datapath.enrolled()?.iter().all(|pod| !pod.guarded),
        "it has no veth"
    );
    world.link_elsewhere(Host::A, Host::Stranger)?;
    agent.attach(&world, &datapath, Host::A, Host::A.uid())?;
    ensure!(
        datapath.enrolled()?.iter().all(|pod| !pod.guarded),
        "its veth ends in another namespace"
    );
    Ok(())
}

#[test]
fn a_services_other_endpoints_are_the_agents() -> Result<()> {
    let pair = Pair::allowed()?;
    let vip = VIP4.parse()?;
    pair.serve(vip, 1, &[], 3)?;
    ensure!(is_captured(&pair, vip)?.elsewhere);
    pair.serve(VIP6.parse()?, 2, &[], 3)?;
    ensure!(is_captured(&pair, VIP6.parse()?)?.elsewhere);
    // Without an endpoint at all, and where verdicts do not hold, nothing is chosen.
    pair.serve(vip, 3, &[], 0)?;
    ensure!(!is_captured(&pair, vip)?.elsewhere);
    pair.serve(vip, 4, &[], 3)?;
    pair.datapath.confirm_verdicts(Duration::ZERO)?;
    ensure!(!is_captured(&pair, vip)?.elsewhere);
    pair.datapath.remove_service(vip)?;
    pair.forgotten()
}

#[test]
fn all_endpoints_of_a_service_have_their_share() -> Result<()> {
    let pair = Pair::allowed()?;
    let vip: SocketAddr = VIP4.parse()?;
    pair.serve(vip, 1, &[app4()], 1)?;
    let (mut here, mut elsewhere) = (0, 0);
    for _ in 0..60 {
        let chosen = counter(&pair.datapath, "bypass_chosen")?;
        let stream = connect(&pair.world.app(Host::A)?, vip)?;
        if counter(&pair.datapath, "bypass_chosen")? > chosen {
            pair.accepted(&stream)?;
            here += 1;
        } else {
            let (accepted, _) = accept(&pair.a.outbound_v4, PATIENCE)?.context("nobody")?;
            let original = pair.datapath.original(accepted.as_fd())?;
            ensure!(original.is_some_and(|original| original.elsewhere));
            elsewhere += 1;
        }
    }
    // Less than once in ten million tries by chance.
    ensure!(
        here > 10 && elsewhere > 10,
        "{here} here, {elsewhere} elsewhere"
    );
    pair.forgotten()
}

#[test]
fn an_endpoint_that_a_socket_cannot_take_is_the_agents() -> Result<()> {
    let pair = Pair::allowed()?;
    let vip = VIP4.parse()?;
    pair.serve(vip, 1, &[Pair::app_at(Host::B.v6())], 0)?;
    ensure!(!is_captured(&pair, vip)?.elsewhere);
    // An endpoint that no verdict is about, too.
    pair.serve(vip, 2, &[SocketAddr::new(Host::B.v4(), 9)], 0)?;
    ensure!(!is_captured(&pair, vip)?.elsewhere);
    ensure!(counter(&pair.datapath, "bypass_chosen")? == 0);
    Ok(())
}

#[test]
fn a_syn_that_nobody_authorised_goes_to_the_agent() -> Result<()> {
    let pair = Pair::allowed()?;
    // Whoever leaves pod A uncaptured, such as its agent.
    let place = pair.world.place(Host::A, Cgroup::Agent)?;
    let stream = connect(&place, app4())?;
    let (accepted, _) = accept(&pair.b.inbound_v4, PATIENCE)?.context("nobody")?;
    echo_once(&stream, &accepted)?;
    ensure!(accept(&pair.app, QUIET)?.is_none());
    ensure!(counter(&pair.datapath, "bypass_passed")? == 0);
    Ok(())
}

/// A program behind ours that rewrites destinations: that of a second node on the same cgroup does.
fn rewritten(pair: &Pair, to: SocketAddr) -> Result<Datapath> {
    let mut config = pair.world.config().clone();
    config.node_name = "node-2.test".to_owned();
    let open = || Datapath::open(&config);
    let other = pair.world.run(Host::Node, Cgroup::Agent, open)??;
    for (agent, pod) in [(&pair.a, Host::A), (&pair.b, Host::B)] {
        agent.attach(&pair.world, &other, pod, pod.uid())?;
    }
    let endpoints = karst_datapath::LocalEndpoints {
        local: vec![to],
        total: 1,
    };
    other.confirm_verdicts(Duration::from_secs(600))?;
    other.set_service(app4(), 1, &endpoints)?;
    other.set_verdict(&pair.key(to.port())?, VERDICT_ALLOW)?;
    Ok(other)
}

#[test]
fn what_is_rewritten_after_us_is_decided_about_anew() -> Result<()> {
    let pair = Pair::allowed()?;
    let app = pair
        .world
        .app(Host::B)?
        .run(|| TcpListener::bind(("::", 9090)))??;
    let to = SocketAddr::new(Host::B.v4(), 9090);
    let _other = rewritten(&pair, to)?;
    let stream = connect(&pair.world.app(Host::A)?, app4())?;
    let (accepted, _) = accept(&pair.b.inbound_v4, PATIENCE)?.context("the agent saw nothing")?;
    ensure!(accepted.local_addr()?.port() == 9090);
    echo_once(&stream, &accepted)?;
    ensure!(accept(&app, QUIET)?.is_none(), "the application got it");
    ensure!(counter(&pair.datapath, "bypass_chosen")? == 1);
    ensure!(counter(&pair.datapath, "bypass_revoked")? == 1);
    ensure!(counter(&pair.datapath, "bypass_authorised")? == 0);
    pair.forgotten()?;
    // Where the new destination is allowed as well, it is the one that is authorised.
    pair.allow(9090)?;
    let stream = connect(&pair.world.app(Host::A)?, app4())?;
    let (accepted, _) = accept(&app, PATIENCE)?.context("the application saw nothing")?;
    echo_once(&stream, &accepted)?;
    let flows = pair.datapath.flows()?;
    ensure!(flows.len() == 1 && flows[0].1.tuple.destination.to_socket_addr() == to);
    Ok(())
}

#[test]
fn from_another_address_than_its_own_a_pod_goes_to_the_agent() -> Result<()> {
    let pair = Pair::allowed()?;
    let other = "192.0.2.7";
    pair.world.app(Host::A)?.run(|| -> Result<()> {
        let mut ip = std::process::Command::new("ip");
        let added = ip.args(["address", "add", other, "dev", "lo"]).status()?;
        ensure!(added.success(), "{added}");
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(other.parse()?, 0).into())?;
        // Nobody knows the way back to that address.
        ensure!(socket.connect_timeout(&app4().into(), QUIET).is_err());
        Ok(())
    })??;
    ensure!(counter(&pair.datapath, "bypass_chosen")? == 1);
    ensure!(counter(&pair.datapath, "bypass_revoked")? == 1);
    ensure!(counter(&pair.datapath, "bypass_authorised")? == 0);
    ensure!(accept(&pair.app, QUIET)?.is_none());
    pair.forgotten()
}
