//! Whether the proxy does what it is there for.

use karst_client::AdsStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

use crate::shared::Shared;

/// Looks at everything that traffic needs.
#[derive(Clone)]
pub struct Readiness {
    ads: watch::Receiver<AdsStatus>,
    shared: Arc<Shared>,
    draining: Arc<AtomicBool>,
}

impl Readiness {
    /// Of a proxy that listens already.
    #[must_use]
    pub fn new(ads: watch::Receiver<AdsStatus>, shared: Arc<Shared>) -> Self {
        Self {
            ads,
            shared,
            draining: Arc::default(),
        }
    }

    /// From now on it is not ready.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether new connections should come here.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining");
        }
        // Once complete it stays so: without the controller the last configuration is served.
        if !self.ads.borrow().synced {
            return Err("state_not_ready");
        }
        if (self.shared.certificate)().is_none() {
            return Err("no_certificate");
        }
        Ok(())
    }
}
