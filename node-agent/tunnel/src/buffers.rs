//! Read buffers, shared by all connections of a thread.
//!
//! A connection holds no buffer while it waits: bytes are read into one block a thread, and
//! what was read leaves as [`Bytes`]. Small reads are copied out, so that one slow stream
//! cannot pin a whole block with a few bytes; larger ones leave as a part of the block without
//! a copy. A block is used again once all its parts are gone.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Bytes of a block: the most one read returns.
pub(crate) const BLOCK: usize = 256 << 10;
/// Reads up to this size are copied out of the block.
const COPY_OUT: usize = 2 << 10;
/// Blocks a thread keeps while their parts are still in use elsewhere.
const MAX_BLOCKS: usize = 8;
/// Blocks beyond the current one are freed when none was needed for this long.
const KEEP: Duration = Duration::from_secs(10);

/// First and smallest read limit of a connection: a page of memory for small messages.
const MIN_READ: usize = 16 << 10;

thread_local! {
    static BLOCKS: RefCell<Blocks> = RefCell::new(Blocks {
        current: BytesMut::new(),
        spare: VecDeque::new(),
        spare_used: None,
    });
}

struct Blocks {
    current: BytesMut,
    spare: VecDeque<BytesMut>,
    spare_used: Option<Instant>,
}

impl Blocks {
    /// A buffer with at least `size` free bytes.
    fn current(&mut self, size: usize) -> &mut BytesMut {
        let free = self.current.capacity() - self.current.len();
        if free < size && !self.current.try_reclaim(size) {
            self.replace(size);
        }
        &mut self.current
    }

    fn replace(&mut self, size: usize) {
        let reusable = self.spare.iter_mut().position(|b| b.try_reclaim(size));
        let next = match reusable {
            Some(index) => self.spare.swap_remove_back(index),
            None => None,
        };
        let next = next.unwrap_or_else(|| BytesMut::with_capacity(BLOCK));
        let used = std::mem::replace(&mut self.current, next);
        if self.spare.len() < MAX_BLOCKS && used.capacity() > 0 {
            self.spare.push_back(used);
        }
        self.spare_used = Some(Instant::now());
    }
}

/// How much a connection reads at once: it grows while reads fill it and shrinks after.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadSize(usize);

impl Default for ReadSize {
    fn default() -> Self {
        Self(MIN_READ)
    }
}

impl ReadSize {
    fn learn(&mut self, got: usize) {
        if got >= self.0 {
            self.0 = (self.0 * 2).min(BLOCK);
        } else if got < self.0 / 4 {
            self.0 = (self.0 / 2).max(MIN_READ);
        }
    }
}

/// Reads what is there. Empty bytes mean end of file.
pub(crate) fn poll_read(
    tcp: &mut TcpStream,
    cx: &mut Context<'_>,
    size: &mut ReadSize,
) -> Poll<io::Result<Bytes>> {
    BLOCKS.with_borrow_mut(|blocks| {
        let block = blocks.current(size.0);
        let mut limited = block.limit(size.0);
        // `read_buf` keeps no state, so polling a new one each time is the same read.
        let read = std::task::ready!(pin!(tcp.read_buf(&mut limited)).poll(cx))?;
        size.learn(read);
        if read <= COPY_OUT {
            let bytes = Bytes::copy_from_slice(block);
            block.clear();
            return Poll::Ready(Ok(bytes));
        }
        Poll::Ready(Ok(block.split().freeze()))
    })
}

/// Frees blocks that a burst left behind.
pub(crate) fn trim() {
    BLOCKS.with_borrow_mut(|blocks| {
        if blocks.spare_used.is_some_and(|used| used.elapsed() > KEEP) {
            blocks.spare.clear();
            blocks.spare_used = None;
            blocks.current = BytesMut::new();
        }
    });
}
