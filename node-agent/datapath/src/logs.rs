//! The programs' log records, sent on to `tracing`.

use std::sync::atomic::Ordering;

use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::DatapathError;
use crate::node::Datapath;

/// Sends records of the `log` crate, which aya writes, to `tracing`.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        match record.level() {
            Level::Error => tracing::error!(target: "karst::bpf", "{}", record.args()),
            Level::Warn => tracing::warn!(target: "karst::bpf", "{}", record.args()),
            Level::Info => tracing::info!(target: "karst::bpf", "{}", record.args()),
            Level::Debug => tracing::debug!(target: "karst::bpf", "{}", record.args()),
            Level::Trace => tracing::trace!(target: "karst::bpf", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}

impl Datapath {
    /// Sends the programs' log records (refusals and forgeries; target `karst::bpf`) to
    /// `tracing` until the runtime ends. Call inside a tokio runtime; a second call does nothing.
    ///
    /// # Errors
    /// The log buffer is missing or cannot be mapped. Records are then dropped by the kernel.
    pub fn start_logging(&self) -> Result<(), DatapathError> {
        if self.logging.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let failed = |detail: String| DatapathError::Log { detail };
        let logger = EbpfLogger::init_from_id_with_logger(self.program_id, ToTracing)
            .map_err(|error| failed(error.to_string()))?;
        // SAFETY: the logger owns its ring buffer's descriptor, never replaces it, and moves into
        // the registration, so the descriptor stays open and the same until that is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        let mut logger = registered.map_err(|error| failed(error.to_string()))?;
        tokio::spawn(async move {
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        });
        Ok(())
    }
}
