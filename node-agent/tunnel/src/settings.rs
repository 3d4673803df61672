//! Every number of the tunnel that a peer can see, and the time limits.
//!
//! The HTTP/2 values are those a stock ztunnel uses, so that either end can be one.

use std::time::Duration;

/// HTTP/2 flow-control window of a stream, bytes.
pub const STREAM_WINDOW: u32 = 4 << 20;
/// HTTP/2 flow-control window of a connection, bytes.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest HTTP/2 frame we accept, bytes.
pub const MAX_FRAME: u32 = 1 << 20;
/// Largest header list a client accepts in a response, bytes as HTTP/2 counts them.
pub const CLIENT_HEADER_LIST: u32 = 16 << 10;
/// Largest header list a server accepts in a request, bytes as HTTP/2 counts them.
pub const SERVER_HEADER_LIST: u32 = 64 << 10;
/// Streams a server lets a peer open at once on a connection.
pub const SERVER_STREAMS: u32 = 200;
/// Streams a client opens at once on a connection, however many the peer would take.
pub const CLIENT_STREAMS: usize = 100;
/// Bytes of a stream a client queues inside HTTP/2 before it stops reading the application.
pub const CLIENT_SEND_BUFFER: usize = 1 << 20;
/// Bytes of a stream a server queues inside HTTP/2 before it stops reading the application.
pub const SERVER_SEND_BUFFER: usize = 400 << 10;

/// Port of the tunnel listener in every pod.
pub const HBONE_PORT: u16 = 15008;

/// Time for a TCP connect to a peer.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a TLS handshake, either side.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the HTTP/2 preface and the first SETTINGS, either side.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the answer to a CONNECT. The server connects to the application first, for which
/// it may take as long as a dial.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two PINGs on a connection that is otherwise silent.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time for the answer to a PING.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Time a pooled connection without streams is kept.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Time a server keeps a connection without streams: longer than a client does, so that it is
/// the client that closes and no stream meets a closing server.
pub const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(420);
