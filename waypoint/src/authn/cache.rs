//! Checks tokens for one worker, and remembers those that counted.

use std::cell::RefCell;
use std::sync::Arc;

use hashbrown::HashMap;
use sha2::{Digest, Sha256};

use super::Refusal;
use super::claims::Verified;
use super::keys::KeySet;
use super::rule::{Keys, Rule};
use super::verify::Parsed;

/// Tokens that a worker remembers, about 2 KiB each. Checking a signature costs up to 100 µs, and clients send the
/// same token many times.
const MAX_TOKENS: usize = 1024;

/// Checks tokens for one worker.
#[derive(Default)]
pub struct Authenticator {
    /// By token and rule: services have rules of their own for one issuer, and a client's token is for all of
    /// them. The rule lives as long as the entry, so that its address stays its own.
    known: RefCell<HashMap<([u8; 32], usize), Known>>,
}

/// A token that counted, by these very keys and this rule.
struct Known {
    rule: Arc<Rule>,
    keys: Arc<KeySet>,
    verified: Arc<Verified>,
}

impl Authenticator {
    /// What a token says, by a rule for its issuer.
    ///
    /// # Errors
    /// It does not count.
    pub(super) async fn verified(
        &self,
        rule: &Arc<Rule>,
        token: &Parsed<'_>,
    ) -> Result<Arc<Verified>, Refusal> {
        let (keys, source) = match &rule.keys {
            Keys::Unusable => return Err(Refusal::NotReady),
            Keys::Inline(keys) => (Arc::clone(keys), None),
            Keys::Fetched(source) => {
                let keys = source.keys().await.ok_or(Refusal::NoKeys)?;
                (keys, Some(source))
            }
        };
        match (self.by(rule, &keys, token), source) {
            (Err(Refusal::UnknownKey), Some(source)) => {
                // The issuer may have begun to use a new key.
                let newer = source.newer(&keys).await.ok_or(Refusal::UnknownKey)?;
                self.by(rule, &newer, token)
            }
            (done, _) => done,
        }
    }

    fn by(
        &self,
        rule: &Arc<Rule>,
        keys: &Arc<KeySet>,
        token: &Parsed<'_>,
    ) -> Result<Arc<Verified>, Refusal> {
        let digest = token.digest();
        if let Some(verified) = self.remembered(&digest, rule, keys) {
            return Ok(verified);
        }
        let claims = token.verify(keys, &rule.audiences)?;
        let verified = Verified::new(claims, token.payload, &rule.space_delimited);
        let verified = Arc::new(verified);
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_TOKENS {
            known.clear();
        }
        let entry = Known {
            rule: Arc::clone(rule),
            keys: Arc::clone(keys),
            verified: Arc::clone(&verified),
        };
        known.insert((digest, Arc::as_ptr(rule).addr()), entry);
        Ok(verified)
    }

    fn remembered(
        &self,
        digest: &[u8; 32],
        rule: &Arc<Rule>,
        keys: &Arc<KeySet>,
    ) -> Option<Arc<Verified>> {
        let known = self.known.borrow();
        let entry = known.get(&(*digest, Arc::as_ptr(rule).addr()))?;
        let is_same = Arc::ptr_eq(&entry.rule, rule) && Arc::ptr_eq(&entry.keys, keys);
        let now = jsonwebtoken::get_current_timestamp();
        // In its last minutes it is checked each time, with the leeway for clocks.
        let lasts = entry.verified.expires().is_none_or(|end| now < end);
        (is_same && lasts).then(|| Arc::clone(&entry.verified))
    }
}

impl Parsed<'_> {
    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.text()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;

    use super::Authenticator;
    use crate::authn::Document;
    use crate::authn::source::{KeySources, Timing};
    use crate::authn::testing::{Issuer, document, inline};
    use crate::authn::verify::Parsed;

    /// Two services have a rule each for one issuer, and a client calls them in turn.
    #[tokio::test]
    async fn a_token_is_remembered_for_each_rule() {
        let issuer = Issuer::new("k");
        let timing = Timing {
            pause: Duration::ZERO,
            ..Timing::default()
        };
        let (sources, _new) = KeySources::new(timing);
        let rule = |name: &str| {
            let wire = document(name, vec![inline(&[&issuer])]);
            let read = Document::new(&wire, &sources).unwrap();
            Arc::clone(&read.rules[0])
        };
        let (one, other) = (rule("a"), rule("b"));
        let token = issuer.sign(&crate::authn::testing::claims(json!({})));
        let token = Parsed::new(&token).unwrap();
        let authenticator = Authenticator::default();
        let first = authenticator.verified(&one, &token).await.unwrap();
        let second = authenticator.verified(&other, &token).await.unwrap();
        assert!(!Arc::ptr_eq(&first, &second), "a rule's own");
        let again = authenticator.verified(&one, &token).await.unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let again = authenticator.verified(&other, &token).await.unwrap();
        assert!(Arc::ptr_eq(&second, &again));
    }
}
