//! The agent's side of CNI: [`server`] answers the plugin, [`install`] puts the plugin on the
//! node and keeps it in the runtime's configuration, [`conflist`] knows how to edit that.

pub mod conflist;
pub mod install;
pub mod server;
