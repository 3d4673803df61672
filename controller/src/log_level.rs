//! The level of the log, changed while the controller runs: by signals, because what listens on its ports is open to
//! the network and none of it may change anything.

use std::{io, time::Duration};

use karst_process::logging::{self, Change};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

/// How long SIGUSR1 has effect.
const LASTS: Duration = Duration::from_secs(600);

/// From now on SIGUSR1 sets the level `debug` for ten minutes, and SIGUSR2 the one the controller was started with.
///
/// # Errors
/// The signals cannot be listened for.
pub fn follow_signals() -> io::Result<()> {
    let mut more = signal(SignalKind::user_defined1())?;
    let mut back = signal(SignalKind::user_defined2())?;
    tokio::spawn(async move {
        loop {
            let is_more = tokio::select! {
                asked = more.recv() => asked.map(|()| true),
                asked = back.recv() => asked.map(|()| false),
            };
            let (Some(is_more), Some(control)) = (is_more, logging::control()) else {
                return;
            };
            let set = if is_more {
                control.set(&Change {
                    level: "debug".to_owned(),
                    lasts: Some(LASTS),
                })
            } else {
                control.reset()
            };
            if let Err(error) = set {
                warn!(reason = error.reason(), %error, "log level not set");
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use karst_process::{args::LogFormat, logging};

    use super::*;

    /// Sends a signal to this very process, which is the only one that has the log to be set.
    fn raise(signal: &str) {
        let own = std::process::id().to_string();
        let sent = std::process::Command::new("kill")
            .args([signal, &own])
            .status();
        assert!(sent.unwrap().success());
    }

    async fn until_level(level: &str) {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while logging::control().unwrap().get().level != level {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.expect(level);
    }

    #[tokio::test]
    async fn signals_set_the_level_and_take_it_back() {
        logging::init(LogFormat::Text, "error").unwrap();
        follow_signals().unwrap();
        raise("-USR1");
        until_level("debug").await;
        let left = logging::control().unwrap().get().seconds_left;
        assert!(left.is_some_and(|left| left > 500), "{left:?}");
        raise("-USR2");
        until_level("error").await;
        assert_eq!(logging::control().unwrap().get().seconds_left, None);
    }
}
