//! Fetches keys in the background: one task for each source, a few of them on the network at once.
//!
//! No redirect is followed: where keys are from is for the configuration to say, and not for whoever answers there.
//! Addresses where clouds keep their machines' credentials are not asked: link-local ones, and some others.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;

use super::keys::{KeySet, MAX_BYTES};
use super::source::{KeySource, KeySources, NewSources};

/// Fetches at once. A few hundred issuers are through within seconds, and no proxy floods one.
const MAX_FETCHES: usize = 8;

/// Size of the head of a response, bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Addresses of a host that are tried within the time of a fetch.
const MAX_ADDRESSES: usize = 4;

/// Why keys could not be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FetchError {
    Unresolved,
    NotAllowed,
    Connect,
    NoAuthorities,
    Tls,
    Http,
    Redirect,
    Status(StatusCode),
    TooLarge,
    Keys(super::keys::KeysError),
    Timeout,
}

impl FetchError {
    /// The label in metrics.
    fn result(self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::NotAllowed => "address_not_allowed",
            Self::Connect => "connect_failed",
            Self::NoAuthorities => "no_authorities",
            Self::Tls => "tls_failed",
            Self::Http => "http_error",
            Self::Redirect => "redirect",
            Self::Status(_) => "status",
            Self::TooLarge => "too_large",
            Self::Keys(_) => "invalid",
            Self::Timeout => "timeout",
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the answer has the status {}", status.as_u16()),
            Self::Keys(error) => write!(f, "the answer {error}"),
            Self::Unresolved => f.write_str("the host has no address"),
            Self::NotAllowed => f.write_str("the host has no address that may be asked"),
            Self::Connect => f.write_str("no connection"),
            Self::NoAuthorities => {
                f.write_str("the file that SSL_CERT_FILE names has no authority that can be used")
            }
            Self::Tls => f.write_str("the TLS handshake failed"),
            Self::Http => f.write_str("the answer is no HTTP"),
            Self::Redirect => f.write_str("the answer is a redirect, which is not followed"),
            Self::TooLarge => write!(f, "the answer is larger than {MAX_BYTES} bytes"),
            Self::Timeout => f.write_str("it took too long"),
        }
    }
}

struct Fetcher {
    sources: Arc<KeySources>,
    slots: Semaphore,
    /// Without it nothing is got by HTTPS.
    tls: Option<Arc<ClientConfig>>,
}

/// Fetches for all sources that there are, and for new ones, for as long as the process runs. It must run on a thread
/// that serves no requests: reading keys takes milliseconds.
pub async fn run(sources: Arc<KeySources>, new: NewSources) {
    let tls = crate::config::system_client_config();
    run_with(sources, new, tls.ok()).await;
}

/// Likewise, with authorities of one's own.
pub(crate) async fn run_with(
    sources: Arc<KeySources>,
    mut new: NewSources,
    tls: Option<Arc<ClientConfig>>,
) {
    let fetcher = Rc::new(Fetcher {
        sources,
        slots: Semaphore::new(MAX_FETCHES),
        tls,
    });
    while let Some(source) = new.recv().await {
        spawn_local(Rc::clone(&fetcher).follow(source));
    }
}

