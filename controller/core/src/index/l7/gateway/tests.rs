//! Gateways, ListenerSets and routes at them: statuses as the API has them, and what is served.

mod backend_tls;
mod classes;
mod incremental;
mod listener_sets;
mod listeners;
mod routes;
mod support;
mod tls;
mod wanted;
mod whole;
