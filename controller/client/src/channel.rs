//! The authenticated channel to the controller.

use std::{path::Path, time::Duration};

use karst_api::{
    MAX_MESSAGE_BYTES,
    discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    node::{ReportEnrolmentRequest, node_service_client::NodeServiceClient},
};
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    config::ControllerConfig,
    error::{ClientError, with_causes},
};

/// TCP and TLS together must be done in this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A silent connection is probed this often, so that a controller that vanished without a word
/// (node lost, no FIN) is noticed.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// A probe without an answer for this long ends the connection.
const PING_LIMIT: Duration = Duration::from_secs(20);

/// HTTP/2 windows in bytes: a first push of a large mesh must not crawl at the default 64 KiB.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Largest root or token file in bytes; both are a few KiB.
const MAX_FILE_BYTES: usize = 1024 * 1024;

/// A unary request must be answered in this time.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// One connection to the controller. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Controller {
    config: ControllerConfig,
    channel: Channel,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Controller {
    /// Connects: TCP, then TLS with the roots that the root file holds now.
    ///
    /// # Errors
    /// When the root file is unusable, the address is not valid, or the connection fails.
    pub async fn connect(config: &ControllerConfig) -> Result<Self, ClientError> {
        let roots = read_roots(&config.root_cert).await?;
        let bad_address = |error: &dyn std::error::Error| ClientError::Address {
            address: config.address.clone(),
            problem: with_causes(error),
        };
        let endpoint = Endpoint::from_shared(format!("https://{}", config.address))
            .and_then(|endpoint| {
                endpoint.tls_config(
                    ClientTlsConfig::new()
                        .ca_certificate(Certificate::from_pem(roots))
                        .domain_name(&config.server_name)
                        .timeout(CONNECT_LIMIT),
                )
            })
            .map_err(|error| bad_address(&error))?
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(STREAM_WINDOW_BYTES);
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| ClientError::Connect {
                address: config.address.clone(),
                problem: with_causes(&error),
            })?;
        Ok(Self {
            config: config.clone(),
            channel,
        })
    }

    /// The discovery service over this connection.
    #[must_use]
    pub fn discovery(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        AggregatedDiscoveryServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The connection itself, for other services of the controller.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request that carries the token which the token file holds now.
    ///
    /// # Errors
    /// When the token file cannot be read or holds no token.
    pub async fn request<T>(&self, message: T) -> Result<Request<T>, ClientError> {
        let mut request = Request::new(message);
        let bearer = bearer(&self.config.token).await?;
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    /// Tells the controller which pods (Kubernetes uids) are enrolled on this node: all of them.
    ///
    /// # Errors
    /// When the token file is unusable, the connection fails or the controller refuses.
    pub async fn report_enrolment(&self, pod_uids: Vec<String>) -> Result<(), ClientError> {
        let mut request = self.request(ReportEnrolmentRequest { pod_uids }).await?;
        request.set_timeout(REQUEST_LIMIT);
        NodeServiceClient::new(self.channel.clone())
            .report_enrolment(request)
            .await
            .map(|_| ())
            .map_err(|status| ClientError::from_status(&status))
    }
}

async fn read_roots(path: &Path) -> Result<String, ClientError> {
    let unreadable = |problem: String| ClientError::RootUnreadable {
        path: path.to_owned(),
        problem,
    };
    let roots = read(path).await.map_err(unreadable)?;
    // Without this check an empty file would surface as "unknown issuer".
    if !roots.contains("-----BEGIN CERTIFICATE-----") {
        return Err(unreadable("it holds no PEM certificate".to_owned()));
    }
    Ok(roots)
}

async fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, ClientError> {
    let unreadable = |problem: String| ClientError::TokenUnreadable {
        path: path.to_owned(),
        problem,
    };
    let token = read(path).await.map_err(unreadable)?;
    let token = token.trim();
    if token.is_empty() {
        return Err(unreadable("it is empty".to_owned()));
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| unreadable("the token has characters that no header may have".to_owned()))?;
    // Keeps it out of Debug output and of HPACK's table.
    value.set_sensitive(true);
    Ok(value)
}

async fn read(path: &Path) -> Result<String, String> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| error.to_string())?;
    if text.len() > MAX_FILE_BYTES {
        return Err(format!("it is larger than {MAX_FILE_BYTES} bytes"));
    }
    Ok(text)
}
