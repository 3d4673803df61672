//! What the access log says of a request or connection.

mod line;
pub mod record;

use karst_process::access_log;

use crate::reason::Reason;

pub use karst_process::access_log::AccessLog;
pub use record::{
    Check, ConnectionRecord, Destination, EndpointRecord, Reporter, RequestRecord, Spoken,
};

impl access_log::Record for RequestRecord {
    fn message(&self) -> &'static str {
        "request complete"
    }

    fn reason(&self) -> Option<&str> {
        self.reason.map(Reason::as_str)
    }

    fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    fn fields(&self, line: &mut access_log::Line<'_>) {
        line::request(line, self);
    }
}

impl access_log::Record for ConnectionRecord {
    fn message(&self) -> &'static str {
        "connection complete"
    }

    fn reason(&self) -> Option<&str> {
        self.reason.map(Reason::as_str)
    }

    fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    fn fields(&self, line: &mut access_log::Line<'_>) {
        line::connection(line, self);
    }
}

#[cfg(test)]
#[path = "access_log/tests.rs"]
mod tests;
