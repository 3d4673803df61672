//! Where messages begin and end on an HTTP/1 connection, and what must not be there.
//!
//! hyper is lenient in places where a second parser behind us may read another message than we do: it takes a
//! bare LF for a line end, and of `Content-Length` beside `Transfer-Encoding` it drops the former. This watches
//! the bytes on their way to hyper, keeps step with its framing, and finds what RFC 9112 calls malformed. It
//! decides nothing else: what it lets through is parsed and checked by hyper.

use std::fmt;

/// Longest header line of which we keep a part that came in several reads. Lines that matter are far shorter.
const MAX_CARRY: usize = 512;

/// Why the bytes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// LF without CR before it.
    BareLineFeed,
    /// A header line that begins with a space or tab (obsolete line folding).
    FoldedLine,
    /// `Content-Length` and `Transfer-Encoding` in one request.
    TwoFramings,
    /// A `Content-Length` that is no number, or several that differ.
    ContentLength,
    /// A `Transfer-Encoding` other than `chunked`, or more than one.
    TransferEncoding,
    /// A chunk without a proper size or end.
    Chunk,
}

impl Malformed {
    /// The stable reason.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::BareLineFeed => "http_bare_line_feed",
            Self::FoldedLine => "http_folded_header",
            Self::TwoFramings => "http_length_and_encoding",
            Self::ContentLength => "http_bad_content_length",
            Self::TransferEncoding => "http_bad_transfer_encoding",
            Self::Chunk => "http_bad_chunk",
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// What [`Framing::scan`] found in the bytes it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// Nothing wrong with any of them.
    All,
    /// The byte at that place is wrong.
    Refused(usize, Malformed),
    /// From that place on they are no more ours to judge: they follow a request for an upgrade.
    Opaque(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before or in the request line.
    RequestLine,
    /// In the header lines.
    Headers,
    /// That many bytes of the body are left.
    Length(u64),
    /// In a chunk's size line.
    ChunkSize { size: u64, digits: u8, at: SizeAt },
    /// That many bytes of the chunk are left.
    ChunkData(u64),
    /// At the CR or LF behind a chunk.
    ChunkEnd { cr: bool },
    /// In the lines behind the last chunk.
    Trailers,
}

/// The place in a chunk's size line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SizeAt {
    Digits,
    Space,
    Extension,
    Cr,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub struct Framing {
    state: State,
    /// The beginning of the line that is not complete yet.
    carry: Vec<u8>,
    /// The last byte seen of an incomplete line.
    last: u8,
    head: Head,
}

/// What matters of the head under way.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Default for Framing {
    fn default() -> Self {
        Self {
            state: State::RequestLine,
            carry: Vec::new(),
            last: 0,
            head: Head::default(),
        }
    }
}

impl Framing {
    /// Whether a head has begun and is not complete.
    #[must_use]
    pub fn in_head(&self) -> bool {
        match self.state {
            State::RequestLine => self.last != 0 || !self.carry.is_empty(),
            State::Headers => true,
            _ => false,
        }
    }

    /// Goes on behind a request for an upgrade that was not granted.
    pub fn resume(&mut self) {
        self.state = State::RequestLine;
        self.head = Head::default();
    }

    /// Looks at the next bytes of the connection. After anything but [`Scanned::All`] it must not be called
    /// again (before [`Framing::resume`]).
    pub fn scan(&mut self, bytes: &[u8]) -> Scanned {
        let mut at = 0;
        while at < bytes.len() {
            let step = match self.state {
                State::RequestLine | State::Headers | State::Trailers => self.line(bytes, at),
                State::Length(left) => {
                    let (next, rest) = skip(bytes.len(), at, left);
                    if rest > 0 {
                        self.state = State::Length(rest);
                        Ok(Step::To(next))
                    } else {
                        Ok(self.message_end(next))
                    }
                }
                State::ChunkData(left) => {
                    let (next, rest) = skip(bytes.len(), at, left);
                    self.state = if rest > 0 {
                        State::ChunkData(rest)
                    } else {
                        State::ChunkEnd { cr: false }
                    };
                    Ok(Step::To(next))
                }
                State::ChunkSize { .. } | State::ChunkEnd { .. } => self
                    .chunk_byte(bytes[at])
                    .map(|()| Step::To(at + 1))
                    .map_err(|why| (at, why)),
            };
            match step {
                Ok(Step::To(next)) => at = next,
                Ok(Step::Opaque(next)) => return Scanned::Opaque(next),
                Err((place, why)) => return Scanned::Refused(place, why),
            }
        }
        Scanned::All
    }

