//! The L7 proxy of Karst: waypoint of services, and ingress gateway.
//!
//! What it does: takes requests (HBONE from the mesh, TCP and TLS at a gateway), finds who asks and what for,
//! routes, changes, balances and retries them, and sends them on by HBONE under its own identity.
//!
//! What it does not: read Kubernetes objects (the controller compiles them to `karst.waypoint.v1`), decide about
//! certificates, or touch a pod's network namespace.
//!
//! Two kinds of threads: one control thread (controller, certificate, ports, admin, metrics) and the data-plane
//! [`worker`]s. A request never waits for the control thread, and the workers go on when the controller is gone.
//!
//! Start reading at [`app::run`], or with the life of a request: it comes in at [`mesh`] or [`gateway`], sees the
//! configuration as a [`table`], which [`config`] makes, and goes its way in [`http`] or, below HTTP, [`stream`].

pub mod access_log;
pub mod admin;
pub mod app;
pub mod args;
pub mod authn;
pub mod authz;
pub mod balance;
pub mod body;
pub mod carrier;
pub mod client;
pub mod client_hello;
pub mod config;
pub mod detect;
pub mod filter;
pub mod gateway;
pub mod http;
pub mod local_io;
pub mod mesh;
pub mod metrics;
pub mod observe;
pub mod ports;
pub mod proxy;
pub mod readiness;
pub mod reason;
pub mod route;
pub mod shared;
pub mod sockets;
pub mod stream;
pub mod table;
mod tap;
pub mod telemetry;
pub mod upstream;
pub mod worker;
pub mod workload;
