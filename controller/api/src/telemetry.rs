//! What is reported of connections and requests (`karst.telemetry.v1`).

include!("gen/telemetry.rs");

/// Longest filter of an access log, bytes. Reading it takes time and stack.
pub const MAX_FILTER_BYTES: usize = 1024;

/// Most tags of spans.
pub const MAX_TAGS: usize = 32;

/// Longest name of a tag, bytes.
pub const MAX_TAG_NAME_BYTES: usize = 128;

/// Longest value of a tag, bytes; the rest of a header is cut off.
pub const MAX_TAG_VALUE_BYTES: usize = 256;

/// All of it, in the unit of `log_sampling` and `sampling`.
pub const ALL: u32 = 1_000_000;
