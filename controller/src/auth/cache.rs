//! Answers that are good for a little while.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

/// What stands for a token: nobody can make a token of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of a token.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// Answers by token, each with its end.
#[derive(Debug)]
pub struct Cache<T> {
    capacity: usize,
    entries: HashMap<TokenHash, (T, Instant)>,
}

impl<T: Clone> Cache<T> {
    /// An empty cache that takes that many answers.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: HashMap::new(),
        }
    }

    /// The answer about a token, if there is one that is still good.
    pub fn get(&self, token: TokenHash, now: Instant) -> Option<T> {
        let (answer, end) = self.entries.get(&token)?;
        (now < *end).then(|| answer.clone())
    }

    /// Keeps an answer for a time. When the cache is full, those go that end first.
    pub fn put(&mut self, token: TokenHash, answer: T, now: Instant, time: Duration) {
        if time.is_zero() {
            return;
        }
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&token) {
            self.make_room(now);
        }
        self.entries.insert(token, (answer, now + time));
    }

    fn make_room(&mut self, now: Instant) {
        self.entries.retain(|_, (_, end)| now < *end);
        if self.entries.len() < self.capacity {
            return;
        }
        // A part at once, so that a flood does not pay for a search each time.
        let mut ends: Vec<Instant> = self.entries.values().map(|(_, end)| *end).collect();
        ends.sort_unstable();
        if let Some(limit) = ends.get(self.capacity / 8) {
            self.entries.retain(|_, (_, end)| *end > *limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn answers_end() {
        let mut cache = Cache::new(8);
        let now = Instant::now();
        let token = TokenHash::of("a");
        cache.put(token, 1, now, 2 * SECOND);
        assert_eq!(cache.get(token, now + SECOND), Some(1));
        assert_eq!(cache.get(token, now + 2 * SECOND), None);
        assert_eq!(cache.get(TokenHash::of("b"), now), None);
        cache.put(token, 2, now, SECOND);
        assert_eq!(cache.get(token, now), Some(2), "the last answer counts");
    }

    #[test]
    fn no_time_is_no_entry() {
        let mut cache = Cache::new(8);
        let now = Instant::now();
        cache.put(TokenHash::of("a"), 1, now, Duration::ZERO);
        assert!(cache.entries.is_empty());
    }

    #[test]
    fn a_full_cache_drops_what_has_ended_then_what_ends_first() {
        let mut cache = Cache::new(8);
        let now = Instant::now();
        for number in 0..8_u32 {
            let token = TokenHash::of(&number.to_string());
            cache.put(token, number, now, (number + 1) * SECOND);
        }
        cache.put(TokenHash::of("x"), 100, now + SECOND, SECOND);
        assert_eq!(cache.entries.len(), 8, "one had ended");
        cache.put(TokenHash::of("y"), 101, now + SECOND, 60 * SECOND);
        assert!(cache.entries.len() <= 8);
        assert_eq!(cache.get(TokenHash::of("7"), now + SECOND), Some(7));
        assert_eq!(cache.get(TokenHash::of("1"), now + SECOND), None);
        for number in 0..1000 {
            cache.put(TokenHash::of(&format!("f{number}")), 0, now, SECOND);
            assert!(cache.entries.len() <= 8);
        }
    }
}
