//! Random changes of inputs, the same ones for the same seed.

/// Longest input in bytes: more finds nothing that less does not, and takes longer.
const MAX_BYTES: usize = 16 * 1024;

/// Texts at which parsers decide something.
const TOKENS: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b"\r\n ",
    b":",
    b": ",
    b"/",
    b"//",
    b"/../",
    b"%2f",
    b"%",
    b"?",
    b"#",
    b"*",
    b"@",
    b"\0",
    b"content-length: 5\r\n",
    b"transfer-encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"host: a\r\n",
    b"expect: 100-continue\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
];

/// Bytes at which lengths and types change their meaning.
const EDGES: [u8; 8] = [0, 1, 0x0a, 0x20, 0x7f, 0x80, 0xfe, 0xff];

/// A source of random numbers (xorshift64*, Vigna 2016): no more than this is needed, and the same everywhere.
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u128::try_from(bound).unwrap_or(0);
        usize::try_from((u128::from(self.next()) * bound) >> 64).unwrap_or(0)
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len()))
    }
}

/// An input made of one of `seeds` by a few changes.
#[must_use]
pub fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = random.pick(seeds).cloned().unwrap_or_default();
    for _ in 0..1 + random.below(6) {
        change(&mut input, seeds, random);
    }
    input.truncate(MAX_BYTES);
    input
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = at + random.below((input.len() - at).min(64) + 1);
    match random.below(8) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            let edge = random.pick(&EDGES).copied().unwrap_or(0);
            if let Some(byte) = input.get_mut(at) {
                *byte = edge;
            }
        }
        2 => {
            input.drain(at..end);
        }
        3 => {
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
        4 => {
            let token = random.pick(&TOKENS).copied().unwrap_or(b"");
            input.splice(at..at, token.iter().copied());
        }
        5 => {
            let token = random.pick(&TOKENS).copied().unwrap_or(b"");
            let end = input.len().min(at + token.len());
            input.splice(at..end, token.iter().copied());
        }
        6 => {
            // The rest of another seed.
            let other = random.pick(seeds).map_or(&[][..], Vec::as_slice);
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input.truncate(at),
    }
}
