//! What every process of the data plane has beside its traffic: arguments that mean the same everywhere
//! ([`args`]), the program's log ([`logging`]), the access log ([`access_log`]), counts and metrics ([`counts`],
//! [`metrics`]) and a small HTTP server that shows them ([`http_server`]).
//!
//! What it does not: carry traffic of the mesh, or know what a connection or a request is. The node agent and the
//! waypoint say what their records hold, which metrics they have and what their server answers. Who follows it live
//! is served by [`tap`].
//!
//! Start reading at [`access_log::AccessLog`].

pub mod access_log;
pub mod args;
pub mod counts;
pub mod http_server;
pub mod logging;
pub mod metrics;
pub mod tap;
mod time;
