//! Tests on a real cluster. All tests of this program share one cluster, see [`shared`]; each works
//! in a namespace of its own, and those that break the cluster (`faults`) say so and mend it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod access;
mod base;
mod bugreport;
mod diagnosis;
mod faults;
mod inspect;
mod live;
mod mesh;
mod outage;
mod policy;
mod shared;
mod waypoint;
mod workloads;
