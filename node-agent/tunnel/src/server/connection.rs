//! One tunnel connection of a server.

use super::*;

pub(super) async fn serve<H: InboundHandler>(
    _tcp: TcpStream,
    cert: Arc<WorkloadCertificate>,
    _limits: &ServerLimits,
    _shutdown: watch::Receiver<Drain>,
    _handler: Rc<H>,
) -> Result<ServeEnd, TunnelError> {
    Err(TunnelError::NoCertificate {
        expected: cert.id().clone(),
    })
}
