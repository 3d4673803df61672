//! The body of a request on its way to an endpoint: counted, perhaps kept for another attempt, perhaps copied.
//!
//! [`Upload`] is the client's side, one a request; [`UploadBody`] is what an attempt sends. The body is read as
//! the attempt asks for it and not ahead of it. When an attempt gives way to the next, its body ends.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

use super::external::Held;
use super::limits::{CONTINUE_TIMEOUT, MIRROR_LAG_BYTES, REPLAY_BYTES};
use super::messages::Messages;
use crate::body::BodyError;

/// Why the body of a request broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UploadError {
    /// Another attempt has taken over.
    #[error("another attempt has taken over")]
    Superseded,
    /// The client paused for too long.
    #[error("the client sent nothing for too long")]
    Paused,
    /// The client broke off.
    #[error("the client broke off")]
    ClientGone,
}

/// The body of a client's request.
pub(super) struct Upload {
    incoming: RefCell<Incoming>,
    /// What was read ahead of it, and goes first.
    ahead: RefCell<VecDeque<Frame<Bytes>>>,
    /// Counts what was read ahead.
    _held: Option<Held>,
    /// As it was before the first byte.
    size: SizeHint,
    received: Cell<u64>,
    /// Of a gRPC request; others are not looked into.
    messages: Cell<Option<Messages>>,
    /// Number of the attempt that may read.
    attempt: Cell<u32>,
    begun: Cell<bool>,
    ended: Cell<bool>,
    error: Cell<Option<UploadError>>,
    /// The longest pause; `None` once the response has begun, or where pauses are part of the protocol.
    pause: Cell<Option<Duration>>,
    replay: RefCell<Replay>,
    copies: RefCell<Vec<Rc<Copy>>>,
}

/// What was sent already and can be sent again.
enum Replay {
    /// Nothing is kept.
    Off,
    /// All so far.
    Kept {
        frames: Vec<Bytes>,
        trailers: Option<HeaderMap>,
        bytes: usize,
    },
    /// There was too much of it.
    Lost,
}

impl Upload {
    pub(super) fn new(incoming: Incoming, pause: Option<Duration>) -> Rc<Self> {
        let size = incoming.size_hint();
        Self::resumed(incoming, size, VecDeque::new(), None, pause)
    }

    /// The body of a request of which something was read already; `size` is from before that.
    pub(super) fn resumed(
        incoming: Incoming,
        size: SizeHint,
        ahead: VecDeque<Frame<Bytes>>,
        held: Option<Held>,
        pause: Option<Duration>,
    ) -> Rc<Self> {
        Rc::new(Self {
            size,
            incoming: RefCell::new(incoming),
            ahead: RefCell::new(ahead),
            _held: held,
            received: Cell::new(0),
            messages: Cell::new(None),
            attempt: Cell::new(0),
            begun: Cell::new(false),
            ended: Cell::new(false),
            error: Cell::new(None),
            pause: Cell::new(pause),
            replay: RefCell::new(Replay::Off),
            copies: RefCell::new(Vec::new()),
        })
    }

    /// Keeps what is sent, up to a limit, so that it can be sent again.
    pub(super) fn keep(&self) {
        *self.replay.borrow_mut() = Replay::Kept {
            frames: Vec::new(),
            trailers: None,
            bytes: 0,
        };
    }

    /// Counts the messages of gRPC in it.
    pub(super) fn count_messages(&self) {
        self.messages.set(Some(Messages::default()));
    }

    /// A copy of the body that must not lag far behind; it begins with what has not been read yet.
    pub(super) fn copy(&self) -> CopyBody {
        let copy = Rc::new(Copy {
            queue: RefCell::new(VecDeque::new()),
            state: Cell::new(CopyState::Open),
            bytes: Cell::new(0),
            waker: RefCell::new(None),
        });
        self.copies.borrow_mut().push(Rc::clone(&copy));
        CopyBody {
            copy,
            size: self.size,
        }
    }

    /// Whether another attempt can send the whole body.
    pub(super) fn can_repeat(&self) -> bool {
        !self.begun.get() || matches!(&*self.replay.borrow(), Replay::Kept { .. })
    }

