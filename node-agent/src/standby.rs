//! Until it is this agent's turn: it gets ready beside the agent that serves the
//! node, asks that one to hand over, or waits until it is gone.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karst_datapath::{Datapath, DatapathConfig, LAYOUT_VERSION};

use crate::app::AppError;
use crate::config::Config;
use crate::context::{Certificates, KernelSlot};
use crate::enrol::Inherited;
use crate::enrol::wishes::Wishes;
use crate::preflight;
use crate::process;
use crate::seniority::Seniority;
use crate::takeover::giver::Lock;
use crate::takeover::{self, TakeoverError, taker};

/// How often the lock is tried.
const LOOK: Duration = Duration::from_millis(100);

/// How long certificates are waited for before the running agent is asked without
/// them: it knows whether it has any of them.
const CERTIFICATES_WAIT: Duration = Duration::from_secs(10);

/// Wait after a takeover that failed: each attempt holds up the node's connections.
const RETRY: Duration = Duration::from_secs(5);

/// How long an agent that cannot hand over (one of another version) is waited for.
/// Longer than a drain of it that may just be under way; then whoever started this
/// agent must know.
const OLD_AGENT_WAIT: Duration = Duration::from_secs(90);

/// The right to serve this node.
#[derive(Debug)]
pub struct Turn {
    /// The lock that says so.
    pub lock: Lock,
    /// The programs and maps.
    pub datapath: Arc<Datapath>,
    /// The former agent's listeners; `None` if there was no hand-over.
    pub inherited: Option<Inherited>,
}

/// What an agent needs to come to its turn.
pub struct Standby {
    /// Configuration.
    pub config: Config,
    /// Where the eBPF programs and maps live.
    pub places: DatapathConfig,
    /// What must be had before.
    pub certificates: Arc<dyn Certificates>,
    /// Who is to be served.
    pub wishes: Rc<RefCell<Wishes>>,
    /// Where the data plane finds the datapath.
    pub kernel: Arc<KernelSlot>,
    /// Whether to ask at all: an older agent waits until the newer one has ended.
    pub seniority: Seniority,
}

impl Standby {
    /// Waits for the turn. `lock` is that of an agent that found the node free.
    ///
    /// # Errors
    /// The kernel side cannot be set up, or another agent serves that cannot hand over.
    pub async fn turn(&self, lock: Option<File>) -> Result<Turn, AppError> {
        if let Some(lock) = lock {
            return self.adopt(lock);
        }
        let dir = &self.config.state_dir;
        let mut deaf_since: Option<Instant> = None;
        let mut synced_at: Option<Instant> = None;
        let mut ask_at = Instant::now();
        loop {
            if let Some(lock) = free(dir).await {
                tracing::info!("the former agent is gone");
                return self.adopt(lock);
            }
            if ask_at <= Instant::now()
                && self.seniority.is_newer()
                && let Some(missing) = self.missing(&mut synced_at)
            {
                match self.take_over(missing).await {
                    Ok(turn) => return Ok(turn),
                    Err(Failure::Fatal(error)) => return Err(error),
                    Err(Failure::Later(error)) => {
                        tracing::warn!(%error, reason = error.reason(), retry_in = ?RETRY, "not taken over");
                        ask_at = Instant::now() + RETRY;
                        let deaf = cannot_hand_over(&error);
                        deaf_since = deaf.then(|| deaf_since.unwrap_or_else(Instant::now));
                    }
                }
            }
            if deaf_since.is_some_and(|since| since.elapsed() > OLD_AGENT_WAIT) {
                return Err(AppError::OtherAgent(dir.clone()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Identities without a certificate, once it makes sense to ask; sees to it that
    /// they get one.
    fn missing(&self, synced_at: &mut Option<Instant>) -> Option<Vec<String>> {
        let wanted: HashSet<_> = self.wishes.borrow().identities()?;
        let since = *synced_at.get_or_insert_with(Instant::now);
        let mut missing = Vec::new();
        for id in &wanted {
            if self.certificates.has(id) {
                continue;
            }
            if let Err(error) = self.certificates.want(id) {
                tracing::warn!(%error, identity = %id, "certificate cannot be wanted");
            }
            missing.push(id.to_string());
        }
        (missing.is_empty() || since.elapsed() > CERTIFICATES_WAIT).then_some(missing)
    }

    async fn take_over(&self, missing: Vec<String>) -> Result<Turn, Failure> {
        preflight::check(&self.config)?;
        let offer = taker::ask(&takeover::socket(&self.config.state_dir), missing).await?;
        // Programs that the kernel refuses are found out while the running agent can go on.
        // With another layout that would take its maps away from it.
        let early = match offer.layout {
            LAYOUT_VERSION => Some(self.open()?),
            _ => None,
        };
        let taken = offer.accept().await?;
        let datapath = match early {
            Some(datapath) => datapath,
            None => self.open()?,
        };
        tracing::info!(
            pods = taken.listeners.len(),
            "taken over from the running agent"
        );
        Ok(self.turn_with(taken.lock, datapath, Some(taken.listeners)))
    }

    fn adopt(&self, lock: File) -> Result<Turn, AppError> {
        let datapath = self.open()?;
        Ok(self.turn_with(lock, datapath, None))
    }

    fn open(&self) -> Result<Arc<Datapath>, AppError> {
        Ok(Arc::new(Datapath::open(&self.places)?))
    }

    fn turn_with(&self, lock: File, datapath: Arc<Datapath>, inherited: Option<Inherited>) -> Turn {
        self.kernel.set(Arc::clone(&datapath));
        Turn {
            lock: Rc::new(RefCell::new(Some(lock))),
            datapath,
            inherited,
        }
    }
}

/// The lock, if nobody has it. What stands in the way may pass, and this agent may still have
/// connections to finish: it looks again later.
async fn free(state_dir: &Path) -> Option<File> {
    match process::lock_state_dir(state_dir) {
        Ok(lock) => lock,
        Err(error) => {
            tracing::warn!(%error, path = %state_dir.display(), retry_in = ?RETRY, "state directory cannot be used");
            tokio::time::sleep(RETRY).await;
            None
        }
    }
}

enum Failure {
    Later(TakeoverError),
    Fatal(AppError),
}

impl From<TakeoverError> for Failure {
    fn from(error: TakeoverError) -> Self {
        Self::Later(error)
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        Self::Fatal(error)
    }
}

/// Whether asking again will not help.
fn cannot_hand_over(error: &TakeoverError) -> bool {
    matches!(error, TakeoverError::Io { .. }) || error.reason() == takeover::VERSION
}

#[cfg(test)]
mod tests {
    use super::{RETRY, free};

    #[tokio::test(start_paused = true)]
    async fn a_state_directory_that_cannot_be_used_for_a_while_ends_nobody() {
        let dir = tempfile::tempdir().expect("dir");
        let lock = dir.path().join("lock");
        std::fs::create_dir(&lock).expect("in the way");
        let started = tokio::time::Instant::now();
        assert!(free(dir.path()).await.is_none());
        assert!(started.elapsed() >= RETRY, "not again and again");
        std::fs::remove_dir(&lock).expect("usable again");
        assert!(free(dir.path()).await.is_some());
    }
}
