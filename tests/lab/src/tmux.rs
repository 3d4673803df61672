//! A terminal of a given size, to see what a program shows on it: Debian's tmux, whose server is the test's own.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::until;

/// Servers of this process so far.
static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// How soon something is to be seen on the screen.
const SHOWN_WITHIN: Duration = Duration::from_secs(20);

/// A terminal in which a shell runs. It goes with this.
#[derive(Debug)]
pub struct Tmux {
    socket: String,
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // The server is ours alone, by its socket. One that has ended is what is wanted.
        let _ = self.run(&["kill-server"]);
    }
}

impl Tmux {
    /// A terminal of `columns` and `rows` with a shell. Fails where there is no tmux (`cargo xtask setup`
    /// installs it).
    pub fn open(columns: u16, rows: u16) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tmux = Self {
            socket: format!("karst-test-{}-{number}", std::process::id()),
        };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let size = ["-x", columns.as_str(), "-y", rows.as_str()];
        let session = [
            &["new-session", "-d"],
            &size[..],
            &["env", "-u", "NO_COLOR", "PS1=shell$ ", "sh"],
        ];
        tmux.run(&session.concat())
            .context("tmux is needed for this test; `cargo xtask setup` installs it")?;
        tmux.until("shell$")?;
        Ok(tmux)
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("tmux")
            .args(["-u", "-L", &self.socket, "-f", "/dev/null"])
            .args(args)
            .env_remove("TMUX")
            .stdin(Stdio::null())
            .output()
            .context("running tmux")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tmux {args:?}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Types a command and enters it.
    pub fn enter(&self, command: &str) -> Result<()> {
        self.run(&["send-keys", "-l", command])?;
        self.key("Enter")
    }

    /// Presses a key, by its name in tmux.
    pub fn key(&self, key: &str) -> Result<()> {
        self.run(&["send-keys", key]).map(drop)
    }

    /// What is on the screen.
    pub fn screen(&self) -> Result<String> {
        self.run(&["capture-pane", "-p"])
    }

    /// What is on the screen, with the codes of its colours.
    pub fn coloured(&self) -> Result<String> {
        self.run(&["capture-pane", "-p", "-e"])
    }

    /// Makes the terminal larger or smaller.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        self.run(&["resize-window", "-x", &columns, "-y", &rows])
            .map(drop)
    }

    /// Waits until the screen shows `text`, and gives it.
    pub fn until(&self, text: &str) -> Result<String> {
        self.until_is(text, |screen| screen.contains(text))
    }

    /// Waits until the screen is as it should be, and gives it.
    pub fn until_is(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        until(&format!("{what:?} on the screen"), SHOWN_WITHIN, || {
            let screen = self.screen()?;
            ensure!(is(&screen), "it shows:\n{screen}");
            Ok(screen)
        })
    }
}

/// A command as one types it into a shell, in its own environment.
pub fn typed(command: &Command) -> String {
    let quoted = |text: &OsStr| {
        let text = text.to_string_lossy().replace('\'', "'\\''");
        format!("'{text}'")
    };
    let set = command.get_envs().filter_map(|(name, value)| {
        let value = value?;
        // The terminal is the one that it is typed into.
        (name != "TERM").then(|| format!("{}={}", name.to_string_lossy(), quoted(value)))
    });
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    let parts = set.chain(words.map(quoted));
    parts.collect::<Vec<_>>().join(" ")
}
