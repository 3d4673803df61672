//! Tokens and keys, without a proxy around them.
