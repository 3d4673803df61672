//! Which pods are enrolled. The kernel's maps are the only record; nothing is cached here.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{MutexGuard, PoisonError};

use karst_bpf_common::layout::{NetnsCookie, Pod};
use karst_bpf_common::{Ip, UID_BYTES};

use crate::api::{EnrolledPod, PodAttachment};
use crate::error::DatapathError;
use crate::links::{self, Hook, Place};
use crate::node::Datapath;
use crate::pins::escape;
use crate::sys::{self, AttachType, LinkTarget};

impl Datapath {
    /// Enrols a pod: from its return on, new connections of the pod are captured and new inbound
    /// ones steered to the listeners given. Idempotent: on a pod already enrolled it puts the
    /// listeners in place and repairs what is missing.
    ///
    /// # Errors
    /// The pod cannot be described to the kernel, there is no room ([`DatapathError::PodsFull`]),
    /// or the kernel refuses a step; a pod that was not enrolled before is then not enrolled.
    pub fn enrol(&self, pod: &PodAttachment<'_>) -> Result<(), DatapathError> {
        let mut value = describe(pod)?;
        let cookie = pod.netns.cookie().map_err(|source| DatapathError::Netns {
            uid: pod.uid.to_owned(),
            source,
        })?;
        let _one_at_a_time = self.enrolling();
        let former = self.find(pod.uid)?;
        let outcome = self.enrol_steps(pod, cookie, &mut value);
        if outcome.is_err() && former.is_empty() {
            // The first error is the one to report; what could not be undone is overwritten by
            // the next attempt.
            let _ = self.let_go(pod.uid, &[(cookie, value)]);
        }
        outcome?;
        // The same pod in a namespace or with addresses it no longer has.
        for (old_cookie, old) in former {
            if old_cookie != cookie {
                self.maps.pods.remove(&old_cookie)?;
            }
            for ip in [old.v4, old.v6] {
                if ip != value.v4 && ip != value.v6 {
                    self.forget_address(ip, old_cookie)?;
                }
            }
        }
        Ok(())
    }

    /// Puts new listeners in place for an enrolled pod, after a restart of the agent; the same
    /// as [`Datapath::enrol`].
    ///
    /// # Errors
    /// As [`Datapath::enrol`].
    pub fn replace_listeners(&self, pod: &PodAttachment<'_>) -> Result<(), DatapathError> {
        self.enrol(pod)
    }

    /// Steps in an order that never drops or leaks: nothing looks at the listeners before the
    /// link is there, and nothing is captured before the last step.
    fn enrol_steps(
        &self,
        pod: &PodAttachment<'_>,
        cookie: NetnsCookie,
        value: &mut Pod,
    ) -> Result<(), DatapathError> {
        for (address, listener) in pod.plaintext_listeners {
            let key = Ip::from(*address);
            let fd = listener.as_raw_fd().cast_unsigned();
            let set = self.maps.listeners.try_set(&key, &fd);
            set.map_err(|error| self.full_or(pod.uid, "LISTENERS", error))?;
        }
        let hook = Hook {
            place: Place::File(pod.netns.as_fd()),
            // Links know their namespace by the inode's low half, which is all there is.
            target: LinkTarget::Netns(pod.netns.id().ino as u32),
            attach_type: AttachType::SkLookup,
        };
        let name = file_name(pod.uid)?;
        let link = self.pins.sk_lookup(&name);
        links::attach(&self.pins, &link, &hook, self.sk_lookup.as_fd())?;
        warn_of_others(pod);
        value.guard = self.guard(pod, &self.pins.syn_check(&name))?;
        for ip in [value.v4, value.v6] {
            if !ip.is_unspecified() {
                let set = self.maps.addresses.try_set(&ip, &cookie);
                set.map_err(|error| self.full_or(pod.uid, "POD_ADDRESSES", error))?;
            }
        }
        let set = self.maps.pods.try_set(&cookie, &*value);
        set.map_err(|error| self.full_or(pod.uid, "PODS", error))
    }

    /// Lets go of a pod: its new connections are its own again, established ones go on through
    /// the agent. Idempotent.
    ///
    /// # Errors
    /// The kernel refuses a step; calling again does the rest.
    pub fn unenrol(&self, uid: &str) -> Result<(), DatapathError> {
        let _one_at_a_time = self.enrolling();
        let entries = self.find(uid)?;
        self.let_go(uid, &entries)
    }

    /// Un-enrols every pod not in `uids` and returns the uids let go: what an agent that comes
    /// back does with pods that are no longer to be enrolled.
    ///
    /// # Errors
    /// As [`Datapath::unenrol`].
    pub fn retain(&self, uids: &[&str]) -> Result<Vec<String>, DatapathError> {
        let mut gone: Vec<String> = self.enrolled()?.into_iter().map(|pod| pod.uid).collect();
        gone.retain(|uid| !uids.contains(&uid.as_str()));
        for uid in &gone {
            self.unenrol(uid)?;
        }
        Ok(gone)
    }

