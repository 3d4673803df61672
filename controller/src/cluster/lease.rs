//! Who may write: the decisions of leader election, without clock or network.
//!
//! One Lease object names the holder. Its holder renews it; another replica takes it over when it
//! has not seen it change for the lease's duration. Every write is tied to the version that was
//! read, so of two replicas that try at the same time one fails. Clocks are never compared between
//! machines: what counts is when *this* replica saw a change.

use std::time::{Duration, Instant};

/// Others may take over when the lease has not changed for this long.
pub const DURATION: Duration = Duration::from_secs(15);

/// A leader that could not renew for this long stops to be one. The difference to [`DURATION`] is
/// what keeps two replicas from writing at the same time.
pub const RENEW_LIMIT: Duration = Duration::from_secs(10);

/// The lease is renewed, or looked at, this often.
pub const PERIOD: Duration = Duration::from_secs(2);

/// A Lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Version of the object.
    pub version: String,
    /// Who holds it; empty when it was released.
    pub holder: String,
    /// For how long it holds after the last renewal.
    pub duration: Duration,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// There is no lease: create it.
    Create,
    /// Write the lease over the version that was read.
    Write {
        /// The version.
        version: String,
        /// Whether it was somebody else's, so that the number of transitions grows.
        takeover: Takeover,
    },
    /// Somebody else holds it.
    Wait,
}

/// Whether a write changes the holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takeover {
    /// It was ours already.
    No,
    /// It was another's.
    Yes,
}

/// The state of the election as one replica sees it.
#[derive(Debug)]
pub struct Election {
    identity: String,
    /// The last record that differed from the one before it, and when it was seen.
    seen: Option<(Record, Instant)>,
    /// This replica leads until then, at the latest.
    leads_until: Option<Instant>,
}

impl Election {
    /// A replica that has not looked yet. Identities must differ between replicas and restarts.
    pub fn new(identity: String) -> Self {
        Self {
            identity,
            seen: None,
            leads_until: None,
        }
    }

    /// The name that this replica has in the lease.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Until when this replica leads, if it does.
    pub fn leads_until(&self, now: Instant) -> Option<Instant> {
        self.leads_until.filter(|until| now < *until)
    }

    /// Decides on the lease as it was just read.
    pub fn decide(&mut self, now: Instant, lease: Option<Record>) -> Action {
        let Some(record) = lease else {
            self.leads_until = None;
            return Action::Create;
        };
        let held_by_us = record.holder == self.identity;
        if !held_by_us {
            // Whatever we thought: somebody else has it.
            self.leads_until = None;
        }
        let seen_at = match &self.seen {
            Some((former, at)) if *former == record => *at,
            _ => now,
        };
        let ended = record.holder.is_empty() || now >= seen_at + record.duration;
        let version = record.version.clone();
        self.seen = Some((record, seen_at));
        if held_by_us {
            Action::Write {
                version,
                takeover: Takeover::No,
            }
        } else if ended {
            Action::Write {
                version,
                takeover: Takeover::Yes,
            }
        } else {
            Action::Wait
        }
    }

    /// A write that was begun at `begun` has been accepted.
    pub fn written(&mut self, begun: Instant) {
        self.leads_until = Some(begun + RENEW_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: &str, holder: &str) -> Option<Record> {
        Some(Record {
            version: version.to_owned(),
            holder: holder.to_owned(),
            duration: DURATION,
        })
    }

    fn write(version: &str, takeover: Takeover) -> Action {
        Action::Write {
            version: version.to_owned(),
            takeover,
        }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn the_first_creates_and_leads() {
        let now = Instant::now();
        let mut a = Election::new("a".to_owned());
        assert_eq!(a.leads_until(now), None);
        assert_eq!(a.decide(now, None), Action::Create);
        assert_eq!(a.leads_until(now), None, "wanting is not having");
        a.written(now);
        assert!(a.leads_until(now).is_some());
    }

    #[test]
    fn a_held_lease_is_taken_over_only_when_it_stands_still() {
        let now = Instant::now();
        let mut b = Election::new("b".to_owned());
        for second in 0..60 {
            // The holder renews: each time another version.
            let lease = record(&second.to_string(), "a");
            assert_eq!(b.decide(now + seconds(second), lease), Action::Wait);
        }
        let last = now + seconds(59);
        let just_before = last + DURATION - Duration::from_millis(1);
        assert_eq!(b.decide(just_before, record("59", "a")), Action::Wait);
        assert_eq!(
            b.decide(last + DURATION, record("59", "a")),
            write("59", Takeover::Yes)
        );
    }

    #[test]
    fn a_restarted_replica_does_not_trust_the_age_of_what_it_finds() {
        let now = Instant::now();
        let mut b = Election::new("b".to_owned());
        assert_eq!(b.decide(now, record("1", "a")), Action::Wait);
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let mut b = Election::new("b".to_owned());
        let now = Instant::now();
        assert_eq!(b.decide(now, record("7", "")), write("7", Takeover::Yes));
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_before_another_can_start() {
        let start = Instant::now();
        let mut a = Election::new("a".to_owned());
        let mut b = Election::new("b".to_owned());
        a.decide(start, None);
        a.written(start);
        // The other sees the lease as soon as it is there, which is when its wait begins.
        assert_eq!(b.decide(start, record("1", "a")), Action::Wait);
        let lost = (0..600)
            .map(|step| start + Duration::from_millis(100) * step)
            .find(|now| a.leads_until(*now).is_none())
            .unwrap();
        let taken = (0..600)
            .map(|step| start + Duration::from_millis(100) * step)
            .find(|now| b.decide(*now, record("1", "a")) != Action::Wait)
            .unwrap();
        assert_eq!(lost, start + RENEW_LIMIT);
        assert_eq!(taken, start + DURATION);
    }

    #[test]
    fn the_time_of_a_renewal_is_that_of_its_beginning() {
        let start = Instant::now();
        let mut a = Election::new("a".to_owned());
        a.decide(start, record("1", "a"));
        a.written(start);
        assert_eq!(a.leads_until(start), Some(start + RENEW_LIMIT));
        assert_eq!(
            a.decide(start + seconds(2), record("2", "a")),
            write("2", Takeover::No)
        );
        a.written(start + seconds(2));
        assert_eq!(
            a.leads_until(start + seconds(3)),
            Some(start + seconds(2) + RENEW_LIMIT)
        );
    }

    #[test]
    fn who_finds_another_holder_leads_no_more() {
        let now = Instant::now();
        let mut a = Election::new("a".to_owned());
        a.decide(now, None);
        a.written(now);
        assert_eq!(a.decide(now + seconds(1), record("5", "b")), Action::Wait);
        assert_eq!(a.leads_until(now + seconds(1)), None);
    }

    #[test]
    fn a_deleted_lease_ends_the_lead_until_it_is_made_again() {
        let now = Instant::now();
        let mut a = Election::new("a".to_owned());
        a.written(now);
        assert_eq!(a.decide(now, None), Action::Create);
        assert_eq!(a.leads_until(now), None);
    }
}
