//! Read buffers.
