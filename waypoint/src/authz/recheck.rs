//! Brings what has been allowed back to its decision when the policies have changed.
//!
//! Everything that lasts (a connection of bytes, an upgraded stream, a response that has not ended) holds a
//! [`Watch`]. It is ready once after each change of the table; whoever holds it asks the new table then. What is
//! under way notices with its next byte; what is silent is woken within [`PAUSE`].

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hashbrown::HashMap;

use crate::table::Tables;

/// Time between two rounds of a worker: changes that come in a row cost one round, and a change of policy takes
/// effect well within a second.
const PAUSE: Duration = Duration::from_millis(200);

/// What of one worker comes back to its decision.
pub struct Rechecks {
    tables: Arc<Tables>,
    waiting: RefCell<HashMap<u64, Waker>>,
    last_key: Cell<u64>,
}

impl Rechecks {
    /// For one worker.
    #[must_use]
    pub fn new(tables: Arc<Tables>) -> Rc<Self> {
        Rc::new(Self {
            tables,
            waiting: RefCell::default(),
            last_key: Cell::new(0),
        })
    }

    /// Wakes what is silent, for as long as the worker runs.
    pub async fn run(self: Rc<Self>) {
        let mut changes = self.tables.changes();
        while changes.changed().await.is_ok() {
            // Waking polls nothing at once, but it may drop what registers itself here.
            let wakers: Vec<Waker> = self.waiting.borrow().values().cloned().collect();
            wakers.into_iter().for_each(Waker::wake);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Watches for something that a table has allowed. `seen` is [`Tables::generation`] from before that table was
    /// loaded.
    #[must_use]
    pub fn watch(self: &Rc<Self>, seen: u64) -> Watch {
        Watch {
            rechecks: Rc::clone(self),
            seen: Cell::new(seen),
            key: None,
        }
    }
}

/// Is ready after each change of the table.
pub struct Watch {
    rechecks: Rc<Rechecks>,
    /// The table that has been asked last.
    seen: Cell<u64>,
    key: Option<u64>,
}

impl Watch {
    /// Whether the table is another one than when this was asked last.
    pub fn is_due(&self) -> bool {
        let now = self.rechecks.tables.generation();
        self.seen.replace(now) != now
    }

    /// Likewise, and wakes the task when it comes to be so.
    pub fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_due() {
            return Poll::Ready(());
        }
        let mut waiting = self.rechecks.waiting.borrow_mut();
        let key = *self.key.get_or_insert_with(|| {
            let last = &self.rechecks.last_key;
            last.set(last.get().wrapping_add(1));
            last.get()
        });
        waiting
            .entry(key)
            .and_modify(|waker| waker.clone_from(cx.waker()))
            .or_insert_with(|| cx.waker().clone());
        Poll::Pending
    }

    /// Waits until the table is another one.
    pub async fn due(&mut self) {
        poll_fn(|cx| self.poll_due(cx)).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            // Taken out and dropped behind the borrow: a waker's drop may run what borrows again.
            let waker = self.rechecks.waiting.borrow_mut().remove(&key);
            drop(waker);
        }
    }
}
