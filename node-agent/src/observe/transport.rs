//! Calls collectors from the node's own network, in plain text: an agent has no identity of its own in the mesh.

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error as _;
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

/// Said of every failure that is not the collector's answer: one that takes TLS alone just ends the connection.
const PLAIN: &str = "agents send spans in plain text, so a port that takes TLS alone gets none";

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
                let message = status.message();
                // A status of the collector's own has no source.
                Err(match status.source() {
                    Some(_) => ExportError::of_grpc(code, format_args!("{message}; {PLAIN}")),
                    None => ExportError::of_grpc(code, message),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use karst_telemetry::export::Transport as _;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::NodeTransport;
    use crate::state::MeshState;
    use crate::state::service::{HealthPolicy, LoadBalancingMode, ServiceSpec};
    use crate::state::store::{Change, Store};
    use crate::state::workload::{Locality, ServiceMembership, Via, Workload};

    /// A fatal alert of TLS: `protocol_version`.
    const ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 70];

    /// A mesh in which `obs/otel`, port 4317, is this port of the loopback.
    fn state(port: u16) -> Arc<MeshState> {
        let state = Arc::new(MeshState::default());
        let collector = Workload {
            uid: Arc::from("otel"),
            addresses: vec![std::net::Ipv4Addr::LOCALHOST.into()],
            services: Arc::from([ServiceMembership {
                service: Arc::from("obs/otel"),
                ports: vec![(4317, port)],
            }]),
            ..Workload::default()
        };
        let service = ServiceSpec {
            key: Arc::from("obs/otel"),
            name: Arc::from("otel"),
            namespace: Arc::from("obs"),
            hostname: Arc::from("otel"),
            vips: Vec::new(),
            ports: vec![(4317, 0)],
            via: Via::Direct,
            routing_preference: Vec::new(),
            mode: LoadBalancingMode::Any,
            health_policy: HealthPolicy::OnlyHealthy,
            outside: None,
        };
        let mut store = Store::new(Arc::clone(&state), Locality::default());
        store.apply(vec![Change::Service(service), Change::Workload(collector)]);
        state
    }

    #[tokio::test]
    async fn a_collector_that_takes_tls_alone_is_told_from_one_that_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let collector = async {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut began = [0; 14];
            stream.read_exact(&mut began).await.expect("reads");
            // What TLS would not begin with.
            assert_eq!(&began, b"PRI * HTTP/2.0");
            let _ = stream.write_all(&ALERT).await;
        };
        let transport = NodeTransport::new(state(port));
        let export = transport.export("obs/otel/4317", ExportTraceServiceRequest::default());
        let (export, ()) = tokio::join!(export, collector);
        let error = export.expect_err("it is no gRPC");
        assert!(error.message.contains("in plain text"), "{error:?}");
        let other = transport.export("obs/otel/1", ExportTraceServiceRequest::default());
        let error = other.await.expect_err("there is no such port");
        assert!(error.message.contains("has no endpoint"), "{error:?}");
    }
}
