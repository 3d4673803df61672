//! The CNI plugin: asks the node agent, over a Unix socket that only root may open, to take a
//! pod's sandbox before anything runs in it, and fails the sandbox when the agent does not.
//!
//! It is chained after the plugin that makes the network and passes that plugin's result on. It
//! knows nothing of labels, identities or the kernel: [`plugin::run`] is all of it, [`wire`] is
//! what it says to the agent, which shares the types. It has no runtime, no threads beyond one
//! that bounds the time, and prints nothing but its result.
#![forbid(unsafe_code)]

pub mod client;
pub mod config;
pub mod error;
pub mod json_text;
pub mod plugin;
pub mod wire;

/// The plugin's name: of its binary, and its `type` in a CNI configuration.
pub const PLUGIN_TYPE: &str = "karst-cni";

/// Where the agent listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/karst/cni.sock";

/// Versions of the CNI specification whose results we can pass on. Older ones hand no earlier
/// result to a chained plugin.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
