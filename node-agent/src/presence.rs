//! Whether this very process serves the node. During an upgrade two agents share
//! the node's network namespace and its ports, so a kubelet that asks a port cannot
//! know which one answered; it runs `karst-node-agent ready` in the container instead,
//! which asks this process's own socket.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use hyper::StatusCode;
use karst_process::http_server::{Reply, serve_unix};
use tokio::task::spawn_local;

use crate::admin::{Admin, bind_private, not_ready};

/// Longest wait for the answer; a kubelet gives a probe a second by default.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Most bytes of an answer that are read.
const ANSWER_BYTES: u64 = 4096;

/// Waits for the running agent to hand over.
pub const WAITING: &str = "waiting_for_handover";
/// Has handed over and finishes its connections.
pub const HANDED_OVER: &str = "handed_over";

/// Whether this agent serves, as its probe sees it.
pub struct Presence {
    serving: RefCell<Option<Arc<Admin>>>,
    otherwise: Cell<&'static str>,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            serving: RefCell::new(None),
            otherwise: Cell::new(WAITING),
        }
    }
}

impl Presence {
    /// It serves, and `admin` knows how well.
    pub fn serving(&self, admin: Arc<Admin>) {
        self.serving.replace(Some(admin));
    }

    /// It does not serve.
    pub fn absent(&self, reason: &'static str) {
        self.serving.replace(None);
        self.otherwise.set(reason);
    }

    /// The answer to a probe.
    pub fn ready(&self) -> Reply {
        match &*self.serving.borrow() {
            Some(admin) => admin.ready(),
            None => not_ready(self.otherwise.get()),
        }
    }

    /// Answers probes at `socket` from now on.
    ///
    /// # Errors
    /// The path cannot be used.
    pub fn serve(self: &Rc<Self>, socket: &Path) -> io::Result<()> {
        let listener = bind_private(socket, |path| tokio::net::UnixListener::bind(path))?;
        let presence = Rc::clone(self);
        spawn_local(serve_unix(listener, move |_| {
            std::future::ready(presence.ready())
        }));
        Ok(())
    }
}

/// `karst-node-agent ready`: asks the agent of this container whether it serves.
#[derive(Clone, Debug, Parser)]
#[command(name = "karst-node-agent ready", version, max_term_width = 100)]
pub struct ReadyArgs {
    /// The agent's --ready-socket.
    #[arg(long, env = "KARST_READY_SOCKET")]
    pub socket: PathBuf,
}

/// Asks the agent at `socket`.
///
/// # Errors
/// It does not answer, or says that it is not ready: then the error has its words.
pub fn ask(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: karst\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status == StatusCode::OK.as_str() {
        return Ok(());
    }
    let words = answer.split("\r\n\r\n").nth(1).unwrap_or("no answer");
    Err(io::Error::other(words.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::LocalSet;

    use super::{HANDED_OVER, Presence, ask};

    #[tokio::test]
    async fn an_agent_that_does_not_serve_is_not_ready_and_says_why() {
        let dir = tempfile::tempdir().expect("dir");
        let socket = dir.path().join("ready.sock");
        assert!(ask(&socket).is_err(), "nobody is there");
        let local = LocalSet::new();
        let presence = Rc::new(Presence::default());
        local
            .run_until(async {
                presence.serve(&socket).expect("serves");
                for (reason, change) in [
                    ("waiting_for_handover", None),
                    ("handed_over", Some(HANDED_OVER)),
                ] {
                    if let Some(change) = change {
                        presence.absent(change);
                    }
                    let socket = socket.clone();
                    let asked = tokio::task::spawn_blocking(move || ask(&socket)).await;
                    let error = asked.expect("ran").expect_err("not ready");
                    assert!(error.to_string().contains(reason), "{error}");
                }
            })
            .await;
    }
}
