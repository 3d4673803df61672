//! The client hello of TLS: who is asked for, before it is decided what to do with the connection.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::reason::Reason;

/// Time for a client hello and, where TLS ends here, for the handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// Most bytes of a client hello that are looked at. Those with post-quantum keys have about 2 KB, and the largest
/// that browsers send fit into a record of 16 KB.
const MAX_HELLO: usize = 32 << 10;

/// Alerts that are sent to clients that cannot be served (RFC 8446, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alert {
    /// No listener is for the host name.
    UnrecognizedName,
    /// There is no certificate.
    InternalError,
}

impl Alert {
    fn record(self) -> [u8; 7] {
        let code = match self {
            Self::UnrecognizedName => 112,
            Self::InternalError => 80,
        };
        // A fatal alert in a record of TLS 1.2's version, which is what all versions begin with.
        [21, 3, 3, 0, 2, 2, code]
    }

    /// Sends it; what becomes of it is the client's business.
    pub async fn send<IO: AsyncWrite + Unpin>(self, io: &mut IO) {
        let sent = async {
            io.write_all(&self.record()).await?;
            io.shutdown().await
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), sent).await;
    }
}

/// What a client hello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Host name asked for, in lower case.
    pub server_name: Option<String>,
}

/// Why there is no client hello.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// It is none, or none that can be understood.
    #[error("the client hello is invalid: {0}")]
    Invalid(rustls::Error),
    /// It has no end.
    #[error("the client hello is larger than {MAX_HELLO} bytes")]
    TooLarge,
    /// The client went away.
    #[error("the client went away before its client hello: {0}")]
    Gone(io::Error),
    /// It was not there in time.
    #[error("no client hello within {} s", HANDSHAKE.as_secs())]
    Timeout,
}

impl HelloError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Invalid(_) | Self::TooLarge => Reason::BadClientHello,
            Self::Gone(_) => Reason::ClientGone,
            Self::Timeout => Reason::FirstBytesTimeout,
        }
    }
}

/// Reads a client hello from `io`; all that was read is in `read`, to be handed on or read again.
///
/// # Errors
/// There is none, or not in time.
pub async fn read<IO>(io: &mut IO, read: &mut BytesMut) -> Result<Hello, HelloError>
where
    IO: AsyncRead + Unpin,
{
    let reading = tokio::time::timeout(HANDSHAKE, read_all(io, read));
    reading.await.unwrap_or(Err(HelloError::Timeout))
}

async fn read_all<IO>(io: &mut IO, read: &mut BytesMut) -> Result<Hello, HelloError>
where
    IO: AsyncRead + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut seen = 0;
    loop {
        let mut new = &read[seen..];
        while !new.is_empty() {
            let taken = acceptor.read_tls(&mut new).map_err(HelloError::Gone)?;
            let accepted = acceptor.accept();
            match accepted {
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(lower);
                    return Ok(Hello { server_name: name });
                }
                Ok(None) if taken == 0 => break,
                Ok(None) => {}
                Err((error, _)) => return Err(HelloError::Invalid(error)),
            }
        }
        seen = read.len();
        if seen >= MAX_HELLO {
            return Err(HelloError::TooLarge);
        }
        match io.read_buf(read).await {
            Ok(0) => return Err(HelloError::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(HelloError::Gone(error)),
        }
    }
}

fn lower(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::BytesMut;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt;

    use super::{HelloError, MAX_HELLO, read};

    fn hello(name: &'static str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("written");
        bytes
    }

    #[tokio::test]
    async fn the_name_is_read_and_nothing_is_lost() {
        let bytes = hello("Shop.Example.com");
        let (mut near, mut far) = tokio::io::duplex(64);
        let sent = bytes.clone();
        // In pieces, of which none is a whole record.
        tokio::spawn(async move {
            for piece in sent.chunks(7) {
                far.write_all(piece).await.expect("written");
            }
            far
        });
        let mut buffer = BytesMut::new();
        let hello = read(&mut near, &mut buffer).await.expect("a hello");
        assert_eq!(hello.server_name.as_deref(), Some("shop.example.com"));
        assert!(bytes.starts_with(&buffer));
    }

    #[tokio::test]
    async fn what_is_none_is_refused() {
        let mut io: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
        let outcome = read(&mut io, &mut BytesMut::new()).await;
        assert!(
            matches!(outcome, Err(HelloError::Invalid(_))),
            "{outcome:?}"
        );
    }

    #[tokio::test]
    async fn one_without_end_is_refused() {
        // Records of a handshake message that says it is 16 MB long.
        let mut bytes = Vec::new();
        while bytes.len() <= 2 * MAX_HELLO {
            bytes.extend_from_slice(&[0x16, 3, 1, 0x10, 0]);
            let start = if bytes.len() == 5 {
                &[1, 0xff, 0xff, 0xff][..]
            } else {
                &[]
            };
            bytes.extend_from_slice(start);
            bytes.resize(bytes.len() + 0x1000 - start.len(), 0);
        }
        let mut io: &[u8] = &bytes;
        let outcome = read(&mut io, &mut BytesMut::new()).await;
        let refused = matches!(outcome, Err(HelloError::TooLarge | HelloError::Invalid(_)));
        assert!(refused, "{outcome:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_come_is_not_waited_for() {
        let (mut near, _far) = tokio::io::duplex(64);
        let outcome = read(&mut near, &mut BytesMut::new()).await;
        assert!(matches!(outcome, Err(HelloError::Timeout)), "{outcome:?}");
    }
}
