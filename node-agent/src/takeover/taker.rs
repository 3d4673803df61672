//! The new agent's side: asks, receives, and serves only when it may.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::wire::{Channel, Hello, Kind, Label, Message};
use super::{MESSAGE_LIMIT, PROTOCOL, TakeoverError, failed};
use crate::enrol::Inherited;
use crate::sockets::Listeners;

/// Most identities named as missing: one is enough for a refusal.
const MAX_MISSING: usize = 100;

/// What the running agent offers: it has stopped accepting, and waits.
///
/// Dropped, the running one goes on.
#[derive(Debug)]
pub struct Offer {
    channel: Channel,
    lock: File,
    listeners: Inherited,
    /// Layout of the running agent's maps.
    pub layout: u32,
}

/// What was taken over.
#[derive(Debug)]
pub struct Taken {
    /// The lock on the state directory.
    pub lock: File,
    /// The pods' listeners.
    pub listeners: Inherited,
}

/// Asks the agent at `socket` to hand over. `missing` are identities of this node's
/// pods that this agent has no certificate for.
///
/// # Errors
/// It is not there, does not agree, or fails on the way; it goes on serving.
pub async fn ask(socket: &Path, mut missing: Vec<String>) -> Result<Offer, TakeoverError> {
    let channel = Channel::connect(socket)?;
    missing.truncate(MAX_MISSING);
    let hello = Message::Hello(Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        missing,
    });
    channel.send(&hello, &[], MESSAGE_LIMIT).await?;
    let mut received = Received::default();
    loop {
        match channel.receive(MESSAGE_LIMIT).await? {
            (Message::Sockets { pod, labels }, files) => received.add(pod, labels, files)?,
            (Message::Complete { layout, sockets }, files) => {
                if received.sockets != sockets {
                    let text = format!("{} sockets came, not {sockets}", received.sockets);
                    return Err(TakeoverError::Malformed(text));
                }
                let Ok([lock]) = <[OwnedFd; 1]>::try_from(files) else {
                    return Err(TakeoverError::Malformed("no lock came".to_owned()));
                };
                return Ok(Offer {
                    channel,
                    lock: File::from(lock),
                    listeners: received.listeners(),
                    layout,
                });
            }
            (Message::Refused { reason, message }, _) => {
                return Err(TakeoverError::Refused { reason, message });
            }
            (other, _) => {
                let text = format!("{other:?} is not to be said now");
                return Err(TakeoverError::Malformed(text));
            }
        }
    }
}

impl Offer {
    /// Takes over. From its success on this agent alone serves.
    ///
    /// # Errors
    /// The running one has not confirmed: it may serve on.
    pub async fn accept(self) -> Result<Taken, TakeoverError> {
        self.channel
            .send(&Message::Taken, &[], MESSAGE_LIMIT)
            .await?;
        match self.channel.receive(MESSAGE_LIMIT).await? {
            (Message::Released, _) => Ok(Taken {
                lock: self.lock,
                listeners: self.listeners,
            }),
            (other, _) => Err(TakeoverError::Malformed(format!("{other:?}, not released"))),
        }
    }
}

#[derive(Default)]
struct Received {
    pods: BTreeMap<String, BTreeMap<usize, Listeners>>,
    sockets: usize,
}

impl Received {
    fn add(
        &mut self,
        pod: String,
        labels: Vec<Label>,
        files: Vec<OwnedFd>,
    ) -> Result<(), TakeoverError> {
        if labels.len() != files.len() {
            let text = format!("{} labels for {} sockets", labels.len(), files.len());
            return Err(TakeoverError::Malformed(text));
        }
        self.sockets += files.len();
        let workers = self.pods.entry(pod).or_default();
        for (label, file) in labels.into_iter().zip(files) {
            let socket = TcpListener::from(file);
            // The option is the socket's, not the descriptor's; it is set already, and a file
            // that is no socket is found out here.
            socket
                .set_nonblocking(true)
                .map_err(failed("use a socket handed over"))?;
            let listeners = workers.entry(label.worker).or_default();
            match (label.kind, label.address) {
                (Kind::Outbound, _) => listeners.outbound.push(socket),
                (Kind::Hbone, _) => listeners.hbone.push(socket),
                (Kind::Plaintext, Some(ip)) => listeners.plaintext.push((ip, socket)),
                (Kind::Plaintext, None) => {
                    let text = "a plaintext socket without address";
                    return Err(TakeoverError::Malformed(text.to_owned()));
                }
            }
        }
        Ok(())
    }

    fn listeners(self) -> Inherited {
        let of_pod = |(pod, workers): (String, BTreeMap<usize, Listeners>)| {
            (Arc::from(pod), workers.into_values().collect())
        };
        self.pods.into_iter().map(of_pod).collect()
    }
}
