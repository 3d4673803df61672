//! Client of the controller: keeps a copy of the mesh's resources up to date by delta discovery,
//! and reports which pods are enrolled.
//!
//! It connects, authenticates, resubscribes and reconnects; what is done with the resources is the
//! [`ResourceHandler`]'s business. It never requests certificates (that is `karst-identity`), and
//! losing the controller takes nothing away: the handler keeps what it has.
//! Start with [`DeltaAds::new`] and [`AdsTask::run`].

mod ads;
mod backoff;
mod channel;
mod config;
mod error;
mod held;
mod report;
mod session;
mod subscriptions;

pub use ads::{AdsStatus, AdsTask, DeltaAds, RejectedResource, ResourceHandler};
pub use channel::Controller;
pub use config::{AdsConfig, ControllerConfig, InitialSubscription};
pub use error::ClientError;
pub use karst_api::discovery::Resource;
pub use report::{Nack, Rejected, TypeReport};
