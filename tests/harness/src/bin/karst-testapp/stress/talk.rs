//! Both sides of a connection, once there is one.

use std::io::{self, ErrorKind};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rand::{Rng, RngExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::plan::{Order, PLAN_BYTES, Plan, Reset};
use super::stream::{Bytes, Checker, HASH, Sender};

/// How a greeting begins, before seed and length.
const GREETING: [u8; 4] = *b"KSG1";
const GREETING_BYTES: usize = 16;
/// The longest greeting's stream, bytes.
const MAX_GREETING: u32 = 4096;

/// The most bytes of a write or a read.
const MAX_BLOCK: usize = 128 << 10;
/// How often, and how long at most, somebody pauses.
const PAUSES: f64 = 0.02;
const MAX_PAUSE: Duration = Duration::from_millis(5);

/// How a connection went as it should.
#[derive(Debug, PartialEq, Eq)]
pub enum Side {
    /// All bytes came both ways.
    Whole,
    /// It was reset as planned; what came before was right.
    Reset,
    /// It was reset before the server had read the plan.
    Unplanned,
}

/// What came of a connection.
#[derive(Debug)]
pub struct Outcome {
    pub side: Side,
    /// Bytes that came and were right.
    pub checked: u64,
}

/// Why one side goes no further.
pub enum Stop {
    /// It resets, as planned.
    Reset,
    /// The connection failed.
    Failed(io::Error),
    /// What came is wrong.
    Wrong(anyhow::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Whether a failure is what a reset by the other side looks like.
fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// The server's words before it has read anything.
pub async fn greet(stream: &mut TcpStream, random: &mut impl Rng) -> io::Result<()> {
    let (seed, length) = (random.random(), random.random_range(0..=MAX_GREETING));
    let mut said = Vec::from(GREETING);
    said.extend_from_slice(&u64::to_be_bytes(seed));
    said.extend_from_slice(&length.to_be_bytes());
    let mut sender = Sender::new(Bytes::down(seed), length.into());
    let mut block = vec![0; length as usize];
    said.extend_from_slice(sender.next(&mut block));
    said.extend_from_slice(&sender.hash());
    stream.write_all(&said).await
}

/// Reads and checks a greeting; gives its length.
pub async fn hear_greeting(stream: &mut TcpStream) -> Result<u64> {
    let mut head = [0; GREETING_BYTES];
    let read = stream.read_exact(&mut head).await;
    read.context("reading the greeting")?;
    let (magic, rest) = head.split_at(GREETING.len());
    let (seed, length) = rest.split_at(8);
    let seed = u64::from_be_bytes(seed.try_into()?);
    let length = u32::from_be_bytes(length.try_into()?);
    anyhow::ensure!(
        magic == GREETING && length <= MAX_GREETING,
        "not a greeting: {head:02x?}"
    );
    let mut said = vec![0; length as usize + HASH];
    let read = stream.read_exact(&mut said).await;
    read.context("reading the greeting")?;
    let mut checker = Checker::new(Bytes::down(seed), length.into());
    checker.take(&said).context("the greeting")?;
    checker.finish().context("the greeting")?;
    Ok(checker.checked())
}

/// Sends a plan, as a whole or in pieces.
pub async fn send_plan(
    stream: &mut TcpStream,
    plan: &Plan,
    random: &mut impl Rng,
) -> io::Result<()> {
    let bytes = plan.to_bytes();
    let (begin, end) = bytes.split_at(random.random_range(0..PLAN_BYTES));
    stream.write_all(begin).await?;
    pause(random).await;
    stream.write_all(end).await
}

/// Reads a plan.
pub async fn hear_plan(stream: &mut TcpStream) -> Result<Plan> {
    let mut bytes = [0; PLAN_BYTES];
    stream.read_exact(&mut bytes).await?;
    Plan::from_bytes(&bytes)
}

/// What a failure means where a reset may be: that it was one, or else itself.
pub fn reset_or(error: anyhow::Error, side: Side) -> Result<Outcome> {
    match error.downcast_ref::<io::Error>() {
        Some(io) if is_reset(io) => Ok(Outcome { side, checked: 0 }),
        _ => Err(error),
    }
}

/// The client's side of a plan that has been sent.
pub async fn client(
    stream: TcpStream,
    plan: &Plan,
    random: &mut (impl Rng + Send),
) -> Result<Outcome> {
    let (own_reset, their_reset) = match plan.reset {
        Reset::Never => (None, false),
        Reset::ByClient(at) => (Some(at), false),
        Reset::ByServer(_) => (None, true),
    };
    let talk = Talk {
        send: Sender::new(Bytes::up(plan.seed), plan.up),
        check: Checker::new(Bytes::down(plan.seed), plan.down),
        waits: plan.order == Order::ClientLast,
        own_reset,
        their_reset,
    };
    talk.run(stream, random).await
}

/// The server's side of a plan that has been read.
pub async fn server(
    stream: TcpStream,
    plan: &Plan,
    random: &mut (impl Rng + Send),
) -> Result<Outcome> {
    let (own_reset, their_reset) = match plan.reset {
        Reset::Never => (None, false),
        Reset::ByClient(_) => (None, true),
        Reset::ByServer(at) => (Some(at), false),
    };
    let talk = Talk {
        send: Sender::new(Bytes::down(plan.seed), plan.down),
        check: Checker::new(Bytes::up(plan.seed), plan.up),
        waits: plan.order == Order::ServerLast,
        own_reset,
        their_reset,
    };
    talk.run(stream, random).await
}

/// One side.
struct Talk {
    send: Sender,
    check: Checker,
    /// Sends nothing before all has come.
    waits: bool,
    own_reset: Option<u64>,
    their_reset: bool,
}

impl Talk {
    async fn run(
        mut self,
        mut stream: TcpStream,
        random: &mut (impl Rng + Send),
    ) -> Result<Outcome> {
        let all_came = Notify::new();
        let block = random.random_range(1..=MAX_BLOCK);
        let ended = {
            let (mut read, mut write) = stream.split();
            let sending = async {
                if self.waits {
                    all_came.notified().await;
                }
                send(&mut write, self.send, self.own_reset, random).await
            };
            let receiving = async {
                receive(&mut read, &mut self.check, block).await?;
                all_came.notify_one();
                Ok(())
            };
            tokio::try_join!(sending, receiving)
        };
        let outcome = |side| {
            Ok(Outcome {
                side,
                checked: self.check.checked(),
            })
        };
        match ended {
            Ok(_) if self.their_reset => Err(anyhow!("the planned reset did not come")),
            Ok(_) => outcome(Side::Whole),
            Err(Stop::Reset) => {
                // Closing with zero linger sends a reset.
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                outcome(Side::Reset)
            }
            Err(Stop::Failed(error)) if self.their_reset && is_reset(&error) => {
                outcome(Side::Reset)
            }
            Err(Stop::Failed(error)) => {
                Err(error).with_context(|| format!("after {} bytes had come", self.check.checked()))
            }
            Err(Stop::Wrong(error)) => Err(error),
        }
    }
}

/// Sends all and ends this side; or stops where it is to reset.
async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    mut sender: Sender,
    reset_after: Option<u64>,
    random: &mut (impl Rng + Send),
) -> Result<(), Stop> {
    let mut block = vec![0; MAX_BLOCK];
    let mut until_reset = reset_after;
    while sender.left() > 0 && until_reset != Some(0) {
        let mut most = random.random_range(1..=MAX_BLOCK);
        if let Some(left) = until_reset {
            most = most.min(usize::try_from(left).unwrap_or(MAX_BLOCK));
        }
        let this = sender.next(&mut block[..most]);
        stream.write_all(this).await?;
        until_reset = until_reset.map(|left| left - this.len() as u64);
        if random.random_bool(PAUSES) {
            pause(random).await;
        }
    }
    if reset_after.is_some() {
        return Err(Stop::Reset);
    }
    stream.write_all(&sender.hash()).await?;
    stream.shutdown().await?;
    Ok(())
}

/// Reads to the end and checks every byte.
async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
    checker: &mut Checker,
    block: usize,
) -> Result<(), Stop> {
    let mut buffer = vec![0; block];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return checker.finish().map_err(Stop::Wrong);
        }
        checker.take(&buffer[..read]).map_err(Stop::Wrong)?;
    }
}

async fn pause(random: &mut impl Rng) {
    let most = u64::try_from(MAX_PAUSE.as_micros()).unwrap_or(u64::MAX);
    tokio::time::sleep(Duration::from_micros(random.random_range(0..=most))).await;
}
