//! The part of the agent that listens in a pod.

use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd;

use anyhow::Result;
use karst_datapath::{Datapath, PodAttachment};

use crate::{Cgroup, Host, World};

/// Outbound and plaintext listeners in one pod.
pub struct Agent {
    /// Takes captured IPv4 connections.
    pub outbound_v4: TcpListener,
    /// Takes captured IPv6 connections.
    pub outbound_v6: TcpListener,
    /// Takes steered IPv4 connections.
    pub inbound_v4: TcpListener,
    /// Takes steered IPv6 connections.
    pub inbound_v6: TcpListener,
}

impl Agent {
    /// Listens in `pod`.
    pub fn listen(world: &World, pod: Host) -> Result<Self> {
        Ok(world.run(pod, Cgroup::Agent, || {
            std::io::Result::Ok(Self {
                outbound_v4: TcpListener::bind("127.0.0.1:15001")?,
                outbound_v6: TcpListener::bind("[::1]:15001")?,
                inbound_v4: TcpListener::bind("127.0.0.1:15006")?,
                inbound_v6: TcpListener::bind("[::1]:15006")?,
            })
        })??)
    }

    /// Listens in `pod` and enrols it.
    pub fn enrol(world: &World, datapath: &Datapath, pod: Host) -> Result<Self> {
        let agent = Self::listen(world, pod)?;
        agent.attach(world, datapath, pod, pod.uid())?;
        Ok(agent)
    }

    /// Enrols `pod` under `uid` with these listeners.
    pub fn attach(&self, world: &World, datapath: &Datapath, pod: Host, uid: &str) -> Result<()> {
        let addresses: [IpAddr; 2] = [pod.v4(), pod.v6()];
        datapath.enrol(&PodAttachment {
            uid,
            netns: &world.netns(pod)?,
            addresses: &addresses,
            plaintext_listeners: &[
                (pod.v4(), self.inbound_v4.as_fd()),
                (pod.v6(), self.inbound_v6.as_fd()),
            ],
        })?;
        Ok(())
    }
}
