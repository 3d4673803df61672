//! Holds back the same event again and again, and sums it up.
//!
//! The same is what comes from the same place in the code with the same message and reason, whatever its other fields
//! say. Only what is shown without being asked for is held back, which is `info` and above: whoever sets a level of
//! `debug` wants to see all of it.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use std::sync::OnceLock;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The same event so many times in [`INTERVAL`] is shown; a handful of nodes or routes with the same fault still are.
const BURST: u32 = 20;

/// How long events are counted together.
const INTERVAL: Duration = Duration::from_secs(30);

/// Different events that are counted at once, about 100 bytes each. Two that fall into the same place take turns, and
/// are then shown more often than they should be.
const SLOTS: usize = 512;

/// Longest text that a summary repeats, bytes.
const MAX_TEXT: usize = 200;

/// The layer. It must come before those that write.
#[derive(Debug)]
pub(super) struct Repeats(Arc<Shared>);

/// What sums up, in a thread of its own.
#[derive(Debug)]
pub(super) struct Summaries(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    slots: Mutex<Vec<Option<Slot>>>,
    thread: OnceLock<Thread>,
}

#[derive(Debug)]
struct Slot {
    hash: u64,
    since: Instant,
    shown: u32,
    held: u64,
    what: Option<What>,
}

/// What a summary says of an event.
#[derive(Clone, Debug)]
struct What {
    metadata: &'static Metadata<'static>,
    message: String,
    reason: String,
}

/// A summary: what was held back, and how often.
#[derive(Debug)]
struct Summary {
    what: What,
    count: u64,
}

impl Repeats {
    pub(super) fn new() -> (Self, Summaries) {
        let shared = Arc::new(Shared {
            slots: Mutex::new((0..SLOTS).map(|_| None).collect()),
            thread: OnceLock::new(),
        });
        (Self(Arc::clone(&shared)), Summaries(shared))
    }
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, Vec<Option<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an event is shown.
    fn take(&self, hash: u64, now: Instant, what: impl FnOnce() -> What) -> bool {
        let mut slots = self.slots();
        let at = usize::try_from(hash % SLOTS as u64).unwrap_or(0);
        let Some(place) = slots.get_mut(at) else {
            return true;
        };
        let fresh =
            |slot: &Slot| slot.hash == hash && now.saturating_duration_since(slot.since) < INTERVAL;
        match place {
            Some(slot) if fresh(slot) || slot.held > 0 && slot.hash == hash => {
                if slot.shown < BURST {
                    slot.shown += 1;
                    return true;
                }
                slot.held += 1;
                if slot.what.is_none() {
                    slot.what = Some(what());
                    if let Some(thread) = self.thread.get() {
                        thread.unpark();
                    }
                }
                false
            }
            // Another event's, of which something is still to be said.
            Some(slot) if slot.held > 0 => true,
            _ => {
                *place = Some(Slot {
                    hash,
                    since: now,
                    shown: 1,
                    held: 0,
                    what: None,
                });
                true
            }
        }
    }

    /// What was held back and whose interval is over by `now`, and when the next one is.
    fn due(&self, now: Instant) -> (Vec<Summary>, Option<Instant>) {
        let (mut summaries, mut next) = (Vec::new(), None::<Instant>);
        for place in self.slots().iter_mut() {
            let Some(slot) = place.as_mut().filter(|slot| slot.held > 0) else {
                continue;
            };
            let end = slot.since + INTERVAL;
            if end > now {
                next = Some(next.map_or(end, |next| next.min(end)));
                continue;
            }
            if let Some(what) = slot.what.take() {
                let count = slot.held;
                summaries.push(Summary { what, count });
            }
            *place = None;
        }
        (summaries, next)
    }
}

impl Summaries {
    /// Starts the thread.
    pub(super) fn start(self) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new()
            .name("karst-log".to_owned())
            .spawn(move || self.run())?;
        let _ = shared.thread.set(thread.thread().clone());
        // What was held back before the thread was known.
        thread.thread().unpark();
        Ok(())
    }

    fn run(&self) {
        loop {
            let (summaries, next) = self.0.due(Instant::now());
            for summary in &summaries {
                summary.write();
            }
            match next {
                Some(next) => {
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                None if summaries.is_empty() => std::thread::park(),
                None => {}
            }
        }
    }
}

