//! The servers of `karst-testapp serve`. Each listens on IPv4 and IPv6 unless it says
//! otherwise.

/// HTTP/1.1, HTTP/2 without TLS, gRPC echo and WebSocket echo; a page tells in JSON what the
/// server saw of the connection and the request.
pub const HTTP: u16 = 8080;
/// TCP echo.
pub const ECHO: u16 = 7000;
/// The server speaks first: a line, then echo.
pub const BANNER: u16 = 7001;
/// UDP echo, answering from the address the datagram was sent to.
pub const UDP_ECHO: u16 = 7002;
/// Reads to the end, then answers with a JSON line of the number of bytes and their hash.
pub const SINK: u16 = 7003;
/// Reads a line with a number, sends so many bytes, then their hash, and closes.
pub const SOURCE: u16 = 7004;
/// Tells in a JSON line what `accept()`, `getpeername()` and `getsockname()` say; an IPv4
/// socket.
pub const PEER_V4: u16 = 7005;
/// The same; an IPv6 socket that takes IPv4 too.
pub const PEER_DUAL: u16 = 7006;
/// Reads a line, then resets the connection.
pub const RESET: u16 = 7007;
/// Sends a line, ends its sending side, then reads to the end and tells what came.
pub const FIRST_TO_END: u16 = 7008;
/// Reads very slowly.
pub const SLOW: u16 = 7009;
/// Carries out the plan that a connection of `stress` begins with.
pub const STRESS: u16 = 7010;
/// The same, and the server speaks first.
pub const STRESS_FIRST: u16 = 7011;
/// Sends a JSON line of what came of the connections to the other two, and closes.
pub const STRESS_TOTALS: u16 = 7012;