    /// The enrolled pods as the kernel has them, by uid. After a restart of the agent: those of
    /// its predecessor, whose namespaces may be gone meanwhile.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn enrolled(&self) -> Result<Vec<EnrolledPod>, DatapathError> {
        let entries = self.maps.pods.entries()?;
        let mut pods: Vec<EnrolledPod> = entries.iter().map(enrolled_pod).collect();
        pods.sort_by(|a, b| a.uid.cmp(&b.uid));
        Ok(pods)
    }

    fn let_go(&self, uid: &str, entries: &[(NetnsCookie, Pod)]) -> Result<(), DatapathError> {
        for (cookie, _) in entries {
            self.maps.pods.remove(cookie)?;
        }
        let name = file_name(uid)?;
        self.pins.unpin(&self.pins.sk_lookup(&name))?;
        self.pins.unpin(&self.pins.syn_check(&name))?;
        for (cookie, pod) in entries {
            for ip in [pod.v4, pod.v6] {
                self.forget_address(ip, *cookie)?;
            }
        }
        Ok(())
    }

    /// Unless another pod has the address by now.
    fn forget_address(&self, ip: Ip, cookie: NetnsCookie) -> Result<(), DatapathError> {
        if ip.is_unspecified() {
            return Ok(());
        }
        let owner = self.maps.addresses.get(&ip)?;
        if owner.is_none_or(|owner| owner == cookie) {
            self.maps.addresses.remove(&ip)?;
            self.maps.listeners.remove(&ip)?;
        }
        Ok(())
    }

    fn find(&self, uid: &str) -> Result<Vec<(NetnsCookie, Pod)>, DatapathError> {
        let mut entries = self.maps.pods.entries()?;
        entries.retain(|(_, pod)| uid_of(pod).as_bytes() == uid.as_bytes());
        Ok(entries)
    }

    fn enrolling(&self) -> MutexGuard<'_, ()> {
        // It guards no data, so a panic elsewhere leaves nothing half done in it.
        self.enrolling
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn full_or(&self, uid: &str, map: &'static str, error: io::Error) -> DatapathError {
        match error.raw_os_error() {
            // The kernel says E2BIG when a hash is full, ENOMEM when it has no memory.
            Some(libc::E2BIG) => DatapathError::PodsFull {
                uid: uid.to_owned(),
                max_pods: self.maps.pods.raw().info.max_entries,
            },
            _ => DatapathError::Map {
                action: "write",
                map,
                source: error,
            },
        }
    }
}

/// Another program in the pod's namespace can choose a socket where ours refuses.
fn warn_of_others(pod: &PodAttachment<'_>) {
    let attached = sys::attached_programs(pod.netns.as_fd(), AttachType::SkLookup);
    if let Ok(programs) = attached
        && programs.len() > 1
    {
        tracing::warn!(
            pod.uid,
            programs = programs.len(),
            "another sk_lookup program is attached to the pod's network namespace; inbound connections may reach the application past the mesh"
        );
    }
}

fn invalid(uid: &str, detail: &str) -> DatapathError {
    DatapathError::InvalidPod {
        uid: uid.to_owned(),
        detail: detail.to_owned(),
    }
}

fn file_name(uid: &str) -> Result<String, DatapathError> {
    escape(uid)
        .filter(|_| uid.len() <= UID_BYTES)
        .ok_or_else(|| {
            let rule = "a uid is 1 to 64 letters, digits, dots, dashes and underscores";
            invalid(uid, rule)
        })
}

/// The pod as the kernel keeps it.
fn describe(pod: &PodAttachment<'_>) -> Result<Pod, DatapathError> {
    file_name(pod.uid)?;
    let mut value = Pod {
        v4: Ip::UNSPECIFIED,
        v6: Ip::UNSPECIFIED,
        uid_length: pod.uid.len() as u32,
        uid: [0; UID_BYTES],
        guard: 0,
    };
    for (to, from) in value.uid.iter_mut().zip(pod.uid.bytes()) {
        *to = from;
    }
    for address in pod.addresses {
        let ip = Ip::from(*address);
        let slot = if ip.is_v4() {
            &mut value.v4
        } else {
            &mut value.v6
        };
        if !slot.is_unspecified() {
            return Err(invalid(pod.uid, "more than one address of a family"));
        }
        if ip.is_unspecified() || ip.is_loopback() || address.is_multicast() {
            return Err(invalid(pod.uid, &format!("{address} is no pod's address")));
        }
        *slot = ip;
    }
    if pod.addresses.is_empty() {
        return Err(invalid(pod.uid, "no address"));
    }
    for (address, _) in pod.plaintext_listeners {
        let ip = Ip::from(*address);
        if ip != value.v4 && ip != value.v6 {
            let detail = format!("a listener for {address}, which is not its address");
            return Err(invalid(pod.uid, &detail));
        }
    }
    Ok(value)
}

pub(crate) fn uid_of(pod: &Pod) -> String {
    let length = (pod.uid_length as usize).min(UID_BYTES);
    String::from_utf8_lossy(&pod.uid[..length]).into_owned()
}

pub(crate) fn addresses_of(pod: &Pod) -> Vec<IpAddr> {
    let present = |ip: &Ip| !ip.is_unspecified();
    let both = [pod.v4, pod.v6].into_iter().filter(present);
    both.map(Ip::to_ip_addr).collect()
}

fn enrolled_pod((cookie, pod): &(NetnsCookie, Pod)) -> EnrolledPod {
    EnrolledPod {
        uid: uid_of(pod),
        netns_cookie: *cookie,
        addresses: addresses_of(pod),
        guarded: pod.guard != 0,
    }
}