impl Summary {
    fn write(&self) {
        let What {
            metadata,
            message,
            reason,
        } = &self.what;
        let (module, repeated) = (metadata.target(), self.count);
        // The name of a level is part of a place in the code, so there is one for each.
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(
                    repeated,
                    module,
                    reason,
                    "repeated {repeated} times: {message}"
                )
            };
        }
        match *metadata.level() {
            Level::ERROR => say!(error),
            Level::WARN => say!(warn),
            _ => say!(info),
        }
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Levels are ordered by how much they show.
        if *metadata.level() > Level::INFO || metadata.target() == module_path!() {
            return true;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut hasher = DefaultHasher::new();
        metadata.callsite().hash(&mut hasher);
        fields.message.hash(&mut hasher);
        fields.reason.hash(&mut hasher);
        self.0.take(hasher.finish(), Instant::now(), || What {
            metadata,
            message: fields.message,
            reason: fields.reason,
        })
    }
}

/// The two fields that matter.
#[derive(Default)]
struct Fields {
    message: String,
    reason: String,
}

impl Fields {
    fn place(&mut self, field: &Field) -> Option<&mut String> {
        match field.name() {
            "message" => Some(&mut self.message),
            "reason" => Some(&mut self.reason),
            _ => None,
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if let Some(place) = self.place(field) {
            place.push_str(&value[..value.floor_char_boundary(MAX_TEXT)]);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if let Some(place) = self.place(field) {
            let text = format!("{value:?}");
            place.push_str(&text[..text.floor_char_boundary(MAX_TEXT)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::{Layer as _, Registry, fmt};

    use super::{BURST, INTERVAL, Repeats, SLOTS, Summaries};

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written of what `work` logs; the summaries are told when `work` wants them.
    fn logged(json: bool, work: impl FnOnce(&Summaries)) -> Vec<String> {
        let output = Output::default();
        let writer = output.clone();
        let lines = fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let lines = if json {
            lines.json().flatten_event(true).boxed()
        } else {
            lines.boxed()
        };
        let (repeats, summaries) = Repeats::new();
        let subscriber = Registry::default().with(repeats).with(lines);
        tracing::subscriber::with_default(subscriber, || work(&summaries));
        let bytes = output.0.lock().expect("lock").clone();
        let text = String::from_utf8(bytes).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    fn refused(reason: &str, from: usize) {
        tracing::warn!(reason, from, "caller refused");
    }

    fn sum_up(summaries: &Summaries) {
        let (due, _) = summaries.0.due(Instant::now() + INTERVAL * 2);
        due.iter().for_each(super::Summary::write);
    }

    #[test]
    fn the_same_again_is_held_back_and_summed_up() {
        for json in [false, true] {
            let lines = logged(json, |summaries| {
                for number in 0..100 {
                    refused("auth_expired", number);
                    refused("auth_wrong_audience", number);
                    tracing::debug!(reason = "auth_expired", "asked for");
                }
                let (due, next) = summaries.0.due(Instant::now());
                assert!(due.is_empty() && next.is_some(), "not before its time");
                sum_up(summaries);
                refused("auth_expired", 100);
                sum_up(summaries);
            });
            let count = |words: &str| lines.iter().filter(|line| line.contains(words)).count();
            let shown = lines.iter().filter(|line| line.contains("auth_expired"));
            let shown = shown.filter(|l| l.contains("WARN") && !l.contains("repeated"));
            assert_eq!(shown.count(), BURST as usize + 1, "{lines:#?}");
            assert_eq!(count("asked for"), 100, "details are not held back");
            let held = 100 - BURST;
            let words = format!("repeated {held} times: caller refused");
            assert_eq!(count(&words), 2, "one for each reason: {lines:#?}");
            let summary = lines
                .iter()
                .find(|l| l.contains(&words) && l.contains("auth_expired"));
            let summary = summary.expect("there");
            assert!(summary.contains("WARN"), "{summary}");
            if json {
                let value: serde_json::Value = serde_json::from_str(summary).expect("JSON");
                assert_eq!(value["repeated"], held);
                assert_eq!(value["reason"], "auth_expired");
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_nothing_new_is_lost() {
        let lines = logged(false, |summaries| {
            for number in 0..10 * SLOTS {
                refused(&format!("reason_{number}"), 0);
            }
            assert_eq!(summaries.0.slots().len(), SLOTS);
        });
        assert_eq!(lines.len(), 10 * SLOTS);
    }
}
