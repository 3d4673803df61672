//! Load that wrk and iperf3 cannot make: requests at a fixed rate, and many idle connections.
//! Both run inside a client pod.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// A request that takes longer has not been answered.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest line of an answer's head; nginx's are far shorter.
const MAX_LINE: u64 = 8 << 10;

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
}

/// Latencies of a run at a fixed rate, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the requests were answered within this.
    pub p50_us: f64,
    /// 99 of 100 were.
    pub p99_us: f64,
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
    let interval = Duration::from_secs(1) * args.connections / args.rate;
    let rounds = args.rate * args.seconds / args.connections;
    let address = args.address;
    let mut streams = (0..args.connections)
        .map(|_| connect(address))
        .collect::<Result<Vec<_>>>()?;
    for stream in &mut streams {
        // The first request also pays for the tunnel; it is not counted.
        request(stream)?;
    }
    let begin = Instant::now() + Duration::from_millis(50);
    let threads: Vec<_> = (0..)
        .zip(streams)
        .map(|(index, stream)| {
            let first = begin + Duration::from_secs(1) * index / args.rate;
            thread::spawn(move || paced(stream, first, interval, rounds))
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
    mut stream: BufReader<TcpStream>,
    first: Instant,
    interval: Duration,
    rounds: u32,
) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    for round in 0..rounds {
        let due = first + interval * round;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        request(&mut stream)?;
        latencies.push(due.elapsed());
    }
    Ok(latencies)
}

fn percentiles(mut latencies: Vec<Duration>) -> Option<Latency> {
    latencies.sort_unstable();
    let at = |hundredths: usize| {
        let index = (latencies.len() * hundredths)
            .div_ceil(100)
            .checked_sub(1)?;
        Some(latencies.get(index)?.as_secs_f64() * 1e6)
    };
    Some(Latency {
        p50_us: at(50)?,
        p99_us: at(99)?,
    })
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
}

/// What [`hold`] prints when all connections are open.
pub const READY: &str = "ready";

/// Opens connections, makes one request on each, and holds them until standard input ends.
pub fn hold(args: &HoldArgs) -> Result<()> {
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    let mut held = Vec::new();
    for number in 0..args.connections {
        let mut stream = connect(args.address).with_context(|| format!("connection {number}"))?;
        request(&mut stream).with_context(|| format!("connection {number}"))?;
        held.push(stream);
    }
    println!("{READY}");
    io::stdin()
        .read_to_end(&mut Vec::new())
        .context("waiting for the end of input")?;
    Ok(())
}

fn connect(address: SocketAddr) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, LIMIT)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true).context("setting TCP_NODELAY")?;
    stream
        .set_read_timeout(Some(LIMIT))
        .context("setting a time limit")?;
    Ok(BufReader::with_capacity(1024, stream))
}

/// One keep-alive request and its whole answer.
fn request(stream: &mut BufReader<TcpStream>) -> Result<()> {
    stream
        .get_mut()
        .write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        .context("sending a request")?;
    read_answer(stream)
}

fn read_answer(stream: &mut impl BufRead) -> Result<()> {
    let mut length = None;
    let mut line = String::new();
    let mut first = true;
    loop {
        line.clear();
        stream
            .by_ref()
            .take(MAX_LINE)
            .read_line(&mut line)
            .context("reading an answer")?;
        let text = line.trim_end();
        if first {
            ensure!(
                text.starts_with("HTTP/1.1 200"),
                "the server answered {text:?}"
            );
            first = false;
        } else if line.is_empty() {
            bail!("the connection ended inside an answer");
        } else if text.is_empty() {
            break;
        } else if let Some((name, value)) = text.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(
                value
                    .trim()
                    .parse::<u64>()
                    .with_context(|| format!("content-length {value}"))?,
            );
        }
    }
    let length = length.context("the answer has no content-length")?;
    let read =
        io::copy(&mut stream.by_ref().take(length), &mut io::sink()).context("reading a body")?;
    ensure!(
        read == length,
        "the body ended after {read} of {length} bytes"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let latencies = (1..=100).rev().map(Duration::from_micros).collect();
        let latency = percentiles(latencies).unwrap();
        assert!(
            (latency.p50_us - 50.0).abs() < 1e-6 && (latency.p99_us - 99.0).abs() < 1e-6,
            "{latency:?}"
        );
        assert!(percentiles(Vec::new()).is_none());
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        let mut two: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        read_answer(&mut two).unwrap();
        read_answer(&mut two).unwrap();
        assert!(two.is_empty());
    }

    #[test]
    fn a_bad_answer_is_an_error() {
        for answer in [
            "HTTP/1.1 503 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab",
            "",
            "HTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert!(read_answer(&mut answer.as_bytes()).is_err(), "{answer}");
        }
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
        let stream = connect(serve(Duration::from_millis(20))).unwrap();
        // Ten requests due at once, answered 20 ms apart: the last one waited for all of them.
        let latencies = paced(stream, Instant::now(), Duration::ZERO, 10).unwrap();
        assert_eq!(latencies.len(), 10);
        assert!(latencies[9] >= Duration::from_millis(200), "{latencies:?}");
    }
}
