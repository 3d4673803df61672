//! What has become of each resource type, for people.

use std::time::SystemTime;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Rejected resources that are remembered of one response; the rest are counted.
pub(crate) const MAX_REJECTED: usize = 20;

/// Bytes of a reason that are remembered: a field and what is wrong with it.
pub(crate) const MAX_REASON: usize = 512;

/// One resource type of a discovery session, of this stream or an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TypeReport {
    /// The type's URL.
    #[serde(rename = "type")]
    pub type_url: &'static str,
    /// Everything is asked for, besides what is named.
    pub wildcard: bool,
    /// Names that are subscribed to on demand.
    pub subscribed: usize,
    /// Resources held.
    pub held: usize,
    /// A complete response has been applied.
    pub synced: bool,
    /// What the controller called the state of the last response; empty before the first.
    pub version: String,
    /// Nonce of the last response; empty before the first.
    pub nonce: String,
    /// Responses of which everything was applied.
    pub acks: u64,
    /// Responses of which something was rejected.
    pub nacks: u64,
    /// When the last response was applied whole; RFC 3339 in JSON.
    #[serde(serialize_with = "rfc3339")]
    pub last_ack: Option<SystemTime>,
    /// The last response of which something was rejected.
    pub last_nack: Option<Nack>,
}

/// A response that was not applied whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nack {
    /// When; RFC 3339 in JSON.
    #[serde(serialize_with = "rfc3339_of")]
    pub at: SystemTime,
    /// What the controller called the state.
    pub version: String,
    /// Its nonce.
    pub nonce: String,
    /// The rejected resources, at most 20.
    pub resources: Vec<Rejected>,
    /// Rejected resources that are not among these.
    pub more: usize,
    /// A later response of the type was applied whole.
    pub over: bool,
}

/// A resource that was not taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// What is wrong with it; at most 512 bytes.
    pub reason: String,
}

fn rfc3339<S: Serializer>(at: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => rfc3339_of(at, to),
        None => to.serialize_none(),
    }
}

fn rfc3339_of<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    // Whole milliseconds are enough, and a year with five digits is no time of ours.
    let at = OffsetDateTime::from(*at);
    let at = at.replace_millisecond(at.millisecond()).unwrap_or(at);
    to.serialize_str(&at.format(&Rfc3339).unwrap_or_default())
}

/// What [`TypeReport`] does not have from elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) version: String,
    pub(crate) nonce: String,
    pub(crate) acks: u64,
    pub(crate) nacks: u64,
    pub(crate) last_ack: Option<SystemTime>,
    pub(crate) last_nack: Option<Nack>,
}

impl Answers {
    /// Notes what was answered to a response.
    pub(crate) fn note(
        &mut self,
        (version, nonce): (String, String),
        rejected: &[(String, String)],
        at: SystemTime,
    ) {
        if rejected.is_empty() {
            self.acks += 1;
            self.last_ack = Some(at);
            if let Some(nack) = &mut self.last_nack {
                nack.over = true;
            }
        } else {
            self.nacks += 1;
            let resources = rejected.iter().take(MAX_REJECTED);
            self.last_nack = Some(Nack {
                at,
                version: version.clone(),
                nonce: nonce.clone(),
                resources: resources
                    .map(|(name, reason)| Rejected {
                        name: name.clone(),
                        reason: cut(reason),
                    })
                    .collect(),
                more: rejected.len().saturating_sub(MAX_REJECTED),
                over: false,
            });
        }
        (self.version, self.nonce) = (version, nonce);
    }
}

/// As much of a reason as is remembered.
pub(crate) fn cut(reason: &str) -> String {
    if reason.len() <= MAX_REASON {
        return reason.to_owned();
    }
    let mut end = MAX_REASON;
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &reason[..end])
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{Answers, MAX_REASON, MAX_REJECTED};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn version(number: u32) -> (String, String) {
        (format!("v{number}"), format!("n{number}"))
    }

    #[test]
    fn a_rejection_is_remembered_until_the_next_and_marked_when_it_is_over() {
        let mut answers = Answers::default();
        answers.note(version(1), &[], at(1));
        let bad = [("a".to_owned(), "kind: is missing".to_owned())];
        answers.note(version(2), &bad, at(2));
        let nack = answers.last_nack.clone().expect("noted");
        assert_eq!((nack.at, nack.over, nack.more), (at(2), false, 0));
        assert_eq!(
            (
                nack.resources[0].name.as_str(),
                nack.resources[0].reason.as_str()
            ),
            ("a", "kind: is missing")
        );
        assert_eq!((answers.acks, answers.nacks), (1, 1));
        assert_eq!(answers.last_ack, Some(at(1)));
        answers.note(version(3), &[], at(3));
        let nack = answers.last_nack.as_ref().expect("stays");
        assert!(nack.over && nack.nonce == "n2" && nack.version == "v2");
        assert_eq!(
            (answers.version.as_str(), answers.nonce.as_str()),
            ("v3", "n3")
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut answers = Answers::default();
        let reason = "é".repeat(MAX_REASON);
        let bad: Vec<_> = (0..MAX_REJECTED + 3)
            .map(|i| (i.to_string(), reason.clone()))
            .collect();
        answers.note(version(1), &bad, at(1));
        let nack = answers.last_nack.expect("noted");
        assert_eq!((nack.resources.len(), nack.more), (MAX_REJECTED, 3));
        assert!(
            nack.resources
                .iter()
                .all(|bad| bad.reason.len() <= MAX_REASON + 3)
        );
    }
}
