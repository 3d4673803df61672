//! What the programs refuse is logged by the agent.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use karst_bpf_tests::{Agent, Host, PATIENCE, World};
use karst_datapath::inspect;
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;
use tracing_subscriber::fmt::MakeWriter;

/// A log kept in memory.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_refusal_is_logged_with_its_reason() -> Result<()> {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(lines.clone())
        .with_ansi(false)
        .finish();
    let _this_thread = tracing::subscriber::set_default(subscriber);
    let world = World::new()?;
    let datapath = world.open()?;
    datapath.start_logging()?;
    datapath.start_logging()?;
    let _agent = Agent::enrol(&world, &datapath, Host::A)?;
    let to: SocketAddr = "203.0.113.9:8080".parse()?;
    let outcome = world.app(Host::A)?.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind_device(Some(b"eth0"))?;
        socket.connect_timeout(&to.into(), PATIENCE)
    })?;
    ensure!(outcome.is_err());
    let expected = "outbound_refused_bound_device: connect to ::ffff:203.0.113.9 port 8080 refused";
    let deadline = Instant::now() + PATIENCE;
    while !lines.text().contains(expected) {
        ensure!(Instant::now() < deadline, "logged {:?}", lines.text());
        // Lets the task that reads the log run.
        tokio::task::yield_now().await;
    }
    ensure!(
        lines.text().contains("WARN karst::bpf"),
        "{:?}",
        lines.text()
    );
    Ok(())
}

/// Without an agent nobody reads the log; whoever looks takes nothing away from the next agent.
#[tokio::test]
async fn records_that_nobody_has_taken_are_shown_and_stay() -> Result<()> {
    let world = World::new()?;
    let datapath = world.open()?;
    let _agent = Agent::enrol(&world, &datapath, Host::A)?;
    let (root, node) = (
        &world.config().bpffs_root,
        world.config().node_name.as_str(),
    );
    let log = || -> Result<_> {
        let maps = inspect::maps(root, node)?;
        let log = maps.into_iter().find(|map| map.name == "AYA_LOGS");
        log.context("no AYA_LOGS")
    };
    ensure!(
        log()?.entries == Some(0) && log()?.fill_percent == Some(0.0),
        "{:?}",
        log()?
    );
    let to: SocketAddr = "203.0.113.9:8080".parse()?;
    let refused = world.app(Host::A)?.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind_device(Some(b"eth0"))?;
        socket.connect_timeout(&to.into(), PATIENCE)
    })?;
    ensure!(refused.is_err());
    for _ in 0..2 {
        let records = inspect::dump_map(root, node, "AYA_LOGS")?;
        ensure!(
            records.len() == 1 && log()?.entries == Some(1),
            "{records:?}"
        );
        let value = &records[0].value.0;
        let field = |name: &str| {
            value
                .iter()
                .find(|(own, _)| *own == name)
                .map(|(_, text)| text)
        };
        let expected = "outbound_refused_bound_device: connect to 203.0.113.9 port 8080 refused";
        ensure!(
            field("message").is_some_and(|text| text.starts_with(expected)),
            "{value:?}"
        );
        ensure!(
            field("level").is_some_and(|text| text == "warn"),
            "{value:?}"
        );
    }
    datapath.start_logging()?;
    let deadline = Instant::now() + PATIENCE;
    while log()?.entries != Some(0) {
        ensure!(Instant::now() < deadline, "nobody took it: {:?}", log()?);
        tokio::task::yield_now().await;
    }
    ensure!(inspect::dump_map(root, node, "AYA_LOGS")?.is_empty());
    Ok(())
}
