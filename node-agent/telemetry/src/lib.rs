//! What of connections and requests gets into the access log ([`filter`], [`settings`]) and into spans ([`span`]), and
//! the way of spans to a collector by OTLP ([`export`]).
//!
//! What it does not: know what a connection or a request is (agents and proxies tell by [`filter::Facts`]), write the
//! access log, or dial anything (that is the [`export::Transport`] of each). Without the feature `data-plane` there are
//! the filters alone, with which the controller checks what it is given.
//!
//! Start reading at [`settings::Reporting`].

pub mod filter;

#[cfg(feature = "data-plane")]
pub mod export;
#[cfg(feature = "data-plane")]
pub mod metrics;
#[cfg(feature = "data-plane")]
pub mod settings;
#[cfg(feature = "data-plane")]
pub mod span;
