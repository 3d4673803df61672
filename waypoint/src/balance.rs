//! Which endpoint of a backend a request goes to, and whether it may go at all.
//!
//! [`Clusters`] holds one [`Cluster`] for each backend by name. A cluster lives on while its endpoints and
//! its policy change, and so does the state of each endpoint that stays: requests under way, latency,
//! failures. [`Cluster::pick`] is the way of every request; it loads one immutable [view](view) and takes no
//! lock. Everything here is shared by all workers.
//!
//! Start reading at [`Cluster::pick`].

mod budget;
mod cluster;
mod clusters;
mod endpoint;
mod hash;
mod latency;
mod limits;
mod maglev;
mod outlier;
mod picked;
mod ring;
mod select;
mod settings;
mod status;
mod view;

pub use budget::RetryPermit;
pub use cluster::{Cluster, ClusterStats};
pub use clusters::{Clusters, OwnPlace};
pub use endpoint::{Endpoint, Via};
pub use hash::{Hashed, hash_of};
pub use limits::{ConnectionSlot, Limit, PendingSlot};
pub use picked::{Outcome, Picked};
pub use settings::{
    Balancing, BudgetSettings, ClusterSettings, HashBy, Limits, OutlierSettings, SuccessRate,
};
pub use status::EndpointStatus;

use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;

/// What a request asks of the balancer. The default asks for any endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickRequest<'a> {
    /// What tells clients apart, for consistent hashing; see [`hash_of`].
    pub hash: Option<u64>,
    /// Key of the endpoint that the client's session is bound to.
    pub sticky: Option<&'a str>,
    /// Keys of endpoints that this request has been to. They are avoided while there are others.
    pub tried: &'a [Arc<str>],
    /// The port to go to instead of the endpoint's, for workloads reached by their own address.
    pub port: Option<u16>,
    /// The address to go to instead of the endpoint's: one of the same workload, which may have several.
    pub address: Option<IpAddr>,
}

/// Why there is no endpoint for a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// The backend has no endpoints.
    #[error("the backend has no endpoints")]
    NoEndpoints,
    /// The controller says that requests must not be sent; the reason is its own.
    #[error("the backend is invalid: {0}")]
    Invalid(Arc<str>),
    /// A limit of the backend is reached.
    #[error("the backend is overloaded: {0}")]
    Overloaded(Limit),
}

impl PickError {
    /// The stable label, shared by log and metric.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::Invalid(reason) => reason,
            Self::Overloaded(limit) => limit.reason(),
        }
    }

    /// The answer to the client.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoEndpoints | Self::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Invalid(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}
