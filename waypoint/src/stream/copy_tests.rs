use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};

use super::{End, IDLE, Relay};
use crate::carrier::Carrier;

/// A client that notes whether it was reset.
struct Noted(DuplexStream, Rc<Cell<bool>>);

impl Carrier for Noted {
    fn reset(self) {
        self.1.set(true);
    }
}

impl AsyncRead for Noted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Noted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

#[tokio::test(flavor = "current_thread")]
async fn each_direction_ends_by_itself() {
    let (near, mut client) = duplex(64);
    let (upstream, mut server) = duplex(64);
    let reset = Rc::<Cell<bool>>::default();
    let relay = Relay::new(Noted(near, Rc::clone(&reset)), upstream);
    let passed = relay.passed();
    let talk = async {
        client.write_all(b"question").await.expect("written");
        client.shutdown().await.expect("shut down");
        let mut text = String::new();
        server.read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "question");
        // The client's end of stream does not end the answer.
        server.write_all(b"answer").await.expect("written");
        drop(server);
        text.clear();
        client.read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "answer");
    };
    let (end, ()) = tokio::join!(relay.run(|_, _| {}), talk);
    assert!(matches!(end, End::Done), "{end:?}");
    assert_eq!(passed.get(), (8, 6));
    assert!(!reset.get());
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn silence_ends_it_with_a_reset() {
    let (near, _client) = duplex(64);
    let (upstream, mut server) = duplex(64);
    let reset = Rc::<Cell<bool>>::default();
    let relay = Relay::new(Noted(near, Rc::clone(&reset)), upstream);
    let since = tokio::time::Instant::now();
    let talk = async {
        tokio::time::sleep(IDLE / 2).await;
        server.write_all(b"x").await.expect("written");
    };
    let mut reported = (0, 0);
    let (end, ()) = tokio::join!(
        relay.run(|received, sent| reported = (received, sent)),
        talk
    );
    assert!(matches!(end, End::Idle), "{end:?}");
    let took = since.elapsed();
    assert!(took > IDLE && took < IDLE * 2, "{took:?}");
    assert_eq!(reported, (0, 1));
    assert!(reset.get());
}

#[tokio::test(flavor = "current_thread")]
async fn given_up_it_resets_the_client() {
    let (near, _client) = duplex(64);
    let (upstream, _server) = duplex(64);
    let reset = Rc::<Cell<bool>>::default();
    let relay = Relay::new(Noted(near, Rc::clone(&reset)), upstream);
    let run = relay.run(|_, _| {});
    assert!(
        tokio::time::timeout(Duration::from_millis(5), run)
            .await
            .is_err()
    );
    assert!(reset.get());
}
