//! What the access log says of a request or connection.

mod line;
pub mod record;

use karst_process::access_log;

use crate::reason::Reason;

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
    fn message(&self) -> &'static str {
        match self {
            Self::Request(_) => "request complete",
            Self::Connection(_) => "connection complete",
        }
    }

    fn reason(&self) -> Option<&str> {
        let reason = match self {
            Self::Request(record) => record.reason,
            Self::Connection(record) => record.reason,
        };
        reason.map(Reason::as_str)
    }

    fn error(&self) -> Option<&str> {
        match self {
            Self::Request(record) => record.error.as_deref(),
            Self::Connection(record) => record.error.as_deref(),
        }
    }

    fn fields(&self, line: &mut access_log::Line<'_>) {
        match self {
            Self::Request(record) => line::request(line, record),
            Self::Connection(record) => line::connection(line, record),
        }
    }
}

#[cfg(test)]
#[path = "access_log/tests.rs"]
mod tests;
