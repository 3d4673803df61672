//! The L7 proxy of Karst: waypoint of services, and ingress gateway.
//!
//! What it does: takes requests (HBONE from the mesh, TCP and TLS at a gateway), finds who asks and what for,
//! routes, changes, balances and retries them, and sends them on by HBONE under its own identity.
//!
//! What it does not: read Kubernetes objects (the controller compiles them to `karst.waypoint.v1`), decide about
//! certificates, or touch a pod's network namespace.
//!
//! Start reading at [`table`]: what a request sees of the configuration. [`config`] makes it, `http` uses it.

pub mod access_log;
pub mod args;
pub mod balance;
pub mod body;
pub mod client;
pub mod config;
pub mod filter;
pub mod http;
pub mod local_io;
pub mod metrics;
pub mod reason;
pub mod route;
pub mod table;
pub mod telemetry;
pub mod time;
pub mod upstream;
