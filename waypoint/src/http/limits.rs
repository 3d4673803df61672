//! Limits of what a client may make the proxy hold or wait for.

use std::time::Duration;

/// Bytes of a request's head, both versions: request line, names and values. More: 431, as for more than 100
/// fields of HTTP/1, which is hyper's limit. As Envoy's default, so that what passed one proxy passes the other.
pub const MAX_HEAD_BYTES: usize = 60 << 10;

/// Buffer of an HTTP/1 connection, bytes; it holds a head and bounds what is read ahead of a slow reader.
pub const HTTP1_BUFFER_BYTES: usize = 128 << 10;

/// Streams open at once on an HTTP/2 connection.
pub const MAX_STREAMS: u32 = 256;

/// Receive window of an HTTP/2 stream, bytes.
pub const STREAM_WINDOW: u32 = 256 << 10;

/// Receive window of an HTTP/2 connection, bytes: what all its streams together may make us hold.
pub const CONNECTION_WINDOW: u32 = 1 << 20;

/// Response bytes that wait for the window of an HTTP/2 client, a stream.
pub const SEND_BUFFER_BYTES: usize = 128 << 10;

/// Streams that a client reset before we looked at them; more close the connection ("rapid reset",
/// CVE-2023-44487).
pub const MAX_PENDING_RESETS: usize = 20;

/// Streams that we had to reset for the client's errors; more close the connection.
pub const MAX_LOCAL_RESETS: usize = 64;

/// PING after this silence on an HTTP/2 connection; it finds dead peers that hold streams.
pub const PING_INTERVAL: Duration = Duration::from_secs(60);

/// Time for the answer to a PING.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// From the first byte of a head to its last (slow headers).
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection without a request under way is closed after this time.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// Longest pause in a request body that we wait for before the response has begun (slow bodies); gRPC is
/// exempt, its clients may be silent in the middle of a call.
pub const BODY_PAUSE: Duration = Duration::from_secs(60);

/// From the start of draining to the end of the connection, whatever is still under way on it.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(3600);

/// Time for which a client may go on sending after our last word on an HTTP/1 connection.
pub const LINGER: Duration = Duration::from_secs(1);

/// What it may send in that time, bytes.
pub const LINGER_BYTES: u64 = 256 << 10;

/// Time a connection that was idle for too long has to say goodbye.
pub const LAST_WORDS: Duration = Duration::from_secs(5);

/// Time an application may take to ask for the body after `Expect: 100-continue`; then the body is sent unasked
/// (RFC 9110, section 10.1.1 forbids to wait for ever).
pub const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of a request body kept to be sent again by a retry. A longer one is not retried once it has begun.
pub const REPLAY_BYTES: usize = 64 << 10;

/// Bytes of a request body that a mirror may lag behind; then the copy is broken off.
pub const MIRROR_LAG_BYTES: usize = 256 << 10;

/// Time for a mirror to answer, to the end of its body.
pub const MIRROR_TIMEOUT: Duration = Duration::from_secs(30);

/// Mirrored requests under way at once in a worker; more are not mirrored.
pub const MAX_MIRRORS: usize = 1024;

/// Attempts more than the first for requests that no application has seen, without any policy.
pub const CONNECT_RETRIES: u32 = 2;

/// Longest wait between two attempts.
pub const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Longest `x-request-id` taken over from a client, bytes.
pub const MAX_REQUEST_ID: usize = 128;

/// Limits of a server that tests make smaller; [`Default`] gives those of production.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// See [`HEAD_TIMEOUT`].
    pub head: Duration,
    /// See [`IDLE_TIMEOUT`].
    pub idle: Duration,
    /// See [`BODY_PAUSE`].
    pub body_pause: Duration,
    /// See [`DRAIN_TIMEOUT`].
    pub drain: Duration,
    /// See [`MAX_STREAMS`].
    pub streams: u32,
    /// How many forward proxies in front of this one are trusted to tell their client's address.
    pub trusted_hops: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            head: HEAD_TIMEOUT,
            idle: IDLE_TIMEOUT,
            body_pause: BODY_PAUSE,
            drain: DRAIN_TIMEOUT,
            streams: MAX_STREAMS,
            trusted_hops: 0,
        }
    }
}
