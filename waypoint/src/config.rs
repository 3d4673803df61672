//! From the wire to a [`crate::table::Table`].

mod error;

pub use error::ConfigError;
pub(crate) use error::at_most;
