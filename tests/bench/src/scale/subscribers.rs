//! Simulated agents: each has a connection and a stream of its own, subscribes to what a real agent subscribes to, and
//! acknowledges every response at once. They read names and nonces and keep nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::Request;
use karst_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE,
    discovery::{DeltaDiscoveryRequest, Node},
};
use prost::Message as _;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::json;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsConnector;

use super::{
    model::{AGENT_ACCOUNT, Model, SYSTEM_NAMESPACE, agent_uid, node_name, number_of},
    times::Histogram,
    wire,
};

/// HTTP/2 windows, as real agents have them.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// A buffer that has grown to more than this for a large response is given back.
const KEPT_BYTES: usize = 64 * 1024;

/// Subscribers that are served their first state at a time. Agents come up one after the other when their nodes do.
const STARTING: usize = 32;

/// Bytes before each message of gRPC: whether it is compressed, and its length.
const FRAME_BYTES: usize = 5;

/// What all subscribers share.
pub struct Shared {
    pub model: Arc<Model>,
    pub controller: SocketAddr,
    pub tls: Arc<ClientConfig>,
    /// Places for those that start.
    pub starting: Semaphore,
    /// Subscribers that have been told everything once.
    pub synced: AtomicU64,
    /// Bytes of responses, with gRPC's frames and without those of HTTP/2 and TLS.
    pub bytes: AtomicU64,
    pub responses: AtomicU64,
    pub resources: AtomicU64,
    /// Changes from this time on are counted, until the other.
    pub window: (AtomicU64, AtomicU64),
    /// Samples of all subscribers.
    pub counted: AtomicU64,
}

impl Shared {
    /// Subscribers of a controller whose certificate must lead to one of `roots` (PEM).
    pub fn new(model: Arc<Model>, controller: SocketAddr, roots: &[u8]) -> Result<Self> {
        use rustls::pki_types::{CertificateDer, pem::PemObject as _};

        let mut store = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots) {
            store.add(root?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            model,
            controller,
            tls: Arc::new(tls),
            starting: Semaphore::new(STARTING),
            synced: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            responses: AtomicU64::new(0),
            resources: AtomicU64::new(0),
            window: (AtomicU64::new(u64::MAX), AtomicU64::new(0)),
            counted: AtomicU64::new(0),
        })
    }

    fn is_counted(&self, at: u64) -> bool {
        at >= self.window.0.load(Ordering::Relaxed) && at < self.window.1.load(Ordering::Relaxed)
    }
}

/// What one subscriber saw.
#[derive(Default)]
pub struct Seen {
    /// From a change until its acknowledgement was sent.
    pub latencies: Histogram,
}

/// A token that the bench's API server takes for that of a node's agent.
pub fn token(node: u32) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = json!({
        "exp": now + 24 * 3600, "aud": ["karst-ca"],
        "kubernetes.io": {
            "namespace": SYSTEM_NAMESPACE,
            "serviceaccount": {"name": AGENT_ACCOUNT},
            "pod": {"name": agent_uid(node), "uid": agent_uid(node)},
        },
    });
    let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
    // The last part is no signature: the bench's server reads the node there.
    Ok(format!(
        "{}.{}.{}",
        encoded("{}"),
        encoded(&claims.to_string()),
        node_name(node)
    ))
}

