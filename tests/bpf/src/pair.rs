//! Two enrolled pods of one node, of which one may reach the other past the agent.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_bpf_common::layout::{FLOW_CLOSED, FLOW_OPENED, FlowEvent, VerdictKey};
use karst_datapath::netns::Netns;
use karst_datapath::{Datapath, FlowEvents, LocalEndpoints};
use socket2::{Domain, Socket, Type};

use crate::{Agent, Host, PATIENCE, World, accept, entries, eventually};

/// What the application of pod B listens on.
pub const APP_PORT: u16 = 8080;

/// How long verdicts hold in tests: longer than any of them takes.
const HOLD: Duration = Duration::from_secs(600);

/// Pods A and B, enrolled, with an application that listens in B.
pub struct Pair {
    /// The node.
    pub world: World,
    /// Opened by the agent that serves.
    pub datapath: Datapath,
    /// What it listens on in pod A.
    pub a: Agent,
    /// What it listens on in pod B.
    pub b: Agent,
    /// Listens on every address of pod B.
    pub app: TcpListener,
    events: FlowEvents,
}

impl Pair {
    /// Without any verdict.
    pub fn new() -> Result<Self> {
        let world = World::new()?;
        let datapath = world.open()?;
        let a = Agent::enrol(&world, &datapath, Host::A)?;
        let b = Agent::enrol(&world, &datapath, Host::B)?;
        let app = world
            .app(Host::B)?
            .run(|| TcpListener::bind(("::", APP_PORT)))??;
        let events = datapath.flow_events()?;
        datapath.confirm_verdicts(HOLD)?;
        Ok(Self {
            world,
            datapath,
            a,
            b,
            app,
            events,
        })
    }

    /// With a verdict that lets A reach the application of B.
    pub fn allowed() -> Result<Self> {
        let pair = Self::new()?;
        pair.allow(APP_PORT)?;
        Ok(pair)
    }

    /// The key of A's verdict about a port of B.
    pub fn key(&self, port: u16) -> Result<VerdictKey> {
        Ok(VerdictKey {
            source: self.cookie(Host::A)?,
            destination: self.cookie(Host::B)?,
            port: port.into(),
            padding: 0,
        })
    }

    /// The cookie of a pod's namespace.
    pub fn cookie(&self, host: Host) -> Result<u64> {
        Ok(self.netns(host)?.cookie()?)
    }

    /// A pod's namespace.
    pub fn netns(&self, host: Host) -> Result<Netns> {
        self.world.netns(host)
    }

    /// Lets A reach a port of B; 0 stands for every one that has no verdict of its own.
    pub fn allow(&self, port: u16) -> Result<()> {
        let fits = self.datapath.set_verdict(&self.key(port)?, VERDICT_ALLOW)?;
        ensure!(fits, "no room for a verdict");
        Ok(())
    }

    /// Notes a service with these endpoints on the node, and so many elsewhere.
    pub fn serve(
        &self,
        service: SocketAddr,
        set: u64,
        local: &[SocketAddr],
        elsewhere: u32,
    ) -> Result<()> {
        let total = local.len() as u32 + elsewhere;
        let endpoints = LocalEndpoints {
            local: local.to_vec(),
            total,
        };
        ensure!(
            self.datapath.set_service(service, set, &endpoints)?,
            "no room"
        );
        Ok(())
    }

    /// Pod A dials the application of B while B is cut off, and is then cut off itself: the handshake stays
    /// authorised for as long as the socket lives, and nobody completes it.
    pub fn held_open(&self, to: SocketAddr) -> Result<Socket> {
        // What A knows of B's hardware address must be known before.
        let known = crate::connect(&self.world.app(Host::A)?, to)?;
        drop(self.accepted(&known)?);
        drop(known);
        self.world.cut_off(Host::B)?;
        let socket = self.world.app(Host::A)?.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            let pending = socket.connect(&to.into());
            let pending = pending.err().and_then(|error| error.raw_os_error());
            ensure!(
                pending == Some(nix::errno::Errno::EINPROGRESS as i32),
                "{pending:?}"
            );
            Ok(socket)
        })??;
        self.world.cut_off(Host::A)?;
        self.world.rejoin(Host::B)?;
        Ok(socket)
    }

    /// The application of B, by its IPv4 or IPv6 address.
    pub fn app_at(ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, APP_PORT)
    }

    /// The application accepts, and sees the real address of this connection's other end.
    pub fn accepted(&self, stream: &TcpStream) -> Result<TcpStream> {
        let (accepted, from) =
            accept(&self.app, PATIENCE)?.context("the application saw nothing")?;
        let (seen, real) = (from.ip().to_canonical(), stream.local_addr()?);
        ensure!(
            seen == real.ip().to_canonical() && from.port() == real.port(),
            "{from} is seen, {real} it is"
        );
        Ok(accepted)
    }

    /// Records so far.
    pub fn events(&mut self) -> Vec<FlowEvent> {
        let mut events = Vec::new();
        self.events.drain(|event| events.push(*event));
        events
    }

    /// The record of the one connection that has closed; of one that was established, it opened before.
    pub fn closed(&mut self, established: bool) -> Result<FlowEvent> {
        let mut events = Vec::new();
        let expected = 1 + usize::from(established);
        eventually("the end of the connection is told", || {
            self.events.drain(|event| events.push(*event));
            Ok(events.iter().any(|event| event.kind == FLOW_CLOSED))
        })?;
        ensure!(events.len() == expected, "{events:?}");
        if established {
            ensure!(events[0].kind == FLOW_OPENED, "{events:?}");
            ensure!(events[0].flow == events[1].flow, "{events:?}");
        }
        events.pop().context("no record")
    }

    /// Nothing is left of any connection, and what the programs count agrees.
    pub fn forgotten(&self) -> Result<()> {
        eventually("nothing is left in FLOWS", || {
            Ok(self.datapath.flows()?.is_empty())
        })?;
        ensure!(entries(&self.datapath, "AUTH")? == 0, "AUTH");
        ensure!(self.flow_count()? == 0, "FLOW_COUNT");
        Ok(())
    }

    /// How many connections the programs count.
    pub fn flow_count(&self) -> Result<u64> {
        let config = self.world.config();
        let dump =
            karst_datapath::inspect::dump_map(&config.bpffs_root, &config.node_name, "FLOW_COUNT")?;
        let value = dump.first().and_then(|entry| entry.value.0.first());
        Ok(value.context("FLOW_COUNT is empty")?.1.parse()?)
    }
}

pub use karst_bpf_common::layout::VERDICT_ALLOW;
