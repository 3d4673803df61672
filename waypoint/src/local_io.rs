//! A stream of this worker thread in a form that HTTP libraries accept for upgrades.
//!
//! An upgraded connection leaves the HTTP library as a trait object that must be `Send`, and a tunnel stream
//! is not: it belongs to its worker. [`LocalIo`] is a number that may travel; the stream itself stays in a
//! table of the thread that made it, and only that thread can read and write it. This costs a look into
//! the table for each read or write, and no copy.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What can be kept: a stream of bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

type Kept = Box<dyn Stream>;

thread_local! {
    static STREAMS: RefCell<Table> = RefCell::new(Table::default());
}

/// The streams of a thread. A place is used again, with another serial number.
#[derive(Default)]
struct Table {
    places: Vec<Place>,
    free: Vec<usize>,
    serial: u64,
}

struct Place {
    serial: u64,
    /// Out of the table while it is used, so that a stream may use others inside.
    stream: Option<Kept>,
}

/// A stream of the thread that made it. On any other thread it fails with
/// [`io::ErrorKind::NotConnected`], and dropping it there leaves the stream open until its thread ends.
#[derive(Debug)]
pub struct LocalIo {
    place: usize,
    serial: u64,
    vectored: bool,
}

impl LocalIo {
    /// Keeps `stream` in the table of this thread.
    pub fn new(stream: impl Stream + 'static) -> Self {
        let vectored = stream.is_write_vectored();
        let stream: Kept = Box::new(stream);
        STREAMS.with_borrow_mut(|table| {
            table.serial += 1;
            let serial = table.serial;
            let kept = Place {
                serial,
                stream: Some(stream),
            };
            let place = match table.free.pop() {
                Some(free) => free,
                None => table.places.len(),
            };
            match table.places.get_mut(place) {
                Some(slot) => *slot = kept,
                None => table.places.push(kept),
            }
            Self {
                place,
                serial,
                vectored,
            }
        })
    }

    /// Runs `use_it` with the stream, which is out of the table meanwhile.
    fn with<T>(
        &self,
        use_it: impl FnOnce(Pin<&mut dyn Stream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Some(mut stream) = self.take() else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let result = use_it(Pin::new(&mut *stream));
        self.put(stream);
        result
    }

    fn take(&self) -> Option<Kept> {
        // The table is gone when the thread ends.
        let taken = STREAMS.try_with(|table| {
            let mut table = table.try_borrow_mut().ok()?;
            let place = table.places.get_mut(self.place)?;
            if place.serial == self.serial {
                place.stream.take()
            } else {
                None
            }
        });
        taken.ok().flatten()
    }

    fn put(&self, stream: Kept) {
        let mut stream = Some(stream);
        let _ = STREAMS.try_with(|table| {
            if let Ok(mut table) = table.try_borrow_mut()
                && let Some(place) = table.places.get_mut(self.place)
                && place.serial == self.serial
            {
                place.stream = stream.take();
            }
        });
        // A stream that has no place any more is dropped here, with nothing borrowed.
        drop(stream);
    }
}

impl Drop for LocalIo {
    fn drop(&mut self) {
        let Some(stream) = self.take() else {
            return;
        };
        let _ = STREAMS.try_with(|table| {
            if let Ok(mut table) = table.try_borrow_mut() {
                table.free.push(self.place);
            }
        });
        drop(stream);
    }
}

impl AsyncRead for LocalIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for LocalIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn reads_and_writes_what_it_keeps() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut io = LocalIo::new(near);
        io.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
        far.write_all(b"pong").await.unwrap();
        io.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"pong");
        drop(io);
        assert_eq!(far.read(&mut got).await.unwrap(), 0, "dropped with it");
    }

    #[tokio::test]
    async fn a_place_that_is_used_again_is_another_stream() {
        let (first, _first_far) = tokio::io::duplex(8);
        drop(LocalIo::new(first));
        let (second, mut second_far) = tokio::io::duplex(8);
        let mut second = LocalIo::new(second);
        second.write_all(b"2").await.unwrap();
        let mut got = [0; 1];
        second_far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"2");
    }

    #[tokio::test]
    async fn another_thread_gets_an_error() {
        let (near, _far) = tokio::io::duplex(8);
        let mut io = LocalIo::new(near);
        let elsewhere = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.unwrap().block_on(io.write_all(b"x"))
        });
        let error = elsewhere.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    }
}
