//! Which of two agents of a node is the newer one. An upgrade makes the newer one take the node
//! over; the older one, whose container may be started again meanwhile, must not take it back: of
//! their processes its would then be the younger one.
//!
//! What counts is when an agent was started first. It is kept beside the readiness socket, in a
//! directory that lives as long as the agent's pod; the agent that serves writes its own into the
//! state directory, which all agents of the node share.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Hundredths of a second since the node was started: clocks may be set, this goes on.
type Instant = u64;

/// The file in the state directory.
const SERVING: &str = "serving-since";

/// When this agent was started first, and where it is told who serves.
#[derive(Clone, Debug)]
pub struct Seniority {
    own: Instant,
    serving: PathBuf,
}

impl Seniority {
    /// Looks for an earlier start of the same agent. Without a readiness socket each start is a
    /// new agent's.
    ///
    /// # Errors
    /// `/proc` cannot be read, or the directory of the readiness socket not be used.
    pub fn find(ready_socket: Option<&Path>, state_dir: &Path) -> io::Result<Self> {
        let now = uptime()?;
        let own = match ready_socket {
            Some(socket) => first_start(&beside(socket), now)?,
            None => now,
        };
        Ok(Self {
            own,
            serving: state_dir.join(SERVING),
        })
    }

    /// Tells other agents that this one serves.
    pub fn serves(&self) {
        let written = fs::write(&self.serving, self.own.to_string());
        if let Err(error) = written {
            // Then an older agent may take the node back once, no worse.
            tracing::warn!(%error, path = %self.serving.display(), "cannot note since when this agent is there");
        }
    }

    /// Whether this agent is newer than the one that serves. One that does not say since when it is
    /// there is older.
    pub fn is_newer(&self) -> bool {
        read(&self.serving).is_none_or(|serving| serving < self.own)
    }
}

fn beside(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".since");
    PathBuf::from(name)
}

fn first_start(path: &Path, now: Instant) -> io::Result<Instant> {
    // A later one is of a time before the node was started again.
    if let Some(first) = read(path).filter(|first| *first <= now) {
        return Ok(first);
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, now.to_string())?;
    Ok(now)
}

fn read(path: &Path) -> Option<Instant> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn uptime() -> io::Result<Instant> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split(' ').next().unwrap_or_default();
    let digits = seconds.replace('.', "");
    let unusable = |_| io::Error::new(io::ErrorKind::InvalidData, "/proc/uptime has no number");
    digits.parse().map_err(unusable)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::thread::sleep;
    use std::time::Duration;

    use super::Seniority;

    /// More than the clock's step.
    const A_MOMENT: Duration = Duration::from_millis(30);

    fn start(socket: Option<&Path>, state: &Path) -> Seniority {
        sleep(A_MOMENT);
        Seniority::find(socket, state).expect("found")
    }

    #[test]
    fn an_older_agent_that_is_started_again_stays_the_older_one() {
        let dir = tempfile::tempdir().expect("dir");
        let pod = |name: &str| dir.path().join(name).join("agent.sock");
        let (old, new) = (pod("old"), pod("new"));
        let first = start(Some(&old), dir.path());
        assert!(first.is_newer(), "nobody serves");
        first.serves();
        let second = start(Some(&new), dir.path());
        assert!(second.is_newer());
        second.serves();
        assert!(!first.is_newer(), "it has handed over");
        assert!(!start(Some(&old), dir.path()).is_newer());
        // The newer one dies, and the older one steps in: the newer one takes over again.
        first.serves();
        assert!(start(Some(&new), dir.path()).is_newer());
    }

    #[test]
    fn without_a_place_to_remember_each_start_is_a_new_agents() {
        let dir = tempfile::tempdir().expect("dir");
        start(None, dir.path()).serves();
        assert!(start(None, dir.path()).is_newer());
    }

    #[test]
    fn a_start_before_the_nodes_own_and_garbage_do_not_count() {
        let dir = tempfile::tempdir().expect("dir");
        let socket = dir.path().join("agent.sock");
        let since = dir.path().join("agent.sock.since");
        for text in ["99999999999999", "x", "", "-1"] {
            fs::write(&since, text).expect("written");
            let found = start(Some(&socket), dir.path());
            assert_ne!(found.own, 99_999_999_999_999);
            assert_eq!(
                fs::read_to_string(&since).expect("there"),
                found.own.to_string()
            );
        }
        fs::write(dir.path().join("serving-since"), "x").expect("written");
        assert!(start(Some(&socket), dir.path()).is_newer());
    }
}
