//! From the wire to a [`crate::table::Table`].
