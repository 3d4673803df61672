//! Streams that are read and written like sockets, at both ends of real tunnels.

use std::io::{ErrorKind, IoSlice};
use std::time::Duration;

use karst_tunnel::server::{Drain, ServerLimits};
use karst_tunnel::{HboneIo, TunnelError, settings};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::ca::{TestCa, id};
use crate::support::{Client, Server, on_worker, pair, until};

/// A client and a server that takes streams over.
struct Ends {
    server: Server,
    client: Client,
    taken: UnboundedReceiver<HboneIo>,
    _ca: TestCa,
}

impl Ends {
    async fn new() -> Self {
        let (ca, server, client) = pair().await;
        Self::of(ca, server, client)
    }

    fn of(ca: TestCa, server: Server, client: Client) -> Self {
        let (sender, taken) = mpsc::unbounded_channel();
        server.handler.taken.replace(Some(sender));
        Self {
            server,
            client,
            taken,
            _ca: ca,
        }
    }

    /// Both ends of a stream: the client's and the server's.
    async fn open(&mut self) -> (HboneIo, HboneIo) {
        let stream = self.client.stream(self.server.address).await.unwrap();
        assert_eq!(stream.response_headers["baggage"], "k8s.cluster.name=test");
        let near = HboneIo::new(stream);
        (near, self.taken.recv().await.unwrap())
    }
}

/// Writes until nothing is taken for a while; returns how much was. For `at_least`, which must be taken, a busy
/// machine is given its time.
async fn write_until_stopped(to: &mut HboneIo, at_least: usize) -> usize {
    let chunk = vec![7; 100_000];
    let mut sent = 0;
    loop {
        let patience = if sent < at_least {
            Duration::from_secs(20)
        } else {
            Duration::from_secs(1)
        };
        let Ok(written) = timeout(patience, to.write(&chunk)).await else {
            return sent;
        };
        sent += written.unwrap();
        assert!(sent < 64 << 20, "nothing stops the writer");
    }
}

fn is_reset(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    let told = matches!(inner, Some(TunnelError::StreamReset { .. }));
    error.kind() == ErrorKind::ConnectionReset && told
}

#[test]
fn bytes_and_ends_travel_both_ways() {
    on_worker(async {
        let mut ends = Ends::new().await;
        let (mut near, mut far) = ends.open().await;
        assert_eq!(&*near.tls().version, "TLSv1_3");
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut asked = String::new();
        far.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        // The other direction goes on.
        far.write_all(b"answer").await.unwrap();
        let mut some = [0; 3];
        near.read_exact(&mut some).await.unwrap();
        far.write_all(b", more").await.unwrap();
        far.shutdown().await.unwrap();
        far.shutdown().await.unwrap();
        let mut rest = String::new();
        near.read_to_string(&mut rest).await.unwrap();
        assert_eq!((&some, rest.as_str()), (b"ans", "wer, more"));
        let late = near.write(b"late").await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::BrokenPipe);
        drop((near, far));
        until("the place is free", || {
            ends.client.pool.snapshot()[0].streams == 0
        })
        .await;
    });
}

/// A server that answers before it has read the question: all of the answer arrives, although
/// the writer is gone at once.
#[test]
fn nothing_is_lost_when_the_writer_leaves_in_order() {
    on_worker(async {
        let mut ends = Ends::new().await;
        let (mut near, mut far) = ends.open().await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let reader = spawn_local(async move {
            let mut all = Vec::new();
            near.read_to_end(&mut all).await.unwrap();
            let error = near.write(b"x").await.unwrap_err();
            assert!(is_reset(&error), "{error:?}");
            all
        });
        far.write_all(&sent).await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
        assert!(reader.await.unwrap() == sent, "the bytes differ");
    });
}

#[test]
fn many_slices_are_one_write() {
    on_worker(async {
        let mut ends = Ends::new().await;
        let (mut near, mut far) = ends.open().await;
        assert!(near.is_write_vectored());
        let slices = [b"a".as_slice(), b"", b"bcd", b"ef"].map(IoSlice::new);
        assert_eq!(near.write_vectored(&slices).await.unwrap(), 6);
        let mut all = [0; 6];
        far.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"abcdef");
        let empty = [IoSlice::new(b"")];
        assert_eq!(near.write_vectored(&empty).await.unwrap(), 0);
    });
}

#[test]
fn an_end_that_is_dropped_resets_the_other() {
    on_worker(async {
        let mut ends = Ends::new().await;
        for client_leaves in [true, false] {
            let (near, far) = ends.open().await;
            let (leaves, mut stays) = if client_leaves {
                (near, far)
            } else {
                (far, near)
            };
            drop(leaves);
            let error = stays.read(&mut [0; 1]).await.unwrap_err();
            assert!(is_reset(&error), "{error:?}");
            let again = stays.read(&mut [0; 1]).await.unwrap_err();
            assert!(is_reset(&again), "{again:?}");
            let error = stays.write(b"x").await.unwrap_err();
            assert!(is_reset(&error), "{error:?}");
        }
    });
}

