//! Who is followed, and the lines that come.

use std::fmt;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::admin::Source;
use crate::args::Sources;
use crate::failure::Failure;

/// Longest wait for the next line: twice what passes between two `status` lines, with room for a busy machine.
const SILENCE: Duration = Duration::from_secs(30);

/// Longest line, bytes. Events have some hundred, and a few fields of 2 KiB at most.
const MAX_LINE: usize = 256 << 10;

/// Everybody whom the arguments name.
///
/// # Errors
/// There is no agent here, or several and none is named; or the cluster cannot be asked.
pub fn all(args: &Sources) -> Result<Vec<Source>, Failure> {
    let waypoints = args.waypoints.iter().cloned().map(Source::Waypoint);
    let mut all: Vec<_> = waypoints.collect();
    let is_named = args.place.node.is_some() || args.place.pod.is_some();
    if all.is_empty() || args.agent || is_named {
        all.insert(0, Source::find(&args.place, &args.kubernetes)?);
    }
    Ok(all)
}

/// Lines that come one after the other.
#[derive(Debug)]
pub struct Lines {
    source: String,
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// Opens `path`, whose answer is lines without an end.
    ///
    /// # Errors
    /// Nobody answers, or with an error.
    pub async fn open(source: &Source, path: &str) -> Result<Self, Failure> {
        Ok(Self {
            source: source.to_string(),
            body: source.open(Method::GET, path).await?,
            buffer: BytesMut::new(),
        })
    }

    /// The next line without its end; `None` at the end of all.
    ///
    /// # Errors
    /// The stream broke off, or nothing came for too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let broken = |source: &str, why: &dyn fmt::Display| {
            Failure::failed("stream_broken", format!("{source}: {why}"))
        };
        let mut looked_at = 0;
        loop {
            let end = self.buffer[looked_at..].iter().position(|b| *b == b'\n');
            if let Some(end) = end {
                let line = self.buffer.split_to(looked_at + end).freeze();
                self.buffer.advance(1);
                return Ok(Some(line));
            }
            looked_at = self.buffer.len();
            if looked_at > MAX_LINE {
                return Err(broken(&self.source, &"a line is too long"));
            }
            match tokio::time::timeout(SILENCE, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Ok(Some(Err(error))) => {
                    return Err(broken(
                        &self.source,
                        &format_args!("the stream broke off: {error}"),
                    ));
                }
                Ok(None) => return Ok(None),
                Err(_) => return Err(broken(&self.source, &"nothing came for 30 s")),
            }
        }
    }
}
