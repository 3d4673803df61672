//! Calls collectors from the node's own network, in plain text: an agent has no identity of its own in the mesh.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use karst_telemetry::export::{ExportError, Transport};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::transport::{Channel, Endpoint};

use crate::state::MeshState;
use crate::state::endpoint::now_ms;

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(5);

/// Largest answer that is read, bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Finds collectors in the mesh state, and keeps a connection to each.
#[derive(Debug)]
pub struct NodeTransport {
    state: Arc<MeshState>,
    channels: RefCell<HashMap<String, (SocketAddr, Channel)>>,
}

impl NodeTransport {
    /// Without connections.
    pub fn new(state: Arc<MeshState>) -> Self {
        Self {
            state,
            channels: RefCell::default(),
        }
    }

    /// An endpoint of the Service; the one of before as long as it is one.
    fn endpoint(&self, collector: &str) -> Option<SocketAddr> {
        let (service, port) = collector.rsplit_once('/')?;
        let service = self.state.service(service)?;
        let endpoints = service.ports.get(&port.parse::<u16>().ok()?)?;
        let address = |endpoint: &crate::state::endpoint::Endpoint| {
            let ip = endpoint.workload.addresses.first()?;
            Some(SocketAddr::new(*ip, endpoint.target_port))
        };
        let channels = self.channels.borrow();
        let former = channels.get(collector).map(|(address, _)| *address);
        let stays =
            former.filter(|former| endpoints.iter().filter_map(address).any(|it| it == *former));
        stays.or_else(|| address(endpoints.choose(&[], now_ms())?))
    }

    fn channel(&self, collector: &str) -> Result<Channel, ExportError> {
        let Some(address) = self.endpoint(collector) else {
            let message = format!("{collector} has no endpoint that this agent knows");
            return Err(ExportError::unreachable(message));
        };
        let mut channels = self.channels.borrow_mut();
        if let Some((of, channel)) = channels.get(collector)
            && *of == address
        {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.map_err(ExportError::unreachable)?;
        let channel = endpoint.connect_timeout(CONNECT).connect_lazy();
        channels.insert(collector.to_owned(), (address, channel.clone()));
        Ok(channel)
    }
}

impl Transport for NodeTransport {
    async fn export(
        &self,
        collector: &str,
        request: ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, ExportError> {
        let channel = self.channel(collector)?;
        let client = TraceServiceClient::new(channel);
        let mut client = client.max_decoding_message_size(MAX_ANSWER_BYTES);
        match client.export(request).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => {
                // The next try may be at another endpoint.
                self.channels.borrow_mut().remove(collector);
                let code = i32::from(status.code());
                let code = u32::try_from(code).unwrap_or_default();
                Err(ExportError::of_grpc(code, status.message()))
            }
        }
    }
}
