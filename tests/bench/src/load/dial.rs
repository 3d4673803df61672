//! New connections, one request on each: how many there can be, and how long one takes, from its first packet to the
//! answer.

use std::{
    io::{self, Read},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Builder,
    task::JoinSet,
    time::{sleep_until, timeout},
};

use super::{LIMIT, Latency, percentiles, raise_open_files};

/// The longest answer that is read, bytes; nginx's is far shorter.
const MAX_ANSWER: u64 = 64 << 10;

/// Connections that may wait for an answer at a time at a fixed rate. More of them mean that the server has stopped.
const MAX_WAITING: usize = 8000;

/// Arguments of `dial`.
#[derive(clap::Args)]
pub struct DialArgs {
    /// The server.
    #[arg(long)]
    address: SocketAddr,
    /// What to ask for.
    #[arg(long, default_value = "/")]
    path: String,
    /// As fast as it goes, with so many at a time.
    #[arg(
        long,
        conflicts_with = "per_minute",
        required_unless_present = "per_minute"
    )]
    connections: Option<u32>,
    /// So many a minute, each at its time, however many are open already.
    #[arg(long)]
    per_minute: Option<u32>,
    /// How long.
    #[arg(long)]
    seconds: u32,
    /// Begin no more once standard input has ended.
    #[arg(long)]
    until_eof: bool,
}

/// What was achieved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dialled {
    /// Connections that were answered.
    pub connections: u32,
    /// Those that were not, at a rate; one that fails as fast as it goes makes all fail.
    pub failed: u32,
    /// What was wrong with the first of those.
    pub first_failure: Option<String>,
    /// From the first to the last answer, seconds.
    pub seconds: f64,
    /// Until connect() returned. In a mesh that may be before the server knows of the connection.
    pub connect: Latency,
    /// Until the whole answer was there, from when the connection was due.
    pub answer: Latency,
}

/// Makes connections and prints [`Dialled`] as JSON.
pub fn dial(args: &DialArgs) -> Result<()> {
    raise_open_files()?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    let dialled = runtime.block_on(run(args))?;
    println!(
        "{}",
        serde_json::to_string(&dialled).context("writing the result")?
    );
    Ok(())
}

/// When a connection was due, was connected and was answered.
type Times = (Instant, Instant, Instant);

async fn run(args: &DialArgs) -> Result<Dialled> {
    let (begin, length) = (Instant::now(), Duration::from_secs(args.seconds.into()));
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n",
        args.path
    );
    let request: &'static [u8] = request.into_bytes().leak();
    let ended = Arc::new(AtomicBool::new(false));
    if args.until_eof {
        // Nobody waits for this thread, which may read for ever.
        let ended = ended.clone();
        thread::spawn(move || {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            ended.store(true, Ordering::Relaxed);
        });
    }
    let (times, failures) = match (args.connections, args.per_minute) {
        (Some(connections), _) => {
            let times = closed(args.address, request, connections, begin + length).await?;
            (times, Vec::new())
        }
        (None, Some(per_minute)) => {
            let until = begin + length;
            open(args.address, request, per_minute, (begin, until), &ended).await?
        }
        (None, None) => anyhow::bail!("neither a number of connections nor a rate"),
    };
    let last = times.iter().map(|(_, _, answered)| *answered).max();
    let seconds = last.context("no connection was made")? - begin;
    let of = |end: fn(&Times) -> Instant| {
        let all = times.iter().map(|times| end(times) - times.0);
        percentiles(all.collect()).context("no connection was made")
    };
    Ok(Dialled {
        connections: u32::try_from(times.len()).context("too many connections")?,
        failed: u32::try_from(failures.len()).context("too many connections")?,
        first_failure: failures.first().map(|error| format!("{error:#}")),
        seconds: seconds.as_secs_f64(),
        connect: of(|times| times.1)?,
        answer: of(|times| times.2)?,
    })
}

/// Each of `connections` follows the one before it.
async fn closed(
    address: SocketAddr,
    request: &'static [u8],
    connections: u32,
    until: Instant,
) -> Result<Vec<Times>> {
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        workers.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                times.push(one(address, request, Instant::now()).await?);
            }
            anyhow::Ok(times)
        });
    }
    let mut all = Vec::new();
    while let Some(times) = workers.join_next().await {
        all.extend(times.context("a worker failed")??);
    }
    Ok(all)
}

