//! Keeps a connection: lets it run, and ends it when it is time.

use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use karst_tunnel::server::Drain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::guard::Activity;
use super::limits::{HttpLimits, LAST_WORDS};

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End<T> {
    /// By itself.
    Done(T),
    /// A head took too long.
    SlowHead,
    /// It was idle for too long, or did not end by itself when it was told so.
    Idle,
    /// The proxy is ending.
    Drained,
}

/// What is next to happen to a connection that does nothing by itself.
enum Due {
    SlowHead(Instant),
    Idle(Instant),
    Drained(Instant),
}

impl Due {
    fn at(&self) -> Instant {
        match self {
            Self::SlowHead(at) | Self::Idle(at) | Self::Drained(at) => *at,
        }
    }

    /// The earliest of all, if there is any.
    fn next(activity: &Activity, limits: &HttpLimits, ending: Option<Instant>) -> Option<Self> {
        let own = activity
            .idle_since()
            .map(|idle| match activity.head_since() {
                // What was read ahead while a request was under way takes its time from then on.
                Some(head) => Self::SlowHead(head.max(idle) + limits.head),
                None => Self::Idle(idle + limits.idle),
            });
        match (own, ending) {
            (Some(own), Some(end)) if own.at() < end => Some(own),
            (own, None) => own,
            (_, Some(end)) => Some(Self::Drained(end)),
        }
    }
}

/// Whether a connection that was told to end can do so by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It will.
    Ends,
    /// It is to be dropped.
    Drop,
}

/// Polls `served` to its end, tells it to end by `tell` when the proxy drains or it was idle for too long, and
/// gives it up when it does not follow, or a head takes too long.
pub(super) async fn keep<C: Future>(
    mut served: Pin<&mut C>,
    tell: impl Fn(Pin<&mut C>) -> Told,
    activity: &Rc<Activity>,
    limits: &HttpLimits,
    drain: &watch::Receiver<Drain>,
) -> End<C::Output> {
    let mut stage = pin!(stage_after(drain.clone(), Drain::Running));
    let mut timer = pin!(sleep_until(Instant::now() + limits.idle));
    let mut ending = None;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(output) = served.as_mut().poll(cx) {
                return Poll::Ready(End::Done(output));
            }
            if let Poll::Ready(next) = stage.as_mut().poll(cx) {
                if next == Drain::Immediate || tell(served.as_mut()) == Told::Drop {
                    return Poll::Ready(End::Drained);
                }
                stage.set(stage_after(drain.clone(), next));
                ending = Some(Instant::now() + limits.drain);
                continue;
            }
            let due = Due::next(activity, limits, ending);
            if let Some(due) = &due
                && due.at() < timer.deadline()
            {
                timer.as_mut().reset(due.at());
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            match due {
                Some(due) if due.at() > now => timer.as_mut().reset(due.at()),
                None => timer.as_mut().reset(now + limits.idle),
                Some(Due::SlowHead(_)) => return Poll::Ready(End::SlowHead),
                Some(Due::Drained(_)) => return Poll::Ready(End::Drained),
                Some(Due::Idle(_)) => {
                    if ending.is_some() || tell(served.as_mut()) == Told::Drop {
                        return Poll::Ready(End::Idle);
                    }
                    ending = Some(now + LAST_WORDS);
                    timer.as_mut().reset(now + LAST_WORDS);
                }
            }
        }
    })
    .await
}

/// The stage of draining that comes after `last`.
async fn stage_after(mut drain: watch::Receiver<Drain>, last: Drain) -> Drain {
    match drain.wait_for(|stage| *stage != last).await {
        Ok(stage) => *stage,
        // Nobody is left who could say so.
        Err(_) => pending().await,
    }
}
