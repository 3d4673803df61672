//! One module for each kind of thing that can be looked at.

pub mod cert;
pub mod connection;
pub mod endpoint;
pub mod link;
pub mod map;
pub mod pod;
pub mod policy;
pub mod prog;
pub mod route;
pub mod service;
pub mod tunnel;
pub mod workload;
pub mod xds;
