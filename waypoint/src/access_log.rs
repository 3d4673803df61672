//! What the access log says of a request or connection.

mod line;
pub mod record;

use karst_process::access_log;

pub use record::{ConnectionRecord, Destination, EndpointRecord, Reporter, RequestRecord, Spoken};

/// Where workers send records.
pub type AccessLog = access_log::AccessLog<AccessRecord>;

/// What has ended.
#[derive(Clone, Debug)]
pub enum AccessRecord {
    /// A request.
    Request(RequestRecord),
    /// A connection below HTTP.
    Connection(ConnectionRecord),
}

impl access_log::Record for AccessRecord {
    fn line(&self) -> access_log::Line {
        match self {
            Self::Request(record) => line::request(record),
            Self::Connection(record) => line::connection(record),
        }
    }
}

#[cfg(test)]
#[path = "access_log/tests.rs"]
mod tests;
