//! Serving: the TLS listener, its certificate, and the HTTP endpoint for metrics and health.

pub mod certificate;
pub mod http;
pub mod listener;