    /// Takes the rest of a line, or as much of it as is there.
    fn line(&mut self, bytes: &[u8], at: usize) -> Result<Step, (usize, Malformed)> {
        let rest = &bytes[at..];
        // Told by its first byte, before hyper gets it and gives another reason.
        if self.carry.is_empty() && self.state != State::RequestLine && is_fold(rest) {
            return Err((at, Malformed::FoldedLine));
        }
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            self.last = rest.last().copied().unwrap_or(self.last);
            let room = MAX_CARRY.saturating_sub(self.carry.len());
            self.carry.extend_from_slice(&rest[..rest.len().min(room)]);
            return Ok(Step::To(bytes.len()));
        };
        let end = at + length;
        let before = if length > 0 {
            rest[length - 1]
        } else {
            self.last
        };
        if before != b'\r' {
            return Err((end, Malformed::BareLineFeed));
        }
        self.last = 0;
        if self.carry.is_empty() {
            // The CR is the last byte of `rest[..length]`: a line without carry has it in the same read.
            return self.full_line(&rest[..length - 1], end);
        }
        let mut line = std::mem::take(&mut self.carry);
        let room = MAX_CARRY.saturating_sub(line.len());
        line.extend_from_slice(&rest[..length.min(room)]);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        self.full_line(&line, end)
    }

    /// Takes a line without its end; `end` is the place of its LF.
    fn full_line(&mut self, line: &[u8], end: usize) -> Result<Step, (usize, Malformed)> {
        match self.state {
            State::RequestLine => {
                if line.is_empty() {
                    // RFC 9112, section 2.2: empty lines before a request are to be ignored.
                    return Ok(Step::To(end + 1));
                }
                self.head = Head {
                    upgrade: line.starts_with(b"CONNECT "),
                    ..Head::default()
                };
                self.state = State::Headers;
                Ok(Step::To(end + 1))
            }
            State::Headers if line.is_empty() => self.head_end(end),
            State::Headers => {
                self.header(line).map_err(|why| (end, why))?;
                Ok(Step::To(end + 1))
            }
            _ if line.is_empty() => Ok(self.message_end(end + 1)),
            _ => Ok(Step::To(end + 1)),
        }
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Malformed> {
        // Most names are told apart from those that matter by their length alone.
        let Some(colon) = line.iter().take(18).position(|byte| *byte == b':') else {
            return Ok(());
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // A longer line may have been cut: its value is not known.
        let whole = line.len() < MAX_CARRY - 1;
        match colon {
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = number(value)
                    .filter(|_| whole)
                    .ok_or(Malformed::ContentLength)?;
                if self.head.length.is_some_and(|other| other != length) {
                    return Err(Malformed::ContentLength);
                }
                self.head.length = Some(length);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.head.chunked || !whole || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed::TransferEncoding);
                }
                self.head.chunked = true;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.head.upgrade = true,
            _ => {}
        }
        Ok(())
    }

    fn head_end(&mut self, end: usize) -> Result<Step, (usize, Malformed)> {
        let state = match (self.head.length, self.head.chunked) {
            (Some(_), true) => return Err((end, Malformed::TwoFramings)),
            (_, true) => CHUNK_START,
            (Some(length), false) if length > 0 => State::Length(length),
            _ => return Ok(self.message_end(end + 1)),
        };
        // With a body no upgrade is ever granted.
        self.head.upgrade = false;
        self.state = state;
        Ok(Step::To(end + 1))
    }

    fn message_end(&mut self, next: usize) -> Step {
        self.state = State::RequestLine;
        if self.head.upgrade {
            Step::Opaque(next)
        } else {
            Step::To(next)
        }
    }

    /// Takes a byte of a chunk's size line or of the line end behind its data.
    fn chunk_byte(&mut self, byte: u8) -> Result<(), Malformed> {
        self.state = match self.state {
            State::ChunkEnd { cr: false } if byte == b'\r' => State::ChunkEnd { cr: true },
            State::ChunkEnd { cr: true } if byte == b'\n' => CHUNK_START,
            State::ChunkSize { size, digits, at } => match (at, byte) {
                (SizeAt::Digits, _) if byte.is_ascii_hexdigit() && digits < 16 => {
                    State::ChunkSize {
                        size: (size << 4) | u64::from(hex(byte)),
                        digits: digits + 1,
                        at,
                    }
                }
                (SizeAt::Cr, b'\n') if size == 0 => State::Trailers,
                (SizeAt::Cr, b'\n') => State::ChunkData(size),
                (SizeAt::Cr, _) => return Err(Malformed::Chunk),
                _ if digits == 0 => return Err(Malformed::Chunk),
                (_, b'\r') => State::ChunkSize {
                    size,
                    digits,
                    at: SizeAt::Cr,
                },
                (SizeAt::Extension, b'\n') => return Err(Malformed::BareLineFeed),
                (SizeAt::Extension, _) => self.state,
                (_, b';') => State::ChunkSize {
                    size,
                    digits,
                    at: SizeAt::Extension,
                },
                (_, b' ' | b'\t') => State::ChunkSize {
                    size,
                    digits,
                    at: SizeAt::Space,
                },
                (_, b'\n') => return Err(Malformed::BareLineFeed),
                _ => return Err(Malformed::Chunk),
            },
            _ => return Err(Malformed::Chunk),
        };
        Ok(())
    }
}

const CHUNK_START: State = State::ChunkSize {
    size: 0,
    digits: 0,
    at: SizeAt::Digits,
};

enum Step {
    To(usize),
    Opaque(usize),
}

fn is_fold(line: &[u8]) -> bool {
    matches!(line.first(), Some(b' ' | b'\t'))
}

/// The place behind `left` bytes from `at`, and how many of them are still to come.
fn skip(length: usize, at: usize, left: u64) -> (usize, u64) {
    let here = (length - at) as u64;
    if left >= here {
        (length, left - here)
    } else {
        // Fits: it is less than `here`, which is a usize.
        (at + usize::try_from(left).unwrap_or(0), 0)
    }
}

fn hex(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => byte
            .to_ascii_uppercase()
            .wrapping_sub(b'A')
            .wrapping_add(10),
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
