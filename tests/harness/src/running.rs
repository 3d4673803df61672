//! A process in the lab that a caller started and still owns.

use std::process::{Child, Output};

use anyhow::{Context, Result};

/// A child process that is killed when its owner lets go of it, so that a failed test
/// leaves none behind.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
}

impl Running {
    /// Takes a child over.
    pub fn new(child: Child) -> Self {
        Self { child: Some(child) }
    }

    /// The child, for its pipes and process id.
    pub fn child(&mut self) -> Result<&mut Child> {
        self.child
            .as_mut()
            .context("the process was already awaited")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child()?.try_wait()?.is_none())
    }

    /// Closes its standard input, waits for its end and gives what it wrote to the pipes
    /// that are still there.
    pub fn finish(mut self) -> Result<Output> {
        let child = self
            .child
            .take()
            .context("the process was already awaited")?;
        child.wait_with_output().context("waiting for a process")
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        let child = self.child()?;
        child.kill()?;
        child.wait()?;
        self.child = None;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A child that has ended cannot be killed; that is what is wanted anyway.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
