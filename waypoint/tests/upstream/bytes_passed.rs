//! Connections whose bytes are passed on.

use karst_api::waypoint::{ConnectionLimits, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::app::raw;
use crate::support::{Proxy, client};
use crate::tunnel::{echo_app, on_worker, until};

#[test]
fn bytes_pass_in_both_directions() {
    on_worker(async {
        let app = echo_app().await;
        let proxy = Proxy::plain(Protocol::Tcp, &[app]);
        let mut stream = proxy
            .upstream
            .connect(&proxy.pick(), &client())
            .await
            .unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"hello");
        assert_eq!(proxy.cluster.stats().connections, 1);
        drop(stream);
        assert_eq!(proxy.cluster.stats().connections, 0);
    });
}

#[test]
fn connections_beyond_the_limit_are_turned_away() {
    on_worker(async {
        let app = raw(|mut tcp, _| async move {
            let _ = tcp.read(&mut [0]).await;
        })
        .await;
        let limits = ConnectionLimits {
            max_connections: 2,
            connect_timeout_ms: 200,
            ..ConnectionLimits::default()
        };
        let proxy = Proxy::limited(Protocol::Tcp, &[app.address], limits);
        let (picked, client) = (proxy.pick(), client());
        let connect = || proxy.upstream.connect(&picked, &client);
        let first = connect().await.unwrap();
        let _second = connect().await.unwrap();
        let error = connect().await.err().unwrap();
        assert!(
            ["overloaded_connections", "upstream_connect_timeout"].contains(&error.reason()),
            "{error}"
        );
        drop(first);
        assert!(connect().await.is_ok());
        until("one is left", || app.seen.open.get() == 1).await;
    });
}
