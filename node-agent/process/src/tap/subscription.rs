//! A subscriber's end: the body of an HTTP answer, a JSON object a line.
//!
//! Beside events there are lines about the stream itself, which have a field `tap` and none of `event`: `started`,
//! `status` now and then with what was dropped so far, and `ended` with the reason.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Interval, MissedTickBehavior, Sleep};

use super::Tap;
use super::facts::Facts;
use super::queue::Queue;
use crate::access_log::Record;

/// Events written at once. They go out as one chunk.
const BATCH: usize = 256;

/// How often it is looked whether something new was dropped.
const LOOK: Duration = Duration::from_secs(1);

/// Looks after which a subscriber is told how it stands in any case, so that it sees that the stream is alive.
const LOOKS_A_STATUS: u32 = 5;

/// What a subscriber reads. Dropped when its connection ends, and with it the subscription.
#[derive(Debug)]
pub struct Subscription {
    tap: Tap,
    queue: Arc<Queue>,
    receiver: mpsc::Receiver<Bytes>,
    batch: Vec<Bytes>,
    look: Interval,
    looks: u32,
    told: [u64; 3],
    state: State,
    limit: Pin<Box<Sleep>>,
    /// Ends the subscription even if nobody takes anything from it.
    reaper: AbortHandle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Running,
    Ended,
}

impl Subscription {
    /// Runs inside a `LocalSet`.
    pub(super) fn new(tap: Tap, queue: Arc<Queue>, receiver: mpsc::Receiver<Bytes>) -> Self {
        let limit = queue.query().limit;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        let (reaped, id) = (tap.clone(), queue.id());
        let reaper = tokio::task::spawn_local(async move {
            tokio::time::sleep(limit).await;
            reaped.remove(id);
        });
        Self {
            tap,
            queue,
            receiver,
            batch: Vec::with_capacity(BATCH),
            look,
            looks: 0,
            told: [0; 3],
            state: State::New,
            limit: Box::pin(tokio::time::sleep(limit)),
            reaper: reaper.abort_handle(),
        }
    }

    /// Where to put what is there already.
    #[must_use]
    pub fn feed(&self) -> Feed {
        Feed {
            tap: self.tap.clone(),
            queue: Arc::clone(&self.queue),
        }
    }

    #[cfg(test)]
    pub(super) fn totals_for_tests(&self) -> [u64; 3] {
        self.queue.totals()
    }

    fn started(&self) -> Bytes {
        let query = self.queue.query();
        let mut line = json!({
            "tap": "started",
            "max_rps": query.max_rps,
            "limit_s": query.limit.as_secs(),
        });
        if let Some(object) = line.as_object_mut() {
            let reporter = self.tap.0.reporter.iter();
            object.extend(reporter.map(|(name, value)| ((*name).to_owned(), json!(value))));
        }
        written(&line)
    }

    fn totals(&self, mut line: Value) -> Bytes {
        let [sent, queue_full, rate_limit] = self.queue.totals();
        line["events"] = sent.into();
        line["dropped"] = json!({"queue_full": queue_full, "rate_limit": rate_limit});
        written(&line)
    }

    fn end(&mut self, why: &str) -> Poll<Option<Bytes>> {
        self.state = State::Ended;
        self.tap.remove(self.queue.id());
        Poll::Ready(Some(self.totals(json!({"tap": "ended", "reason": why}))))
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.state {
            State::New => {
                self.state = State::Running;
                return Poll::Ready(Some(self.started()));
            }
            State::Ended => return Poll::Ready(None),
            State::Running => {}
        }
        if self.limit.as_mut().poll(cx).is_ready() {
            return self.end("time_limit");
        }
        // Before events: a stream that is never empty must still say what is missing from it.
        if self.look.poll_tick(cx).is_ready() {
            // The tick that comes next wakes us only once it was asked for.
            let _ = self.look.poll_tick(cx);
            self.looks += 1;
            let [_, queue_full, rate_limit] = self.queue.totals();
            let news = [queue_full, rate_limit] != self.told[1..];
            if news || self.looks >= LOOKS_A_STATUS {
                self.looks = 0;
                self.told = [0, queue_full, rate_limit];
                return Poll::Ready(Some(self.totals(json!({"tap": "status"}))));
            }
        }
        match self.receiver.poll_recv_many(cx, &mut self.batch, BATCH) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(0) => self.end("closed"),
            Poll::Ready(_) => {
                let length = self.batch.iter().map(Bytes::len).sum();
                self.queue.taken(length);
                if self.batch.len() == 1 {
                    return Poll::Ready(self.batch.pop());
                }
                let mut chunk = BytesMut::with_capacity(length);
                self.batch.drain(..).for_each(|line| chunk.put(line));
                Poll::Ready(Some(chunk.freeze()))
            }
        }
    }
}

fn written(line: &Value) -> Bytes {
    Bytes::from(format!("{line}\n"))
}

impl Body for Subscription {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.poll_chunk(cx)
            .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.reaper.abort();
        self.tap.remove(self.queue.id());
    }
}

/// Where a subscriber gets what was there when it came. Not held to its rate: the queue is limit enough.
#[derive(Clone, Debug)]
pub struct Feed {
    tap: Tap,
    queue: Arc<Queue>,
}

impl Feed {
    /// Offers what is there, if the subscriber wants it.
    pub fn offer(&self, facts: &Facts<'_>, record: &impl Record) {
        if self.queue.wants(facts) {
            let line = self.tap.line(facts, record);
            self.queue.offer(line, &self.tap.0.counts);
        }
    }
}