/// A writer that waits for room hears of the reset too.
#[test]
fn a_reset_reaches_a_writer_that_waits() {
    on_worker(async {
        let mut ends = Ends::new().await;
        let (mut near, far) = ends.open().await;
        write_until_stopped(&mut near, settings::STREAM_WINDOW as usize).await;
        let writer = spawn_local(async move { near.write(b"more").await });
        tokio::task::yield_now().await;
        drop(far);
        let error = writer.await.unwrap().unwrap_err();
        assert!(is_reset(&error), "{error:?}");
    });
}

/// An answer that is complete is read before the reset behind it.
#[test]
fn what_came_before_a_reset_is_read() {
    on_worker(async {
        let mut ends = Ends::new().await;
        let (mut near, mut far) = ends.open().await;
        far.write_all(b"413 too much").await.unwrap();
        far.shutdown().await.unwrap();
        // The client has not ended its direction: this resets the stream.
        drop(far);
        until("the reset is there", || {
            ends.client.pool.snapshot()[0].streams == 1
        })
        .await;
        let mut answer = [0; 12];
        near.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"413 too much");
    });
}

/// The window opens by what is read, not by what has come.
#[test]
fn a_reader_that_does_not_read_stops_the_writer() {
    on_worker(async {
        let mut ends = Ends::new().await;
        let window = settings::STREAM_WINDOW as usize;
        for client_reads in [true, false] {
            let (near, far) = ends.open().await;
            let (mut reads, mut writes) = if client_reads {
                (near, far)
            } else {
                (far, near)
            };
            let sent = write_until_stopped(&mut writes, window).await;
            // One window, and what HTTP/2 holds for sending.
            let limit = window + settings::CLIENT_SEND_BUFFER;
            assert!((window..=limit).contains(&sent), "{sent} bytes");
            let mut buffer = vec![0; window];
            reads.read_exact(&mut buffer).await.unwrap();
            let more = write_until_stopped(&mut writes, window / 2).await;
            assert!((window / 2..=window).contains(&more), "{more} bytes");
            let mut rest = vec![0; sent + more - window];
            reads.read_exact(&mut rest).await.unwrap();
            assert!(buffer.iter().chain(&rest).all(|b| *b == 7));
        }
    });
}

/// Tiny messages that nobody reads cost neither the connection nor the other streams.
#[test]
fn a_stalled_reader_does_not_stall_other_streams() {
    on_worker(async {
        let mut ends = Ends::new().await;
        let (mut to_server, unread_there) = ends.open().await;
        let (unread_here, mut to_client) = ends.open().await;
        for _ in 0..100_000 {
            to_server.write_all(b"x").await.unwrap();
            to_client.write_all(b"x").await.unwrap();
            tokio::task::yield_now().await;
        }
        let (mut near, mut far) = ends.open().await;
        near.write_all(b"ping").await.unwrap();
        let mut asked = [0; 4];
        far.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"ping");
        assert_eq!(ends.client.dialer.dials.get(), 1);
        for mut unread in [unread_there, unread_here] {
            let mut all = vec![0; 100_000];
            unread.read_exact(&mut all).await.unwrap();
        }
    });
}

#[test]
fn a_broken_tunnel_fails_reads_and_writes() {
    on_worker(async {
        let mut ends = Ends::new().await;
        let (mut near, mut far) = ends.open().await;
        ends.server.restart(Drain::Immediate);
        for end in [&mut near, &mut far] {
            let error = end.read(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error:?}");
            end.write(b"x").await.unwrap_err();
        }
    });
}

/// A stream that was taken keeps its connection from being idle.
#[test]
fn a_taken_stream_keeps_its_connection() {
    on_worker(async {
        let ca = TestCa::new();
        let mut limits = ServerLimits::new(10);
        limits.idle = Duration::from_millis(500);
        let server = Server::with_limits(ca.issue(&id("server")), limits).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let mut ends = Ends::of(ca, server, client);
        let (near, far) = ends.open().await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let (again_near, again_far) = ends.open().await;
        assert_eq!(
            ends.client.dialer.dials.get(),
            1,
            "the connection was closed"
        );
        drop((near, far, again_near, again_far));
        until("the connection ends", || {
            !ends.server.outcomes.borrow().is_empty()
        })
        .await;
    });
}

/// Nobody takes the stream of a client that has given up.
#[test]
fn a_client_that_gave_up_is_not_taken() {
    on_worker(async {
        let mut ends = Ends::new().await;
        ends.server.handler.hang.set(true);
        let to = ends.server.address;
        let given_up = timeout(Duration::from_millis(100), ends.client.stream(to)).await;
        assert!(given_up.is_err());
        until("none waits", || ends.server.handler.waiting.get() == 0).await;
        ends.server.handler.hang.set(false);
        let (_near, _far) = ends.open().await;
        assert!(ends.taken.try_recv().is_err());
    });
}
