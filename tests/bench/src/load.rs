//! Load that wrk, h2load and iperf3 cannot make: requests at a fixed rate, and many idle
//! connections. Both run inside a client pod.

pub mod dial;
mod http1;
mod http2;

use std::{
    io::{self, Read},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use http1::Http1;
use http2::Http2;

/// A request that takes longer has not been answered.
const LIMIT: Duration = Duration::from_secs(10);

/// Time for all connections to be told when to begin.
const HEAD_START: Duration = Duration::from_millis(50);

/// Arguments of `rate`.
#[derive(clap::Args)]
pub struct RateArgs {
    /// The server.
    #[arg(long)]
    address: SocketAddr,
    /// Requests a second, over all connections.
    #[arg(long)]
    rate: u32,
    /// How long.
    #[arg(long)]
    seconds: u32,
    /// Keep-alive connections to spread the requests over.
    #[arg(long)]
    connections: u32,
    /// What to ask for.
    #[arg(long, default_value = "/")]
    path: String,
    /// Speak HTTP/2, without TLS and without asking first.
    #[arg(long)]
    http2: bool,
}

/// Latencies of a run at a fixed rate, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the requests were answered within this.
    pub p50_us: f64,
    /// 9 of 10 were.
    pub p90_us: f64,
    /// 99 of 100 were.
    pub p99_us: f64,
    /// 999 of 1,000 were.
    pub p999_us: f64,
    /// All were.
    pub max_us: f64,
}

/// Sends requests at a fixed rate and prints their latencies as JSON.
///
/// The load is open: a request's time to be sent does not depend on earlier answers, and its
/// latency counts from that time and not from when the connection was free to send it. A server
/// that stalls is charged for every request that should have been sent meanwhile.
pub fn rate(args: &RateArgs) -> Result<()> {
    ensure!(
        args.rate > 0 && args.connections > 0,
        "rate and connections must be above 0"
    );
    raise_open_files()?;
    let interval = Duration::from_secs(1) * args.connections / args.rate;
    let rounds = (args.rate * args.seconds / args.connections).max(1);
    let mut connections = (0..args.connections)
        .map(|_| Connection::open(args.address, &args.path, args.http2))
        .collect::<Result<Vec<_>>>()?;
    for connection in &mut connections {
        // The first request also pays for the tunnel; it is not counted.
        connection.get()?;
    }
    let begin = Instant::now() + HEAD_START;
    let threads: Vec<_> = (0..)
        .zip(connections)
        .map(|(index, connection)| {
            let first = begin + Duration::from_secs(1) * index / args.rate;
            thread::spawn(move || paced(connection, first, interval, rounds))
        })
        .collect();
    let mut latencies = Vec::new();
    for thread in threads {
        latencies.extend(
            thread
                .join()
                .map_err(|_| anyhow!("a connection's thread failed"))??,
        );
    }
    let latency = percentiles(latencies).context("no request was made")?;
    println!(
        "{}",
        serde_json::to_string(&latency).context("writing the result")?
    );
    Ok(())
}

/// One connection's requests, each at its time.
fn paced(
    mut connection: Connection,
    first: Instant,
    interval: Duration,
    rounds: u32,
) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    for round in 0..rounds {
        let due = first + interval * round;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        connection.get()?;
        latencies.push(due.elapsed());
    }
    Ok(latencies)
}

/// Latencies in order; `None` of none.
pub fn percentiles(mut latencies: Vec<Duration>) -> Option<Latency> {
    latencies.sort_unstable();
    let at = |thousandths: usize| {
        let index = (latencies.len() * thousandths)
            .div_ceil(1000)
            .checked_sub(1)?;
        Some(latencies.get(index)?.as_secs_f64() * 1e6)
    };
    Some(Latency {
        p50_us: at(500)?,
        p90_us: at(900)?,
        p99_us: at(990)?,
        p999_us: at(999)?,
        max_us: at(1000)?,
    })
}

/// A connection to a server, for one request after the other.
enum Connection {
    Http1(Http1),
    Http2(Box<Http2>),
}

impl Connection {
    fn open(address: SocketAddr, path: &str, http2: bool) -> Result<Self> {
        Ok(if http2 {
            Self::Http2(Box::new(Http2::open(address, path)?))
        } else {
            Self::Http1(Http1::open(address, path)?)
        })
    }

    /// One request and its whole answer.
    fn get(&mut self) -> Result<()> {
        match self {
            Self::Http1(connection) => connection.get(),
            Self::Http2(connection) => connection.get(),
        }
    }
}

/// Arguments of `hold`.
#[derive(clap::Args)]
pub struct HoldArgs {
    /// The server.
    #[arg(long)]
    address: SocketAddr,
    /// How many connections.
    #[arg(long)]
    connections: u32,
    /// What to ask for.
    #[arg(long, default_value = "/")]
    path: String,
}

/// What [`hold`] prints when all connections are open.
pub const READY: &str = "ready";

/// Opens connections, makes one request on each, and holds them until standard input ends.
pub fn hold(args: &HoldArgs) -> Result<()> {
    raise_open_files()?;
    let mut held = Vec::new();
    for number in 0..args.connections {
        let open = || -> Result<Http1> {
            let mut connection = Http1::open(args.address, &args.path)?;
            connection.get()?;
            Ok(connection)
        };
        held.push(open().with_context(|| format!("connection {number}"))?);
    }
    println!("{READY}");
    io::stdin()
        .read_to_end(&mut Vec::new())
        .context("waiting for the end of input")?;
    Ok(())
}

/// Lets this process, and those that it starts, open as many files as it may.
pub fn raise_open_files() -> Result<()> {
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let latencies = (1..=1000).rev().map(Duration::from_micros).collect();
        let latency = percentiles(latencies).unwrap();
        for (is, wanted) in [
            (latency.p50_us, 500.0),
            (latency.p90_us, 900.0),
            (latency.p99_us, 990.0),
            (latency.p999_us, 999.0),
            (latency.max_us, 1000.0),
        ] {
            assert!((is - wanted).abs() < 1e-6, "{latency:?}");
        }
        let one = percentiles(vec![Duration::from_micros(7)]).unwrap();
        assert!((one.p999_us - 7.0).abs() < 1e-6, "{one:?}");
        assert!(percentiles(Vec::new()).is_none());
    }

    /// A server that answers each request after `delay`, once.
    fn serve(delay: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap_or(0) > 0 {
                if line == "\r\n" {
                    thread::sleep(delay);
                    reader
                        .get_mut()
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                        .unwrap();
                }
                line.clear();
            }
        });
        address
    }

    #[test]
    fn waiting_for_an_earlier_answer_counts_as_latency() {
        let address = serve(Duration::from_millis(20));
        let connection = Connection::open(address, "/", false).unwrap();
        // Ten requests due at once, answered 20 ms apart: the last one waited for all of them.
        let latencies = paced(connection, Instant::now(), Duration::ZERO, 10).unwrap();
        assert_eq!(latencies.len(), 10);
        assert!(latencies[9] >= Duration::from_millis(200), "{latencies:?}");
    }
}
