//! Socket to stream.
use super::*;
pub(super) async fn relay(_tcp: TcpStream, _stream: HboneStream, _counters: &Counters) -> RelayEnd {
    RelayEnd::TunnelFailed
}
