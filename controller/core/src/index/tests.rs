//! Objects in, resources out: table-driven tests of the whole core.

mod endpoints;
mod incremental;
mod lookups;
mod modes;
mod objects;
mod pods;
mod services;
mod static_pods;
pub(super) mod support;
