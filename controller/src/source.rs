//! Where objects come from.
//!
//! [`directory::Directory`] reads manifests from a folder; `documents` splits files into
//! documents and objects; `watch` says when to look again. [`kube`] follows an API server.

pub mod directory;
mod documents;
mod files;
pub mod kube;
mod watch;
