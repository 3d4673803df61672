//! From the wire to a [`crate::table::Table`].
//!
//! [`Store`] takes resources from the controller, checks and compiles each, and swaps the table as a whole. What
//! is invalid is refused by name, and the last good version of that name stays. A version that refers to something
//! that has not arrived yet waits while there is an older, complete one: the order in which resources of different
//! types arrive is never seen by a request.
//!
//! Start reading at [`Store`]; `listener` has the frontends, `server_tls` and `client_tls` what TLS needs.

mod attached;
mod authentications;
mod backends;
mod client_tls;
mod error;
mod frontend;
mod listener;
mod listing;
mod policies;
mod routes;
mod secret;
mod server_tls;
mod store;

pub(crate) use client_tls::system_client_config;
pub use error::ConfigError;
pub(crate) use error::at_most;
pub use listing::{Item, Kind, Listing, State};
pub use store::Store;

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