/// Subscribes as the agent of a node until told to stop.
pub async fn run(
    shared: Arc<Shared>,
    node: u32,
    mut stopped: watch::Receiver<bool>,
) -> Result<Seen> {
    let place = shared.starting.acquire().await?;
    let tcp = TcpStream::connect(shared.controller)
        .await
        .context("connecting to the controller")?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let tls = TlsConnector::from(shared.tls.clone())
        .connect(name, tcp)
        .await
        .context("TLS with the controller")?;
    let (mut client, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake::<_, Bytes>(tls)
        .await?;
    let connection = tokio::spawn(connection);
    let request = Request::post(
        "https://localhost/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    )
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .header("authorization", format!("Bearer {}", token(node)?))
    .body(())?;
    let (response, requests) = client.send_request(request, false)?;
    let mut subscriber = Subscriber {
        shared: &shared,
        requests,
        seen: Seen::default(),
        complete: Vec::new(),
        names: Vec::new(),
    };
    subscriber.subscribe(node)?;
    let response = response.await.context("opening the stream")?;
    ensure!(
        response.status() == 200 && !response.headers().contains_key("grpc-status"),
        "the controller refused the stream of {}: {:?}",
        node_name(node),
        response.headers()
    );
    let mut responses = response.into_body();
    tokio::select! {
        ended = subscriber.follow(&mut responses, Some(place)) => ended?,
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    connection.abort();
    Ok(subscriber.seen)
}

struct Subscriber<'a> {
    shared: &'a Shared,
    requests: SendStream<Bytes>,
    seen: Seen,
    /// Types of which a complete first response has come.
    complete: Vec<Vec<u8>>,
    /// Times of the changes that a response tells of.
    names: Vec<u64>,
}

impl Subscriber<'_> {
    /// Asks for everything, as agents do.
    fn subscribe(&mut self, node: u32) -> Result<()> {
        for (at, type_url) in [ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE]
            .into_iter()
            .enumerate()
        {
            self.send(&DeltaDiscoveryRequest {
                node: (at == 0).then(|| Node {
                    id: format!("karst-node-agent~{}", node_name(node)),
                    ..Node::default()
                }),
                type_url: type_url.to_owned(),
                ..DeltaDiscoveryRequest::default()
            })?;
        }
        Ok(())
    }

    fn send(&mut self, request: &DeltaDiscoveryRequest) -> Result<()> {
        let length = request.encoded_len();
        let mut frame = BytesMut::with_capacity(FRAME_BYTES + length);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(length)?);
        request.encode(&mut frame)?;
        self.requests.send_data(frame.freeze(), false)?;
        Ok(())
    }

    /// Takes responses until told to stop. `place` is kept until everything has been told once.
    async fn follow<P>(&mut self, responses: &mut RecvStream, mut place: Option<P>) -> Result<()> {
        let mut buffer = BytesMut::new();
        loop {
            let Some(data) = responses.data().await else {
                let trailers = responses.trailers().await;
                bail!("the controller ended a stream: {trailers:?}");
            };
            let data = data?;
            responses.flow_control().release_capacity(data.len())?;
            self.shared
                .bytes
                .fetch_add(data.len() as u64, Ordering::Relaxed);
            buffer.extend_from_slice(&data);
            while let Some(message) = take(&mut buffer)? {
                self.take(&message)?;
                if self.complete.len() == 3 && place.take().is_some() {
                    self.shared.synced.fetch_add(1, Ordering::Relaxed);
                }
            }
            if buffer.is_empty() && buffer.capacity() > KEPT_BYTES {
                buffer = BytesMut::new();
            }
        }
    }

    fn take(&mut self, message: &[u8]) -> Result<()> {
        let times = &self.shared.model.times;
        let changes = &mut self.names;
        changes.clear();
        let response = wire::read(message, |name, is_gone| {
            let Some(number) = number_of(name) else {
                return;
            };
            let at = match is_gone {
                true => times.gone(number),
                false => times.changed(number),
            };
            changes.extend(at);
        })?;
        if !response.is_partial && !self.complete.iter().any(|one| one == response.type_url) {
            self.complete.push(response.type_url.to_vec());
        }
        let answer = DeltaDiscoveryRequest {
            type_url: String::from_utf8(response.type_url.to_vec())?,
            response_nonce: String::from_utf8(response.nonce.to_vec())?,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(&answer)?;
        let now = times.now();
        let mut counted = 0;
        for at in self.names.drain(..) {
            if self.shared.is_counted(at) {
                self.seen.latencies.add(now.saturating_sub(at));
                counted += 1;
            }
        }
        self.shared.counted.fetch_add(counted, Ordering::Relaxed);
        self.shared.responses.fetch_add(1, Ordering::Relaxed);
        self.shared
            .resources
            .fetch_add(response.resources.into(), Ordering::Relaxed);
        Ok(())
    }
}

/// Takes a whole message out of what has come.
fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some((frame, _)) = buffer.split_first_chunk::<FRAME_BYTES>() else {
        return Ok(None);
    };
    ensure!(
        frame[0] == 0,
        "a compressed response, which was not asked for"
    );
    let length = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize;
    if buffer.len() < FRAME_BYTES + length {
        return Ok(None);
    }
    buffer.advance(FRAME_BYTES);
    Ok(Some(buffer.split_to(length).freeze()))
}
