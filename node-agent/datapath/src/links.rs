//! Pinned links: made once, then handed from agent to agent by atomic update.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::DatapathError;
use crate::pins::Pins;
use crate::sys::{self, AttachType, LinkTarget};

fn failed(action: &'static str, link: &str) -> impl FnOnce(io::Error) -> DatapathError {
    let link = link.to_owned();
    move |source| DatapathError::Link {
        action,
        link,
        source,
    }
}

/// What a hook is one of.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// A cgroup's folder or a namespace's file.
    File(BorrowedFd<'a>),
    /// Index of an interface in the calling thread's network namespace.
    Interface(u32),
}

/// A hook to attach to.
pub(crate) struct Hook<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) target: LinkTarget,
    pub(crate) attach_type: AttachType,
}

/// What is known of a pinned link; `None` when there is no such pin.
pub(crate) fn info(pins: &Pins, name: &str) -> Result<Option<sys::LinkInfo>, DatapathError> {
    let path = pins.link(name);
    match sys::open_pin(&path).map_err(failed("open", name))? {
        Some(link) => sys::link_info(link.as_fd())
            .map(Some)
            .map_err(failed("read", name)),
        None => Ok(None),
    }
}

/// Makes the link pinned as `name` run `program` at `hook`.
///
/// A link already there is updated in place, so that connections meet either the old program or
/// the new one. One attached elsewhere, or whose cgroup or namespace is gone, is replaced; its
/// descriptor is kept until the new one is in place.
pub(crate) fn attach(
    pins: &Pins,
    name: &str,
    hook: &Hook<'_>,
    program: BorrowedFd<'_>,
) -> Result<(), DatapathError> {
    let path = pins.link(name);
    let old = sys::open_pin(&path).map_err(failed("open", name))?;
    if let Some(link) = &old {
        let info = sys::link_info(link.as_fd()).map_err(failed("read", name))?;
        if info.target == hook.target && info.attach_type == hook.attach_type as u32 {
            match sys::link_update(link.as_fd(), program) {
                Ok(()) => return Ok(()),
                // The cgroup or namespace went just now, and another has its number already.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(failed("update", name)(error)),
            }
        }
    }
    let link = match hook.place {
        Place::File(fd) => sys::link_create(program, fd, hook.attach_type),
        Place::Interface(index) => sys::link_create_first(program, index, hook.attach_type),
    };
    let link = link.map_err(failed("create", name))?;
    if old.is_some() {
        pins.unpin(name)?;
    }
    sys::pin(link.as_fd(), &path).map_err(failed("pin", name))
}

/// Makes an existing link run `program` wherever it is attached; false when what it was
/// attached to is gone.
pub(crate) fn update(
    pins: &Pins,
    name: &str,
    program: BorrowedFd<'_>,
) -> Result<bool, DatapathError> {
    let Some(link) = sys::open_pin(&pins.link(name)).map_err(failed("open", name))? else {
        return Ok(false);
    };
    match sys::link_update(link.as_fd(), program) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(failed("update", name)(error)),
    }
}
