//! Socket to socket.
use super::*;
pub(super) async fn relay(_a: TcpStream, _b: TcpStream, _counters: &Counters) -> RelayEnd {
    RelayEnd::TunnelFailed
}
