//! Jobs by name: each name once however often it comes, a few at a time, not too many a second, and
//! again later when they fail.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::retry::Retry;
use crate::feed::Feed;

/// A name's job begins this much after the name came, so that what changes in several steps is done once.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Jobs under way at a time.
const MAX_RUNNING: usize = 8;

/// Time between the beginnings of two jobs: fifty a second, of which an API server notices nothing.
const SPACING: Duration = Duration::from_millis(20);

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is nothing more to do until the name comes again.
    Done,
    /// It failed, and another time it may not.
    Again,
}

/// Names and when their jobs are due.
#[derive(Debug)]
struct Work<K> {
    due: BTreeMap<K, Instant>,
    running: BTreeSet<K>,
    failed: HashMap<K, Retry>,
}

impl<K: Ord + Clone + std::hash::Hash> Work<K> {
    fn new() -> Self {
        Self {
            due: BTreeMap::new(),
            running: BTreeSet::new(),
            failed: HashMap::new(),
        }
    }

    /// A name has come: it is due then, if not earlier.
    fn add(&mut self, key: K, at: Instant) {
        let due = self.due.entry(key).or_insert(at);
        *due = (*due).min(at);
    }

    /// The name that is due first, and when. A name whose job is under way waits for its end.
    fn first(&self) -> Option<(Instant, &K)> {
        let waiting = self
            .due
            .iter()
            .filter(|(key, _)| !self.running.contains(*key));
        waiting.map(|(key, at)| (*at, key)).min()
    }

    /// Begins what is due first.
    fn begin(&mut self, now: Instant) -> Option<K> {
        let (_, key) = self.first().filter(|(at, _)| *at <= now)?;
        let key = key.clone();
        self.due.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    fn ended(&mut self, key: K, verdict: Verdict, now: Instant) {
        self.running.remove(&key);
        match verdict {
            Verdict::Done => {
                self.failed.remove(&key);
            }
            Verdict::Again => {
                let wait = self.failed.entry(key.clone()).or_default().next();
                self.due.entry(key).or_insert(now + wait);
            }
        }
    }
}

/// Runs `job` for every name that comes, for ever. Dropped, it drops the jobs that are under way.
pub async fn drive<K, J, F>(feed: &Feed<K>, job: J)
where
    K: Ord + Clone + std::hash::Hash + Send + 'static,
    J: Fn(K) -> F,
    F: Future<Output = Verdict> + Send + 'static,
{
    let mut work: Work<K> = Work::new();
    let mut jobs: JoinSet<(K, Verdict)> = JoinSet::new();
    let mut next_start = Instant::now();
    loop {
        let now = Instant::now();
        if jobs.len() < MAX_RUNNING
            && now >= next_start
            && let Some(key) = work.begin(now)
        {
            next_start = now + SPACING;
            let running = job(key.clone());
            jobs.spawn(async move { (key, running.await) });
            continue;
        }
        let wake = match jobs.len() < MAX_RUNNING {
            true => work.first().map(|(at, _)| at.max(next_start)),
            false => None,
        };
        let wait = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            keys = feed.take() => {
                let at = Instant::now() + DEBOUNCE;
                for key in keys {
                    work.add(key, at);
                }
            }
            // Jobs do not panic.
            Some(Ok((key, verdict))) = jobs.join_next() => work.ended(key, verdict, Instant::now()),
            () = wait => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    #[test]
    fn a_name_that_comes_often_is_due_once() {
        let now = Instant::now();
        let mut work = Work::new();
        work.add("a", now + DEBOUNCE);
        work.add("b", now);
        work.add("a", now + 2 * DEBOUNCE);
        assert_eq!(work.begin(now), Some("b"));
        assert_eq!(work.begin(now), None, "it is not due yet");
        assert_eq!(work.begin(now + DEBOUNCE), Some("a"));
        assert_eq!(work.first(), None);
    }

    #[test]
    fn a_name_that_comes_during_its_job_is_due_again_after_it() {
        let now = Instant::now();
        let mut work = Work::new();
        work.add("a", now);
        work.begin(now);
        work.add("a", now);
        assert_eq!(work.begin(now), None);
        work.ended("a", Verdict::Done, now);
        assert_eq!(work.begin(now), Some("a"));
    }

    #[test]
    fn a_failed_job_is_tried_again_later_and_later() {
        let mut now = Instant::now();
        let mut work = Work::new();
        work.add("a", now);
        let mut waits = Vec::new();
        for _ in 0..4 {
            work.begin(now);
            work.ended("a", Verdict::Again, now);
            let (at, _) = work.first().unwrap();
            waits.push(at - now);
            now = at;
        }
        assert!(waits[3] > 2 * waits[0], "{waits:?}");
        // Who asks for it does not wait that long.
        work.add("a", now);
        assert_eq!(work.begin(now), Some("a"));
        work.ended("a", Verdict::Done, now);
        assert!(work.failed.is_empty() && work.first().is_none());
    }

    #[tokio::test]
    async fn jobs_run_a_few_at_a_time() {
        let feed = Feed::default();
        feed.add(0..40);
        let (running, most, done) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
        );
        let job = |_| {
            let (running, most, done) = (running.clone(), most.clone(), done.clone());
            async move {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                // However slowly they begin, all that may run are under way first, and one more would show then.
                while most.load(Ordering::SeqCst) < MAX_RUNNING {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
                Verdict::Done
            }
        };
        let all_done = async {
            while done.load(Ordering::SeqCst) < 40 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = drive(&feed, job) => panic!("it goes on for ever"),
            () = all_done => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => {
                panic!("not in time, at most {most:?} at a time")
            }
        }
        assert_eq!(most.load(Ordering::SeqCst), MAX_RUNNING);
    }
}
