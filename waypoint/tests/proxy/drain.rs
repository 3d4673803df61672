//! The end of the process.

use std::time::{Duration, Instant};

use karst_api::waypoint::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{World, application, echo, run, talk};
use crate::wires;

async fn world() -> World {
    let mut world = World::new().await;
    world.backend(&wires::backend("echo", &[application(echo).await]));
    world.listener(&wires::service(Protocol::Tcp, "echo", Vec::new()));
    world
}

/// Waits for the proxy's end without blocking this thread, on which its peers live.
async fn ended(proxy: std::thread::JoinHandle<()>) {
    while !proxy.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.join().unwrap();
}

#[test]
fn what_is_under_way_may_end() {
    run(async {
        let mut world = world().await;
        let mut io = world.open("10.96.0.1:80").await.unwrap();
        io.write_all(b"x").await.unwrap();
        let mut byte = [0; 1];
        io.read_exact(&mut byte).await.unwrap();
        let since = Instant::now();
        let proxy = world.stop(Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!proxy.is_finished(), "it waits for the stream");
        assert_eq!(talk(&mut io, "last words").await.unwrap(), "last wordsbye");
        drop(io);
        ended(proxy).await;
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "{:?}",
            since.elapsed()
        );
    });
}

#[test]
fn what_does_not_end_is_reset_at_the_deadline() {
    run(async {
        let mut world = world().await;
        let mut io = world.open("10.96.0.1:80").await.unwrap();
        io.write_all(b"x").await.unwrap();
        let mut byte = [0; 1];
        io.read_exact(&mut byte).await.unwrap();
        let proxy = world.stop(Duration::from_millis(100));
        let outcome = io.read(&mut byte).await;
        assert!(outcome.is_err(), "{outcome:?}");
        ended(proxy).await;
    });
}
