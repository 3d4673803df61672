//! Delta discovery.
//!
//! `service` accepts streams; `stream` is the loop of one stream; `subscription` is the state of one
//! resource type on one stream: what the client wants, has, and must be told; `journal` is what all
//! streams are told alike, and `frame` how it goes onto the wire.

mod frame;
pub mod journal;
pub mod resources;
pub mod service;
mod stream;
mod subscription;
