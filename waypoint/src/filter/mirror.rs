//! Copies of requests.

use std::sync::Arc;

use karst_api::waypoint as wire;

use crate::balance::Cluster;
use crate::config::ConfigError;
use crate::route::Resolve;

/// A copy of requests to another backend, whose answer is thrown away.
pub struct Mirror {
    /// Where copies go; `None`: the backend does not exist, nothing is mirrored.
    pub cluster: Option<Arc<Cluster>>,
    /// Share of the requests: numerator.
    pub numerator: u32,
    /// Share of the requests: denominator, not 0.
    pub denominator: u32,
}

impl Mirror {
    pub(super) fn new(wire: &wire::Mirror, resolve: Resolve<'_>) -> Result<Self, ConfigError> {
        if wire.denominator == 0 {
            return Err(ConfigError::new(
                "denominator",
                "is 0, it must be at least 1",
            ));
        }
        Ok(Self {
            cluster: (!wire.backend.is_empty()).then(|| resolve(&wire.backend)),
            numerator: wire.numerator,
            denominator: wire.denominator,
        })
    }

    /// Whether to copy a request, for a `point` that is evenly distributed over all of `u64`.
    #[must_use]
    pub fn takes(&self, point: u64) -> bool {
        let scaled = (u128::from(point) * u128::from(self.denominator)) >> 64;
        scaled < u128::from(self.numerator)
    }
}
