//! Changes the level of the log while the program runs.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::{EnvFilter, Registry, reload};

use super::level::{self, BadLevel};

/// Shortest and longest time for which a level may be set: less is over before one looks, and what is to last longer
/// belongs into the configuration.
const TIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

static CONTROL: OnceLock<Arc<Control>> = OnceLock::new();

/// The control of the process's log; none before [`super::init`].
pub fn control() -> Option<&'static Arc<Control>> {
    CONTROL.get()
}

pub(super) fn install(handle: reload::Handle<EnvFilter, Registry>, level: &str) {
    // The subscriber is set once in a process, and so is this.
    let _ = CONTROL.set(Arc::new(Control::new(handle, level)));
}

/// What the level is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LevelState {
    /// Now.
    pub level: String,
    /// The one the program was started with.
    pub default_level: String,
    /// Seconds until it goes back to that; none if it stays.
    pub seconds_left: Option<u64>,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The level.
    pub level: String,
    /// After which time it goes back to the one the program was started with.
    pub lasts: Option<Duration>,
}

/// Why a level was not set.
#[derive(Debug, thiserror::Error)]
pub enum NotSet {
    /// It is none.
    #[error(transparent)]
    Level(#[from] BadLevel),
    /// The time is too short or too long.
    #[error("a level may be set for 1 second to 7 days")]
    Time,
    /// The log is gone, or no thread could be made.
    #[error("the level cannot be changed: {0}")]
    Failed(String),
}

impl NotSet {
    /// Stable label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Level(_) => "log_level_invalid",
            Self::Time => "log_time_invalid",
            Self::Failed(_) => "log_level_unchanged",
        }
    }
}

/// The level of a log.
#[derive(Debug)]
pub struct Control {
    handle: reload::Handle<EnvFilter, Registry>,
    default: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    level: String,
    until: Option<Instant>,
    /// A thread waits for that time.
    waits: bool,
}

impl Control {
    fn new(handle: reload::Handle<EnvFilter, Registry>, level: &str) -> Self {
        Self {
            handle,
            default: level.to_owned(),
            state: Mutex::new(State {
                level: level.to_owned(),
                until: None,
                waits: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the level is.
    #[must_use]
    pub fn get(&self) -> LevelState {
        let state = self.state();
        let left = state
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        LevelState {
            level: state.level.clone(),
            default_level: self.default.clone(),
            seconds_left: left.map(|left| left.as_secs()),
        }
    }

    /// Sets it. An earlier change for a time is forgotten.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn set(self: &Arc<Self>, change: &Change) -> Result<LevelState, NotSet> {
        let filter = level::filter(&change.level)?;
        if change.lasts.is_some_and(|lasts| !TIMES.contains(&lasts)) {
            return Err(NotSet::Time);
        }
        {
            let mut state = self.state();
            if change.lasts.is_some() && !state.waits {
                let control = Arc::clone(self);
                std::thread::Builder::new()
                    .name("karst-log-level".to_owned())
                    .spawn(move || control.go_back_in_time())
                    .map_err(|error| NotSet::Failed(error.to_string()))?;
                state.waits = true;
            }
            self.reload(filter)?;
            state.level.clone_from(&change.level);
            state.until = change.lasts.map(|lasts| Instant::now() + lasts);
            self.changed.notify_all();
        }
        tracing::info!(level = change.level, lasts = ?change.lasts, "log level set");
        Ok(self.get())
    }

    /// Goes back to the level the program was started with.
    ///
    /// # Errors
    /// The log is gone.
    pub fn reset(self: &Arc<Self>) -> Result<LevelState, NotSet> {
        self.set(&Change {
            level: self.default.clone(),
            lasts: None,
        })
    }

    fn reload(&self, filter: EnvFilter) -> Result<(), NotSet> {
        let reloaded = self.handle.reload(filter);
        reloaded.map_err(|error| NotSet::Failed(error.to_string()))
    }

    /// The one thread that waits; it ends when there is nothing to wait for.
    fn go_back_in_time(self: Arc<Self>) {
        let mut state = self.state();
        while let Some(until) = state.until {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let woken = self.changed.wait_timeout(state, left);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            // It was taken when the program started.
            if let Ok(filter) = level::filter(&self.default) {
                let _ = self.reload(filter);
            }
            state.level.clone_from(&self.default);
            state.until = None;
        }
        state.waits = false;
        drop(state);
        tracing::info!(level = self.default, "log level as at the start");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::{Registry, reload};

    use super::{Change, Control};
    use crate::logging::level;

    fn change(level: &str, lasts: Option<Duration>) -> Change {
        Change {
            level: level.to_owned(),
            lasts,
        }
    }

    #[test]
    fn a_level_is_set_for_a_time_and_goes_back() {
        let (layer, handle) = reload::Layer::new(level::filter("info").expect("valid"));
        let subscriber = Registry::default().with(layer);
        let control = Arc::new(Control::new(handle, "info"));
        let debug = || tracing::enabled!(target: "karst", tracing::Level::DEBUG);
        tracing::subscriber::with_default(subscriber, || {
            assert!(!debug());
            for (bad, lasts) in [
                ("inof", None),
                ("debug", Some(Duration::ZERO)),
                ("debug", Some(Duration::from_secs(3600 * 24 * 8))),
            ] {
                control.set(&change(bad, lasts)).expect_err(bad);
                assert!(!debug(), "nothing has changed");
                assert_eq!(control.get().level, "info");
            }
            let state = control.set(&change("debug", None)).expect("set");
            assert_eq!((state.level.as_str(), state.seconds_left), ("debug", None));
            assert!(debug());
            control.reset().expect("set");
            assert!(!debug());
            let second = Some(Duration::from_secs(1));
            let state = control.set(&change("debug", second)).expect("set");
            assert_eq!(state.default_level, "info");
            assert!(state.seconds_left.is_some_and(|left| left <= 1));
            assert!(debug());
            let since = Instant::now();
            while debug() {
                assert!(since.elapsed() < Duration::from_secs(20), "it goes back");
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(control.get().level, "info");
            // What is set for good while one for a time is under way stays.
            control.set(&change("debug", second)).expect("set");
            control.set(&change("debug", None)).expect("set");
            std::thread::sleep(Duration::from_millis(1300));
            assert!(debug());
            assert_eq!(control.get().seconds_left, None);
        });
    }
}