    /// The body for the next attempt; the former one's breaks off.
    pub(super) fn attempt(self: &Rc<Self>, hold: Option<oneshot::Receiver<()>>) -> UploadBody {
        self.attempt.set(self.attempt.get() + 1);
        UploadBody {
            attempt: self.attempt.get(),
            upload: Rc::clone(self),
            sent: 0,
            replayed: 0,
            timer: None,
            hold: hold.map_or(Hold::Off, Hold::Asked),
        }
    }

    /// The response has begun: from now on the client may take its time.
    pub(super) fn answered(&self) {
        self.pause.set(None);
    }

    /// Bytes the client has sent.
    pub(super) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Messages of gRPC that the client has sent whole.
    pub(super) fn messages(&self) -> u64 {
        self.messages.get().map_or(0, |messages| messages.whole())
    }

    /// Why the client's side broke off, if it did.
    pub(super) fn error(&self) -> Option<UploadError> {
        self.error.get()
    }

    /// Reads the next frame from the client, for the body and all copies.
    fn poll_client(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        self.begun.set(true);
        let ahead = self.ahead.borrow_mut().pop_front();
        let frame = match ahead {
            Some(frame) => Some(Ok(frame)),
            None => ready!(Pin::new(&mut *self.incoming.borrow_mut()).poll_frame(cx)),
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.received.set(self.received.get() + data.len() as u64);
                    if let Some(mut messages) = self.messages.get() {
                        messages.pass(data);
                        self.messages.set(Some(messages));
                    }
                }
                self.store(frame);
            }
            Some(Err(_)) => self.error.set(Some(UploadError::ClientGone)),
            None => self.ended.set(true),
        }
        if !self.copies.borrow().is_empty() {
            self.feed(frame.as_ref());
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|_| UploadError::ClientGone)))
    }

    fn store(&self, frame: &Frame<Bytes>) {
        let mut replay = self.replay.borrow_mut();
        let Replay::Kept {
            frames,
            trailers,
            bytes,
        } = &mut *replay
        else {
            return;
        };
        if let Some(data) = frame.data_ref() {
            *bytes += data.len();
            frames.push(data.clone());
        } else {
            *trailers = frame.trailers_ref().cloned();
        }
        // Frames cost memory even when they are small.
        if *bytes > REPLAY_BYTES || frames.len() > REPLAY_BYTES / 256 {
            *replay = Replay::Lost;
        }
    }

    fn feed(&self, frame: Option<&Result<Frame<Bytes>, hyper::Error>>) {
        let mut copies = self.copies.borrow_mut();
        for copy in copies.iter() {
            match frame {
                Some(Ok(frame)) => copy.push(frame),
                Some(Err(_)) => copy.close(CopyState::Broken),
                None => copy.close(CopyState::Ended),
            }
        }
        copies.retain(|copy| copy.state.get() == CopyState::Open && Rc::strong_count(copy) > 1);
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // An answer without the body being read ends the copies too; of HTTP/1 bodies of a known length the end
        // is not read by itself.
        let ahead = self.ahead.get_mut().is_empty();
        let whole = self.ended.get() || (ahead && self.incoming.get_mut().is_end_stream());
        let state = if whole {
            CopyState::Ended
        } else {
            CopyState::Broken
        };
        for copy in self.copies.get_mut() {
            copy.close(state);
        }
    }
}

/// What an attempt sends.
pub struct UploadBody {
    upload: Rc<Upload>,
    attempt: u32,
    /// Bytes of this attempt.
    sent: u64,
    /// Frames of [`Replay`] that were sent.
    replayed: usize,
    timer: Option<Pin<Box<Sleep>>>,
    hold: Hold,
}

/// Whether the body waits for the application to want it.
enum Hold {
    /// It does; this fires when the application says so.
    Asked(oneshot::Receiver<()>),
    /// The application has answered without saying so. It may still read a body that comes all the same.
    Unwanted,
    /// It does not, or no more.
    Off,
}

