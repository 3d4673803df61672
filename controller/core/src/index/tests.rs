//! Objects in, resources out: table-driven tests of the whole core.

mod authorization_policies;
mod backends;
mod endpoints;
mod external_authorization;
mod incremental;
mod lookups;
mod mesh_routes;
mod modes;
mod objects;
mod peer_authentications;
mod pods;
mod properties;
mod request_authentications;
mod request_policies;
mod route_rules;
mod service_entries;
mod services;
mod static_pods;
pub(super) mod support;
mod support_l7;
mod telemetry;
mod traffic_policies;
mod waypoints;
