//! HTTP/2 on one connection, without TLS and without asking first, one request after the other.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use tokio::{
    net::TcpStream,
    runtime::{Builder, Runtime},
    time::timeout,
};

use super::LIMIT;

/// A window that no body of the benchmark fills, bytes.
const WINDOW: u32 = 1 << 20;

/// A kept connection. It has a runtime of its own, which runs while a request is under way.
pub struct Http2 {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
    request: Request<()>,
}

impl Http2 {
    /// Connects.
    pub fn open(address: SocketAddr, path: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime")?;
        let open = async {
            let stream = TcpStream::connect(address)
                .await
                .with_context(|| format!("connecting to {address}"))?;
            stream.set_nodelay(true).context("setting TCP_NODELAY")?;
            let (sender, connection) = h2::client::Builder::new()
                .initial_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .handshake(stream)
                .await
                .context("beginning HTTP/2")?;
            // Its failure shows in the requests.
            tokio::spawn(connection);
            Ok::<_, anyhow::Error>(sender)
        };
        let sender = runtime
            .block_on(async { timeout(LIMIT, open).await })
            .context("no connection in time")??;
        let request = Request::get(format!("http://server{path}"))
            .body(())
            .context("making a request")?;
        Ok(Self {
            runtime,
            sender,
            request,
        })
    }

    /// One request and its whole answer.
    pub fn get(&mut self) -> Result<()> {
        let exchange = exchange(self.sender.clone(), self.request.clone());
        self.runtime
            .block_on(async { timeout(LIMIT, exchange).await })
            .context("no answer in time")?
    }
}

async fn exchange(sender: SendRequest<Bytes>, request: Request<()>) -> Result<()> {
    let mut sender = sender.ready().await.context("the connection ended")?;
    let (answer, _body) = sender
        .send_request(request, true)
        .context("sending a request")?;
    let answer = answer.await.context("reading an answer")?;
    let status = answer.status();
    ensure!(status == StatusCode::OK, "the server answered {status}");
    let mut body = answer.into_body();
    while let Some(data) = body.data().await {
        // A body that is not as long as was said is an error of HTTP/2.
        let data = data.context("reading a body")?;
        body.flow_control()
            .release_capacity(data.len())
            .context("reading a body")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use http::Response;

    use super::*;

    /// A server of one connection that answers every request with a body, saying that it is so long.
    fn serve(status: StatusCode, body: &'static [u8], length: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let stream = TcpStream::from_std(stream).unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_request, mut answer))) = connection.accept().await {
                    let head = Response::builder()
                        .status(status)
                        .header("content-length", length);
                    let mut stream = answer.send_response(head.body(()).unwrap(), false).unwrap();
                    stream.send_data(Bytes::from_static(body), true).unwrap();
                }
            });
        });
        address
    }

    #[test]
    fn requests_follow_each_other_on_a_connection() {
        let mut connection = Http2::open(serve(StatusCode::OK, b"ab", 2), "/x").unwrap();
        for _ in 0..3 {
            connection.get().unwrap();
        }
    }

    #[test]
    fn a_bad_answer_is_an_error() {
        for (status, length) in [(StatusCode::SERVICE_UNAVAILABLE, 2), (StatusCode::OK, 9)] {
            let mut connection = Http2::open(serve(status, b"ab", length), "/").unwrap();
            assert!(connection.get().is_err(), "{status} {length}");
        }
    }
}
