//! Connections that ended for what their client did below the level of requests.

use std::error::Error;
use std::rc::Rc;

use super::connection::Connection;
use super::keeper::End;
use crate::access_log::RequestRecord;
use crate::reason::Reason;

/// Records why a connection ended, if it is worth it: requests of their own record themselves.
pub(super) fn report(connection: &Rc<Connection>, end: &End<Result<(), hyper::Error>>) {
    let malformed = connection.activity.malformed();
    let (status, reason, error) = match (malformed, end) {
        (Some(malformed), _) => (400, malformed.reason(), None),
        (None, End::SlowHead) => (0, "http_head_timeout", None),
        (None, End::Done(Err(error))) => match classify(error) {
            Some((status, reason)) => (status, reason, Some(error.to_string())),
            None => return,
        },
        _ => return,
    };
    let reporter = connection.entry.reporter();
    let mut record = RequestRecord::new(reporter, connection.client.clone());
    record.status = status;
    record.reason = Some(Reason::Other(reason));
    record.error = error;
    connection.server.recorder.request_finished(record);
}

/// What the client did, and how hyper answered it; `None` where a connection just broke.
fn classify(error: &hyper::Error) -> Option<(u16, &'static str)> {
    if error.is_parse_too_large() {
        return Some((431, "http_head_too_large"));
    }
    if error.is_parse() {
        return Some((400, "http_malformed"));
    }
    let http2 = error.source()?.downcast_ref::<h2::Error>()?;
    match http2.reason()? {
        h2::Reason::ENHANCE_YOUR_CALM => Some((0, "http2_flood")),
        h2::Reason::NO_ERROR | h2::Reason::CANCEL => None,
        _ => Some((0, "http2_malformed")),
    }
}
