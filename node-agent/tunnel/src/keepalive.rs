//! PING.
