//! Changes of requests and responses.

/// A compiled filter.
pub enum Filter {}
