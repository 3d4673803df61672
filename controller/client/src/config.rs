//! What a client needs to know, in typed form.

use std::path::PathBuf;

/// How to reach and authenticate the controller, and how to authenticate to it.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// `host:port` to dial.
    pub address: String,
    /// Name that the controller's certificate must carry (DNS name or IP address).
    pub server_name: String,
    /// PEM file with the pinned roots; read again for every connection.
    pub root_cert: PathBuf,
    /// File with the bearer token; read again for every request.
    pub token: PathBuf,
}

/// What to ask for when a type is first subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialSubscription {
    /// Every resource of the type.
    Everything,
    /// Nothing but what [`crate::DeltaAds::subscribe`] names.
    OnDemand,
}

/// A discovery session.
#[derive(Debug, Clone)]
pub struct AdsConfig {
    /// Where the controller is.
    pub controller: ControllerConfig,
    /// The client's own name, for the controller's logs.
    pub client_id: String,
    /// Resource types to follow.
    pub types: Vec<(&'static str, InitialSubscription)>,
}
