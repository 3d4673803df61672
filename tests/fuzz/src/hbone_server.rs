//! Bytes inside of the mutual TLS of a tunnel through its server: HTTP/2, and the headers of a CONNECT.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use karst_identity::{SpiffeId, WorkloadCertificate};
use karst_tunnel::headers::{Authority, Baggage, Forwarded, SourceHeaders, TraceParent};
use karst_tunnel::server::{
    Answer, ConnectRequest, Drain, InboundHandler, Refusal, RefusalStatus, ServerLimits, serve,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

/// Both ends are on this machine, and the client closes: a server that takes this long hangs.
const LONGEST: Duration = Duration::from_secs(10);

/// How long the client waits for answers before it closes; who closes at once is taken for gone.
const PATIENCE: Duration = Duration::from_millis(3);

/// Bytes of all headers of a CONNECT.
const HEADER_BYTES: usize = 8 * 1024;

thread_local! {
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().enable_all().build().unwrap());
}

/// Reads the input as headers, and sends it over a tunnel connection.
pub fn run(data: &[u8]) {
    read_headers(data);
    RUNTIME.with_borrow_mut(|runtime| {
        let local = LocalSet::new();
        let limited = async { tokio::time::timeout(LONGEST, converse(data, PATIENCE)).await };
        let ended = local.block_on(runtime, limited);
        assert!(ended.is_ok(), "the server does not close");
    });
}

/// What is read and written again reads the same.
fn read_headers(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(authority) = Authority::parse(text)
    {
        let again = Authority::parse(&authority.to_string()).unwrap();
        assert_eq!(again.to_string(), authority.to_string());
    }
    let _ = Baggage::parse(data).to_value();
    let _ = Forwarded::parse(data).and_then(|forwarded| forwarded.to_value());
    let _ = TraceParent::parse(data).map(|trace| trace.to_value());
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        for name in ["baggage", "forwarded", "traceparent"] {
            if let Ok(value) = HeaderValue::from_bytes(line) {
                let _ = headers.try_append(HeaderName::from_static(name), value);
            }
        }
    }
    if let Ok(source) = SourceHeaders::parse(&headers, HEADER_BYTES) {
        source.write(&mut headers);
    }
}

/// Refuses everybody: what is tried is how requests are read.
struct Refuses;

impl InboundHandler for Refuses {
    fn connect(&self, request: ConnectRequest) -> impl Future<Output = Result<Answer, Refusal>> {
        assert_ne!(request.authority.port(), 0);
        std::future::ready(Err(Refusal {
            status: RefusalStatus::Denied,
            reason: "denied",
        }))
    }
}

async fn converse(data: &[u8], patience: Duration) -> Vec<u8> {
    let (server, client) = certificates();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    let (accepted, connected) = (accepted.unwrap().0, connected.unwrap());
    let limits = ServerLimits::new(1);
    let (_stays, drain) = watch::channel(Drain::Running);
    let served = serve(
        accepted,
        Arc::clone(server),
        &limits,
        drain,
        Rc::new(Refuses),
    );
    let asking = async {
        let config = client.client_config(server.id()).unwrap();
        let name = ServerName::try_from("unused.example").unwrap();
        let mut tls = TlsConnector::from(config)
            .connect(name, connected)
            .await
            .unwrap();
        // The server may have closed by then.
        let _ = tls.write_all(data).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(patience, tls.read_to_end(&mut answer)).await;
        let _ = tls.shutdown().await;
        let _ = tls.read_to_end(&mut answer).await;
        answer
    };
    // How it ends is not the question, only that it does.
    tokio::join!(served, asking).1
}

fn certificates() -> &'static (Arc<WorkloadCertificate>, Arc<WorkloadCertificate>) {
    static PAIR: OnceLock<(Arc<WorkloadCertificate>, Arc<WorkloadCertificate>)> = OnceLock::new();
    PAIR.get_or_init(|| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        let issue = |account: &str| {
            let id = SpiffeId::new("cluster.local", "fuzz", account).unwrap();
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            let chain = params.signed_by(&key, &authority).unwrap().pem();
            let (key, roots) = (key.serialize_pem(), authority.pem());
            Arc::new(WorkloadCertificate::from_pem(id, &chain, &key, &roots).unwrap())
        };
        (issue("server"), issue("client"))
    })
}

/// A client's side of HTTP/2 with one request: preface, SETTINGS, HEADERS (RFC 9113), and headers as literals
/// that are not indexed (RFC 7541 6.2.2).
pub(crate) fn http2(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            // Below 127 a length is one byte.
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let length = u32::try_from(block.len()).unwrap().to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    // HEADERS with END_HEADERS and END_STREAM on stream 1.
    bytes.extend_from_slice(&[1, 5, 0, 0, 0, 1]);
    bytes.extend_from_slice(&block);
    bytes
}

/// Requests of tunnels, and values of their headers.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let connect = |authority: &str| {
        http2(&[
            (":method", "CONNECT"),
            (":authority", authority),
            ("forwarded", "for=\"10.0.0.1:4000\""),
            (
                "baggage",
                "k8s.namespace.name=n,k8s.pod.name=p,service.name=s",
            ),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
        ])
    };
    let values: [&[u8]; 6] = [
        b"10.0.0.1:80",
        b"[fd00::1]:15008",
        b"s.n.svc.cluster.local:80",
        b"for=\"[fd00::1]:80\";proto=https, for=_hidden",
        b"k8s.cluster.name=c,k8s.namespace.name=n,k8s.deployment.name=d,service.name=%20s",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ];
    let mut seeds = vec![
        connect("10.0.0.1:80"),
        connect("s.n.svc.cluster.local:80"),
        http2(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a:1"),
        ]),
    ];
    seeds.extend(values.iter().map(|value| value.to_vec()));
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_refused_by_the_handler() {
        RUNTIME.with_borrow_mut(|runtime| {
            let asked = seeds().into_iter().next().unwrap();
            let answer =
                LocalSet::new().block_on(runtime, converse(&asked, Duration::from_secs(5)));
            // HEADERS on stream 1: the server has read the request, and answers.
            let on_first = answer
                .windows(6)
                .any(|frame| frame[..1] == [1] && frame[2..] == [0, 0, 0, 1]);
            assert!(on_first, "{}", answer.escape_ascii());
        });
    }
}