impl UploadBody {
    /// Waits until the application wants the body, or has had its time to say so.
    fn poll_hold(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wanted = match &mut self.hold {
            Hold::Off => return Poll::Ready(()),
            Hold::Unwanted => false,
            Hold::Asked(asked) => match Pin::new(asked).poll(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => {
                    self.hold = Hold::Unwanted;
                    false
                }
                Poll::Pending => false,
            },
        };
        if !wanted {
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep(CONTINUE_TIMEOUT)));
            ready!(timer.as_mut().poll(cx));
        }
        self.hold = Hold::Off;
        self.timer = None;
        Poll::Ready(())
    }

    /// Sends again what a former attempt sent already.
    fn replay(&mut self) -> Option<Frame<Bytes>> {
        let Replay::Kept {
            frames, trailers, ..
        } = &*self.upload.replay.borrow()
        else {
            return None;
        };
        let frame = match frames.get(self.replayed) {
            Some(data) => Frame::data(data.clone()),
            None if self.replayed == frames.len() => Frame::trailers(trailers.clone()?),
            None => return None,
        };
        self.replayed += 1;
        Some(frame)
    }

    /// Counts a pause of the client; an error when it is too long.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<UploadError> {
        let Some(limit) = self.upload.pause.get() else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        if self.upload.pause.get().is_none() {
            return Poll::Pending;
        }
        self.upload.error.set(Some(UploadError::Paused));
        Poll::Ready(UploadError::Paused)
    }
}

impl HttpBody for UploadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        ready!(this.poll_hold(cx));
        if this.attempt != this.upload.attempt.get() {
            return Poll::Ready(Some(Err(UploadError::Superseded.into())));
        }
        if let Some(frame) = this.replay() {
            this.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = this.upload.error.get() {
            return Poll::Ready(Some(Err(error.into())));
        }
        if this.upload.ended.get() {
            return Poll::Ready(None);
        }
        let Poll::Ready(frame) = this.upload.poll_client(cx) else {
            return this.poll_pause(cx).map(|error| Some(Err(error.into())));
        };
        if let Some(timer) = &mut this.timer
            && let Some(limit) = this.upload.pause.get()
        {
            timer.as_mut().reset(Instant::now() + limit);
        }
        if let Some(Ok(frame)) = &frame {
            this.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            this.replayed += 1;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        let replayed = match &*self.upload.replay.borrow() {
            Replay::Kept {
                frames, trailers, ..
            } => self.replayed >= frames.len() + usize::from(trailers.is_some()),
            _ => true,
        };
        let ahead = !self.upload.ahead.borrow().is_empty();
        replayed && !ahead && self.upload.incoming.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.upload.size.exact() {
            Some(size) => SizeHint::with_exact(size.saturating_sub(self.sent)),
            None => SizeHint::default(),
        }
    }
}

/// A copy of a body, between its reader and the mirror.
struct Copy {
    queue: RefCell<VecDeque<Frame<Bytes>>>,
    bytes: Cell<usize>,
    state: Cell<CopyState>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CopyState {
    Open,
    Ended,
    Broken,
}

impl Copy {
    fn push(&self, frame: &Frame<Bytes>) {
        let copy = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Frame::data(data.clone()),
            (_, Some(trailers)) => Frame::trailers(trailers.clone()),
            _ => return,
        };
        // A frame counts for something even when it is empty.
        self.bytes.set(self.bytes.get() + size(&copy));
        if self.bytes.get() > MIRROR_LAG_BYTES {
            self.queue.borrow_mut().clear();
            self.close(CopyState::Broken);
            return;
        }
        self.queue.borrow_mut().push_back(copy);
        self.wake();
    }

    fn close(&self, state: CopyState) {
        if self.state.get() == CopyState::Open {
            self.state.set(state);
        }
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

fn size(frame: &Frame<Bytes>) -> usize {
    64 + frame.data_ref().map_or(0, Bytes::len)
}

/// The body of a mirrored request.
pub(super) struct CopyBody {
    copy: Rc<Copy>,
    size: SizeHint,
}

/// The copy lags too far behind, or the original broke off.
#[derive(Debug, thiserror::Error)]
#[error("the copy lags too far behind, or the original broke off")]
struct CopyBroken;

impl HttpBody for CopyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let copy = &self.copy;
        let frame = copy.queue.borrow_mut().pop_front();
        if let Some(frame) = frame {
            copy.bytes
                .set(copy.bytes.get().saturating_sub(size(&frame)));
            return Poll::Ready(Some(Ok(frame)));
        }
        match copy.state.get() {
            CopyState::Ended => Poll::Ready(None),
            CopyState::Broken => Poll::Ready(Some(Err(CopyBroken.into()))),
            CopyState::Open => {
                *copy.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}
