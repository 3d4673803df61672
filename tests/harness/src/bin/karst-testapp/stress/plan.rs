//! What happens on one connection.

use anyhow::{Result, bail, ensure};
use rand::{Rng, RngExt};

/// How a plan begins on the wire.
const MAGIC: [u8; 4] = *b"KSP1";
/// Bytes of a plan on the wire.
pub const PLAN_BYTES: usize = 40;

/// Sizes around which buffers and frames end.
const EDGES: [u64; 6] = [0, 1, 16 << 10, 32 << 10, 64 << 10, 1 << 20];

/// Who waits for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Both send at once, and each ends its side when it is done.
    AtOnce,
    /// The server sends when the client has ended its side.
    ServerLast,
    /// The client sends when the server has ended its side.
    ClientLast,
}

/// Who breaks the connection off, and after how many bytes of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Nobody.
    Never,
    /// The client.
    ByClient(u64),
    /// The server.
    ByServer(u64),
}

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Of both directions' bytes.
    pub seed: u64,
    /// Bytes from client to server, without the plan and the hash.
    pub up: u64,
    /// Bytes from server to client, without the greeting and the hash.
    pub down: u64,
    pub order: Order,
    pub reset: Reset,
    /// The server greets before it has read anything.
    pub server_first: bool,
}

impl Plan {
    /// A plan by chance.
    pub fn draw(random: &mut impl Rng, max_bytes: u64) -> Self {
        let (up, down) = (size(random, max_bytes), size(random, max_bytes));
        let reset = match random.random_range(0..10) {
            0 => Reset::ByClient(random.random_range(0..=up)),
            1 => Reset::ByServer(random.random_range(0..=down)),
            _ => Reset::Never,
        };
        Self {
            seed: random.random(),
            up,
            down,
            order: match random.random_range(0..4) {
                0 => Order::ServerLast,
                1 => Order::ClientLast,
                _ => Order::AtOnce,
            },
            reset,
            server_first: random.random_bool(0.3),
        }
    }

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; PLAN_BYTES] {
        let (reset, at) = match self.reset {
            Reset::Never => (0, 0),
            Reset::ByClient(at) => (1, at),
            Reset::ByServer(at) => (2, at),
        };
        let order = match self.order {
            Order::AtOnce => 0,
            Order::ServerLast => 1,
            Order::ClientLast => 2,
        };
        let mut bytes = [0; PLAN_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&[order, reset, u8::from(self.server_first), 0]);
        for (slot, number) in bytes[8..]
            .chunks_exact_mut(8)
            .zip([self.seed, self.up, self.down, at])
        {
            slot.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// As it came.
    pub fn from_bytes(bytes: &[u8; PLAN_BYTES]) -> Result<Self> {
        ensure!(bytes[..4] == MAGIC, "not a plan: {bytes:02x?}");
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(number)
        };
        let at = number(32);
        Ok(Self {
            seed: number(8),
            up: number(16),
            down: number(24),
            order: match bytes[4] {
                0 => Order::AtOnce,
                1 => Order::ServerLast,
                2 => Order::ClientLast,
                other => bail!("no order: {other}"),
            },
            reset: match bytes[5] {
                0 => Reset::Never,
                1 => Reset::ByClient(at),
                2 => Reset::ByServer(at),
                other => bail!("no reset: {other}"),
            },
            server_first: bytes[6] == 1,
        })
    }
}

/// Small ones more often than large ones, and those more often at which something begins or ends.
fn size(random: &mut impl Rng, max: u64) -> u64 {
    if random.random_bool(0.2) {
        let edge = EDGES[random.random_range(0..EDGES.len())];
        return (edge + random.random_range(0..3))
            .saturating_sub(1)
            .min(max);
    }
    let bits = max.max(1).ilog2();
    let below = 1_u64 << random.random_range(0..=bits);
    random.random_range(0..=below).min(max)
}