impl Fetcher {
    /// Fetches for a source until nobody has it any more.
    async fn follow(self: Rc<Self>, source: Weak<KeySource>) {
        let timing = self.sources.timing();
        let mut failures = 0_u32;
        loop {
            let Some(current) = source.upgrade() else {
                return;
            };
            let Ok(slot) = self.slots.acquire().await else {
                return;
            };
            let fetched = tokio::time::timeout(current.timeout, self.fetch(&current.uri)).await;
            drop(slot);
            let fetched = fetched.unwrap_or(Err(FetchError::Timeout));
            self.sources.count(match &fetched {
                Ok(_) => "ok",
                Err(error) => error.result(),
            });
            let wait = match &fetched {
                Ok(_) => {
                    failures = 0;
                    timing.refresh
                }
                Err(error) => {
                    tracing::warn!(
                        reason = "jwks_unavailable",
                        host = current.uri.host(),
                        path = current.uri.path(),
                        %error,
                        "keys not fetched; those that there are stay"
                    );
                    failures = failures.saturating_add(1);
                    let doubled = timing.backoff.saturating_mul(1 << (failures - 1).min(16));
                    doubled.min(timing.max_backoff)
                }
            };
            current.fetched(fetched.ok());
            let wake = current.wake();
            drop(current);
            // Proxies that started together do not ask together.
            let wait = wait.mul_f64(0.9 + 0.1 * rand::random::<f64>());
            let pause = tokio::time::sleep(wait);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = wake.notified() => {}
                }
                let wanted = source.upgrade();
                if wanted.is_none_or(|source| source.may_fetch()) {
                    break;
                }
            }
        }
    }

    async fn fetch(&self, uri: &Uri) -> Result<KeySet, FetchError> {
        let host = uri.host().unwrap_or_default();
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let stream = connect(name, port).await?;
        let body = if is_tls {
            let name = ServerName::try_from(name.to_owned()).map_err(|_| FetchError::Tls)?;
            let tls = self.tls.as_ref().ok_or(FetchError::NoAuthorities)?;
            let connector = TlsConnector::from(Arc::clone(tls));
            let stream = connector.connect(name, stream).await;
            get(stream.map_err(|_| FetchError::Tls)?, uri).await?
        } else {
            get(stream, uri).await?
        };
        KeySet::read(&body).map_err(FetchError::Keys)
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, FetchError> {
    let addresses = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<SocketAddr> = addresses.map_err(|_| FetchError::Unresolved)?.collect();
    if addresses.is_empty() {
        return Err(FetchError::Unresolved);
    }
    let mut error = FetchError::NotAllowed;
    let allowed = addresses.iter().filter(|address| is_allowed(address.ip()));
    for address in allowed.take(MAX_ADDRESSES) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(_) => error = FetchError::Connect,
        }
    }
    Err(error)
}

/// Metadata servers that are not link-local: of Alibaba, Oracle, Amazon and Google.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Where NAT64 has IPv4 addresses (RFC 6052).
const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

fn is_allowed(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if METADATA.contains(&address) {
        return false;
    }
    match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) if address.segments().starts_with(&NAT64) => {
            let [.., a, b, c, d] = address.octets();
            is_allowed(Ipv4Addr::new(a, b, c, d).into())
        }
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    }
}

async fn get<S>(stream: S, uri: &Uri) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let handshake = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = handshake.map_err(|_| FetchError::Http)?;
    let connection = AbortOnDrop(spawn_local(connection));
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = target.parse().map_err(|_| FetchError::Http)?;
    let headers = request.headers_mut();
    let host = HeaderValue::try_from(host).map_err(|_| FetchError::Http)?;
    headers.insert(HOST, host);
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static("karst-waypoint"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let response = sender.send_request(request).await;
    let response = response.map_err(|_| FetchError::Http)?;
    let status = response.status();
    if status.is_redirection() {
        return Err(FetchError::Redirect);
    }
    if status != StatusCode::OK {
        return Err(FetchError::Status(status));
    }
    let body = Limited::new(response.into_body(), MAX_BYTES)
        .collect()
        .await;
    drop(connection);
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(FetchError::TooLarge),
        Err(_) => Err(FetchError::Http),
    }
}

/// Ends a connection with the fetch that it is for, however that ends.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn machines_credentials_are_not_asked_for() {
        for (address, expected) in [
            ("169.254.169.254", false),
            ("::ffff:169.254.169.254", false),
            ("fe80::1", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("64:ff9b::a00:1", true),
            ("100.100.100.200", false),
            ("100.100.100.201", true),
            ("192.0.0.192", false),
            ("fd00:ec2::254", false),
            ("fd00:ec2::253", true),
            ("fd20:ce::254", false),
            ("10.0.0.1", true),
            ("127.0.0.1", true),
            ("2001:db8::1", true),
        ] {
            assert_eq!(is_allowed(address.parse().unwrap()), expected, "{address}");
        }
    }
}