/// Each has its time. What was not answered is no reason to stop: that it was not is what is looked for.
async fn open(
    address: SocketAddr,
    request: &'static [u8],
    per_minute: u32,
    (begin, until): (Instant, Instant),
    ended: &AtomicBool,
) -> Result<(Vec<Times>, Vec<anyhow::Error>)> {
    ensure!(per_minute > 0, "at least one connection a minute");
    let interval = Duration::from_secs(60) / per_minute;
    let mut waiting = JoinSet::new();
    let (mut answered, mut failures) = (Vec::new(), Vec::new());
    let mut note = |outcome: Result<Times>| match outcome {
        Ok(times) => answered.push(times),
        Err(error) => failures.push(error),
    };
    let mut due = begin;
    while due < until && !ended.load(Ordering::Relaxed) {
        sleep_until(due.into()).await;
        while let Some(outcome) = waiting.try_join_next() {
            note(outcome.context("a connection's task failed")?);
        }
        if waiting.len() < MAX_WAITING {
            waiting.spawn(one(address, request, due));
        } else {
            note(Err(anyhow!(
                "not begun: {MAX_WAITING} connections wait for an answer"
            )));
        }
        due += interval;
    }
    while let Some(outcome) = waiting.join_next().await {
        note(outcome.context("a connection's task failed")?);
    }
    Ok((answered, failures))
}

async fn one(address: SocketAddr, request: &'static [u8], due: Instant) -> Result<Times> {
    let whole = async {
        let mut stream = TcpStream::connect(address).await.context("connecting")?;
        let connected = Instant::now();
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        stream.write_all(request).await.context("asking")?;
        let mut answer = Vec::new();
        let mut limited = stream.take(MAX_ANSWER);
        let read = limited.read_to_end(&mut answer).await;
        read.context("reading an answer")?;
        ensure!(
            answer.starts_with(b"HTTP/1.1 200"),
            "the server answered {:?}",
            String::from_utf8_lossy(&answer[..answer.len().min(80)])
        );
        Ok((due, connected, Instant::now()))
    };
    timeout(LIMIT, whole).await.context("no answer in time")?
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener};

    use super::*;

    /// A server that takes one connection after the other, so long for each.
    fn serve(status: &'static str, delay: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut request = [0; 256];
                let _ = stream.read(&mut request);
                thread::sleep(delay);
                let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            }
        });
        address
    }

    fn block_on(args: DialArgs) -> Result<Dialled> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(&args))
    }

    fn args(address: SocketAddr) -> DialArgs {
        DialArgs {
            address,
            path: "/".to_owned(),
            connections: None,
            per_minute: None,
            seconds: 1,
            until_eof: false,
        }
    }

    #[test]
    fn at_a_rate_each_connection_has_its_time() {
        let address = serve("200 OK", Duration::from_millis(40));
        let dialled = block_on(DialArgs {
            per_minute: Some(60 * 50),
            ..args(address)
        })
        .unwrap();
        // The server takes half of what is asked of it: what waits for its turn is charged with it.
        assert_eq!(dialled.connections, 50);
        assert!(dialled.answer.max_us > 500_000.0, "{dialled:?}");
        assert!(dialled.seconds > 1.5, "{dialled:?}");
    }

    #[test]
    fn one_after_the_other_nothing_waits() {
        let address = serve("200 OK", Duration::from_millis(40));
        let dialled = block_on(DialArgs {
            connections: Some(1),
            ..args(address)
        })
        .unwrap();
        assert!((10..=26).contains(&dialled.connections), "{dialled:?}");
        assert!(dialled.answer.p50_us >= 40_000.0);
        assert!(dialled.connect.p50_us <= dialled.answer.p50_us);
    }

    #[test]
    fn a_bad_answer_is_an_error() {
        let address = serve("503 no", Duration::ZERO);
        let bad = block_on(DialArgs {
            connections: Some(1),
            ..args(address)
        });
        assert!(bad.is_err());
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let nobody = block_on(DialArgs {
            per_minute: Some(600),
            ..args(port)
        });
        assert!(nobody.is_err(), "none was answered");
    }

    #[test]
    fn in_a_storm_what_fails_is_counted() {
        // Closes every other connection without an answer.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let mut good = false;
            while let Ok((mut stream, _)) = listener.accept() {
                good = !good;
                let _ = stream.read(&mut [0; 256]);
                if good {
                    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
            }
        });
        let dialled = block_on(DialArgs {
            per_minute: Some(60 * 20),
            ..args(address)
        })
        .unwrap();
        assert_eq!((dialled.connections, dialled.failed), (10, 10));
        let failure = dialled.first_failure.unwrap();
        assert!(failure.contains("the server answered"), "{failure}");
    }
}
