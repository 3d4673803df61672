//! Requests through the whole path: a client's bytes, routes as the controller sends them, real applications.

#[path = "tests/authenticate.rs"]
mod authenticate;
#[path = "tests/authorize.rs"]
mod authorize;
#[path = "tests/bodies.rs"]
mod bodies;
#[path = "tests/floods.rs"]
mod floods;
#[path = "tests/malformed.rs"]
mod malformed;
#[path = "tests/messages.rs"]
mod messages;
#[path = "tests/mirrors.rs"]
mod mirrors;
#[path = "tests/requests.rs"]
mod requests;
#[path = "tests/retries.rs"]
mod retries;
#[path = "tests/routes.rs"]
mod routes;
#[path = "tests/support.rs"]
mod support;
#[path = "tests/times.rs"]
mod times;
#[path = "tests/tracing.rs"]
mod tracing;
#[path = "tests/upgrades.rs"]
mod upgrades;
