//! Delta discovery.
//!
//! `service` accepts streams; `stream` is the loop of one stream; `subscription` is the state of one
//! resource type on one stream: what the client wants, has, and must be told.

mod resources;
pub mod service;
mod stream;
mod subscription;
