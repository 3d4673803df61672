//! An open watch: what its lines mean, and what its errors do.

use std::{pin::Pin, time::Duration};

use kube::{api::WatchEvent, core::Status};
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};

use super::Trouble;
use crate::cluster::describe;

/// A watch that ends sooner than this, without having said anything, was refused in a way that does
/// not look like a refusal: nothing else ends a watch before the time that was asked for.
const AT_ONCE: Duration = Duration::from_secs(5);

/// What is found in a watch.
pub enum Found<K> {
    Object(K),
    Deleted(K),
    Bookmark { version: String, end: bool },
    Unreadable(String),
}

/// An open watch.
pub struct Watch<K> {
    events: Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<K>>> + Send>>,
    begun: Instant,
    /// When the last line came. Kept here, so that silence is silence however often somebody asks.
    heard: Instant,
    spoken: bool,
}

impl<K> Watch<K> {
    /// A watch that was just opened. The server may still refuse it: its first line says so.
    pub fn new(events: impl Stream<Item = kube::Result<WatchEvent<K>>> + Send + 'static) -> Self {
        let now = Instant::now();
        Self {
            events: Box::pin(events),
            begun: now,
            heard: now,
            spoken: false,
        }
    }

    /// Whether an event or bookmark has come.
    pub fn has_spoken(&self) -> bool {
        self.spoken
    }

    /// What comes next. The watch is given up when nothing comes for as long as `limit`.
    pub async fn next(&mut self, limit: Duration) -> Result<Found<K>, Trouble> {
        let Ok(event) = tokio::time::timeout_at(self.heard + limit, self.events.next()).await
        else {
            // If the server is gone, taking it up again says so.
            return Err(Trouble::Ended);
        };
        self.heard = Instant::now();
        let found = match event {
            None if !self.spoken && self.begun.elapsed() < AT_ONCE => {
                let problem = "the watch ended at once, without an event";
                return Err(Trouble::Problem(problem.to_owned()));
            }
            None => return Err(Trouble::Ended),
            Some(Ok(WatchEvent::Error(status))) => return Err(refusal(&status)),
            Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                Found::Object(object)
            }
            Some(Ok(WatchEvent::Deleted(object))) => Found::Deleted(object),
            Some(Ok(WatchEvent::Bookmark(bookmark))) => Found::Bookmark {
                version: bookmark.metadata.resource_version,
                end: bookmark
                    .metadata
                    .annotations
                    .contains_key("k8s.io/initial-events-end"),
            },
            Some(Err(kube::Error::SerdeError(error))) if error.is_syntax() && !self.spoken => {
                // What a server says that has too much to do, or a proxy before it: text or HTML.
                let problem = format!("the answer is no watch: {error}");
                return Err(Trouble::Problem(problem));
            }
            // One line that is no object; the stream itself goes on. The library takes such a line
            // for a refusal when it is an object of JSON, but one that refuses nothing.
            Some(Err(kube::Error::SerdeError(error))) => {
                return Ok(Found::Unreadable(error.to_string()));
            }
            Some(Err(kube::Error::Api(status))) if status.code == 0 && status.status.is_none() => {
                return Ok(Found::Unreadable(
                    "the event is not as it must be".to_owned(),
                ));
            }
            Some(Err(error)) => return Err(refused(&error)),
        };
        self.spoken = true;
        Ok(found)
    }
}

/// What an error of a list or watch means. The library does not look at the HTTP status of a watch:
/// a refusal comes as its first line.
pub fn refused(error: &kube::Error) -> Trouble {
    match error {
        kube::Error::Api(status) => refusal(status),
        other => Trouble::Problem(describe(other)),
    }
}

fn refusal(status: &Status) -> Trouble {
    let text = match status.message.as_str() {
        "" => format!("status {} {}", status.code, status.reason),
        message => message.to_owned(),
    };
    match status.code {
        410 => Trouble::Forgotten,
        400 | 422 => Trouble::Unacceptable(text),
        // It has too much to do, or is not there yet.
        429 | 503 => Trouble::Problem(text),
        _ => Trouble::Refused(text),
    }
}
