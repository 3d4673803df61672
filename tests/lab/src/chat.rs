//! A connection that a test keeps open while the world changes around it.

use std::io::{BufRead, BufReader, Write};
use std::process::ChildStdout;

use anyhow::{Context, Result, ensure};
use karst_harness::{Lab, Running};
use serde_json::Value;

/// An open connection of a pod to an echo server.
pub struct Chat {
    running: Running,
    answers: BufReader<ChildStdout>,
    /// What the client saw when it connected.
    pub connected: Value,
}

impl Chat {
    /// Connects from a pod.
    pub fn open(lab: &Lab, pod: &str, address: &str) -> Result<Self> {
        let mut running = lab.spawn(pod, &["karst-testapp", "chat", address])?;
        let stdout = running
            .child()?
            .stdout
            .take()
            .context("no standard output")?;
        let mut answers = BufReader::new(stdout);
        let mut first = String::new();
        answers.read_line(&mut first)?;
        let connected: Value =
            serde_json::from_str(&first).with_context(|| format!("{first:?}"))?;
        ensure!(
            connected["ok"] == true,
            "chat from {pod} to {address}: {connected}"
        );
        Ok(Self {
            running,
            answers,
            connected,
        })
    }

    /// Sends a line and expects it back.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let child = self.running.child()?;
        let input = child.stdin.as_mut().context("no standard input")?;
        writeln!(input, "{line}").context("the chat has ended")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(answer.trim_end() == line, "said {line:?}, heard {answer:?}");
        Ok(())
    }

    /// Ends the sending side; the server has to end its own, and all of it without an error.
    pub fn end(self) -> Result<()> {
        let Self {
            running, answers, ..
        } = self;
        drop(answers);
        let output = running.finish()?;
        ensure!(
            output.status.success(),
            "the chat ended with {}",
            output.status
        );
        Ok(())
    }
}
