//! What waypoints and gateways need (`karst.waypoint.v1`): listeners, routes, backends and secrets.

use std::fmt;

include!("gen/waypoint.rs");

impl fmt::Debug for TlsSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSecret")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
