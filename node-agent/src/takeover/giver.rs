//! The running agent's side: hands the node over, or goes on as if nobody had asked.

use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::{cell::RefCell, fs::File};

use karst_datapath::passing::MAX_FILES;
use karst_identity::SpiffeId;
use tokio::sync::{mpsc, oneshot};

use super::wire::{Channel, Hello, Kind, Label, Listener, Message};
use super::{MESSAGE_LIMIT, NOT_PREPARED, PROTOCOL, TAKEN_LIMIT, TakeoverError, VERSION, failed};
use crate::context::{Certificates, Kernel};
use crate::enrol::task::{Decision, Event, WorkerSet};
use crate::sockets::Listeners;
use crate::worker::{Command, PodListeners};

/// Wait after a request that could not be accepted.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The lock on the state directory, as long as this agent has it.
pub type Lock = Rc<RefCell<Option<File>>>;

/// What is handed over, and who must hear of it.
pub struct Giver {
    /// The lock.
    pub lock: Lock,
    /// Layout of this agent's maps.
    pub layout: u32,
    /// The user that new agents must run as: root.
    pub user: u32,
    /// Who has the listeners.
    pub workers: WorkerSet,
    /// Who must stop changing things.
    pub enrolment: mpsc::UnboundedSender<Event>,
    /// What a new agent must be able to do as well.
    pub certificates: Arc<dyn Certificates>,
    /// What a new agent may have taken for itself already.
    pub kernel: Arc<dyn Kernel>,
}

impl Giver {
    /// Answers new agents until one has taken over.
    pub async fn serve(&self, listener: Listener) {
        loop {
            let channel = match listener.accept().await {
                Ok(channel) => channel,
                Err(error) => {
                    tracing::warn!(%error, reason = error.reason(), "takeover cannot be accepted");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            match self.give(&channel).await {
                Ok(sockets) => {
                    tracing::info!(sockets, "another agent has taken over");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, reason = error.reason(), "not taken over, serving on");
                }
            }
        }
    }

    /// One attempt. When it fails everything is as before it.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn give(&self, channel: &Channel) -> Result<usize, TakeoverError> {
        let user = channel.peer_uid()?;
        if user != self.user {
            return Err(TakeoverError::NotRoot(user));
        }
        let (Message::Hello(hello), _) = channel.receive(MESSAGE_LIMIT).await? else {
            return Err(TakeoverError::Malformed("not a hello".to_owned()));
        };
        if let Some((reason, message)) = self.objection(&hello) {
            let refusal = Message::Refused {
                reason: reason.to_owned(),
                message: message.clone(),
            };
            channel.send(&refusal, &[], MESSAGE_LIMIT).await?;
            let reason = reason.to_owned();
            return Err(TakeoverError::Refused { reason, message });
        }
        tracing::info!(version = hello.version, "another agent takes over");
        let (decide, decision) = oneshot::channel();
        let (frozen, is_frozen) = oneshot::channel();
        let freeze = Event::Freeze { frozen, decision };
        self.enrolment
            .send(freeze)
            .map_err(|_| TakeoverError::Ending)?;
        let outcome = async {
            // Its steps are short; a certificate that is waited for is none of them.
            match tokio::time::timeout(MESSAGE_LIMIT, is_frozen).await {
                Ok(frozen) => frozen.map_err(|_| TakeoverError::Ending)?,
                Err(_) => return Err(TakeoverError::Silent(MESSAGE_LIMIT)),
            }
            self.pass(channel).await
        };
        let outcome = outcome.await;
        if outcome.is_ok() {
            self.workers.broadcast(|| Command::HandOver);
            self.lock.take();
        } else {
            // The new agent may have named itself there as the one that is not captured, and this
            // one as the former; after the next one this one would not be named any more.
            if let Err(error) = self.kernel.claim() {
                tracing::error!(%error, reason = error.reason(), "the kernel cannot be told who serves");
            }
            self.workers.broadcast(|| Command::Resume);
        }
        let decided = match &outcome {
            Ok(_) => Decision::HandedOver,
            Err(_) => Decision::Resumed,
        };
        // Nobody to tell is an enrolment that has ended.
        let _ = decide.send(decided);
        outcome
    }

    fn objection(&self, hello: &Hello) -> Option<(&'static str, String)> {
        if hello.protocol != PROTOCOL {
            let text = format!(
                "this agent speaks version {PROTOCOL} of the takeover, not {}",
                hello.protocol
            );
            return Some((VERSION, text));
        }
        let mut missing = hello.missing.iter().flat_map(|id| SpiffeId::parse(id));
        let lacks = missing.find(|id| self.certificates.has(id))?;
        Some((
            NOT_PREPARED,
            format!("it has no certificate of {lacks} yet"),
        ))
    }

    /// Hands everything over; an error as long as the other side does not serve.
    async fn pass(&self, channel: &Channel) -> Result<usize, TakeoverError> {
        let mut sockets = 0;
        for (worker, commands) in self.workers.workers().iter().enumerate() {
            let (reply, listeners) = oneshot::channel();
            let sent = commands.send(Command::Pause(reply));
            sent.map_err(|_| TakeoverError::Ending)?;
            let listeners = tokio::time::timeout(MESSAGE_LIMIT, listeners).await;
            let listeners = listeners.map_err(|_| TakeoverError::Silent(MESSAGE_LIMIT))?;
            for pod in listeners.map_err(|_| TakeoverError::Ending)? {
                sockets += pass_pod(channel, worker, &pod).await?;
            }
        }
        // A copy: ours is not ours alone any more once it is sent.
        let lock = self.lock.borrow().as_ref().map(File::try_clone);
        let lock = lock.ok_or(TakeoverError::Ending)?;
        let lock = lock.map_err(failed("copy the lock"))?;
        let complete = Message::Complete {
            layout: self.layout,
            sockets,
        };
        channel
            .send(&complete, &[lock.as_fd()], MESSAGE_LIMIT)
            .await?;
        drop(lock);
        match channel.receive(TAKEN_LIMIT).await? {
            (Message::Taken, _) => {}
            (other, _) => return Err(TakeoverError::Malformed(format!("{other:?}, not taken"))),
        }
        channel.send(&Message::Released, &[], MESSAGE_LIMIT).await?;
        Ok(sockets)
    }
}

async fn pass_pod(
    channel: &Channel,
    worker: usize,
    (pod, listeners): &PodListeners,
) -> Result<usize, TakeoverError> {
    let all = labelled(worker, listeners);
    for some in all.chunks(MAX_FILES) {
        let message = Message::Sockets {
            pod: pod.uid.to_string(),
            labels: some.iter().map(|(label, _)| label.clone()).collect(),
        };
        let files: Vec<_> = some.iter().map(|(_, file)| *file).collect();
        channel.send(&message, &files, MESSAGE_LIMIT).await?;
    }
    Ok(all.len())
}

fn labelled(worker: usize, listeners: &Listeners) -> Vec<(Label, BorrowedFd<'_>)> {
    let label = |kind, address| Label {
        kind,
        worker,
        address,
    };
    let outbound = listeners.outbound.iter();
    let plaintext = listeners.plaintext.iter();
    let hbone = listeners.hbone.iter();
    outbound
        .map(|socket| (label(Kind::Outbound, None), socket.as_fd()))
        .chain(plaintext.map(|(ip, socket)| (label(Kind::Plaintext, Some(*ip)), socket.as_fd())))
        .chain(hbone.map(|socket| (label(Kind::Hbone, None), socket.as_fd())))
        .collect()
}
