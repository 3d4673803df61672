//! Bytes that both sides know: what is at each position follows from a seed and the position. A piece may be found twice,
//! but never with the beginning of a block, so that a stream that goes on from another place is another one.

use std::sync::LazyLock;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

/// Bytes of the hash that follows a stream.
pub const HASH: usize = 32;

/// The odd number nearest to 2^64 divided by the golden ratio (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// How far away a piece is looked for that is in the wrong place, bytes, and how long a piece must be to be known.
const SEARCH: u64 = 1 << 18;
const PIECE: usize = 16;

/// The bytes of a direction.
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    seed: u64,
}

impl Bytes {
    /// What the client sends.
    pub fn up(seed: u64) -> Self {
        Self { seed }
    }

    /// What the server sends.
    pub fn down(seed: u64) -> Self {
        Self {
            seed: mix(seed ^ 0xd0_d0_d0),
        }
    }

    /// Fills `into` with what is at `position` and behind: blocks out of [`TABLE`], each from a place of its own and with
    /// eight bytes of its own at the beginning. That is as fast as copying, so that the connection is tested and not this.
    pub fn fill(self, position: u64, into: &mut [u8]) {
        let mut number = position / BLOCK as u64;
        let mut skip = (position % BLOCK as u64) as usize;
        let mut rest = into;
        while !rest.is_empty() {
            let own = mix(self.seed.wrapping_add(number.wrapping_mul(GOLDEN)));
            let from = (own % PLACES as u64) as usize;
            let (this, behind) = rest.split_at_mut(rest.len().min(BLOCK - skip));
            this.copy_from_slice(&TABLE[from + skip..from + skip + this.len()]);
            let stamp = own.to_be_bytes();
            if let Some(stamp) = stamp.get(skip..) {
                let length = stamp.len().min(this.len());
                this[..length].copy_from_slice(&stamp[..length]);
            }
            (rest, skip, number) = (behind, 0, number + 1);
        }
    }
}

/// Bytes of a block, and at how many places of the table one may begin.
const BLOCK: usize = 4096;
const PLACES: usize = 1 << 16;

/// Bytes without structure.
static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let words = (0..(PLACES + BLOCK) as u64 / 8).map(|number| mix(number.wrapping_mul(GOLDEN)));
    words.flat_map(u64::to_le_bytes).collect()
});

/// The finishing function of splitmix64: every bit of the result depends on every bit of `x`.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A direction as it is sent: the bytes, then their hash.
pub struct Sender {
    bytes: Bytes,
    length: u64,
    position: u64,
    hasher: Sha256,
}

impl Sender {
    /// From the first byte on.
    pub fn new(bytes: Bytes, length: u64) -> Self {
        Self {
            bytes,
            length,
            position: 0,
            hasher: Sha256::new(),
        }
    }

    /// How much of the bytes is left.
    pub fn left(&self) -> u64 {
        self.length - self.position
    }

    /// The next bytes, as many as fit into `into` and are left.
    pub fn next<'a>(&mut self, into: &'a mut [u8]) -> &'a [u8] {
        let most = usize::try_from(self.left()).unwrap_or(usize::MAX);
        let length = into.len().min(most);
        let block = &mut into[..length];
        self.bytes.fill(self.position, block);
        self.hasher.update(&*block);
        self.position += length as u64;
        block
    }

    /// The hash of all of them.
    pub fn hash(self) -> [u8; HASH] {
        self.hasher.finalize().into()
    }
}

/// A direction as it arrives.
pub struct Checker {
    bytes: Bytes,
    length: u64,
    position: u64,
    hasher: Sha256,
    /// What has come of the hash.
    hash: Vec<u8>,
    wanted: Vec<u8>,
}

impl Checker {
    /// From the first byte on.
    pub fn new(bytes: Bytes, length: u64) -> Self {
        Self {
            bytes,
            length,
            position: 0,
            hasher: Sha256::new(),
            hash: Vec::with_capacity(HASH),
            wanted: Vec::new(),
        }
    }

    /// How many bytes were right so far, without those of the hash.
    pub fn checked(&self) -> u64 {
        self.position
    }

    /// Whether everything has come.
    pub fn is_whole(&self) -> bool {
        self.position == self.length && self.hash.len() == HASH
    }

    /// Takes in what came next.
    ///
    /// # Errors
    /// A byte is not the one that belongs there, or there are too many.
    pub fn take(&mut self, came: &[u8]) -> Result<()> {
        let left = usize::try_from(self.length - self.position).unwrap_or(usize::MAX);
        let (body, hash) = came.split_at(came.len().min(left));
        self.wanted.resize(body.len(), 0);
        self.bytes.fill(self.position, &mut self.wanted);
        if body != self.wanted {
            let differs = |at: &usize| body[*at] != self.wanted[*at];
            let at = (0..body.len()).find(differs).unwrap_or(0);
            let position = self.position + at as u64;
            anyhow::bail!(
                "byte {position} of {} is {:#04x} and not {:#04x}{}",
                self.length,
                body[at],
                self.wanted[at],
                self.origin(position, &body[at..])
            );
        }
        self.hasher.update(body);
        self.position += body.len() as u64;
        ensure!(
            self.hash.len() + hash.len() <= HASH,
            "{} bytes too many came",
            self.hash.len() + hash.len() - HASH
        );
        self.hash.extend_from_slice(hash);
        Ok(())
    }

    /// At the end of what comes.
    ///
    /// # Errors
    /// Something is missing, or the hash is another one.
    pub fn finish(&self) -> Result<()> {
        ensure!(
            self.is_whole(),
            "an end after {} of {} bytes and {} of {HASH} of the hash",
            self.position,
            self.length,
            self.hash.len()
        );
        ensure!(
            self.hash == self.hasher.clone().finalize().as_slice(),
            "the hash of {} bytes is another one",
            self.length
        );
        Ok(())
    }

    /// Where in the stream the piece is that came, if it is from near by: what was lost, doubled or swapped.
    fn origin(&self, position: u64, piece: &[u8]) -> String {
        let Some(piece) = piece.get(..PIECE) else {
            return String::new();
        };
        let from = position.saturating_sub(SEARCH);
        let mut around = vec![0; (2 * SEARCH) as usize + PIECE];
        self.bytes.fill(from, &mut around);
        let windows = around.windows(PIECE).zip(from..);
        let places = windows.filter(|(window, _)| *window == piece);
        match places
            .map(|(_, at)| at)
            .min_by_key(|at| at.abs_diff(position))
        {
            Some(at) => format!(", what came belongs to {at}"),
            None => ", what came is from nowhere near".to_owned(),
        }
    }
}
