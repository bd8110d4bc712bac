//! The last messages with an id: what a producer sent twice is applied once.

use std::collections::{HashSet, VecDeque};

use crate::id::Digest;

/// How many messages are remembered.
const REMEMBERED: usize = 4096;

/// Remembers messages by all their bytes, the id among them: an id used again for another content is no duplicate.
#[derive(Debug, Default)]
pub struct Recent {
    seen: HashSet<Digest>,
    order: VecDeque<Digest>,
}

impl Recent {
    /// Remembers a message. Answers whether it is new.
    pub fn insert(&mut self, message: &[u8]) -> bool {
        let digest = Digest::of(message);
        if !self.seen.insert(digest) {
            return false;
        }
        self.order.push_back(digest);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }

    /// Forgets a message that came to nothing: it may come again.
    pub fn forget(&mut self, message: &[u8]) {
        self.seen.remove(&Digest::of(message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_new_once_and_the_memory_is_bounded() {
        let mut recent = Recent::default();
        assert!(recent.insert(b"a"));
        assert!(!recent.insert(b"a"));
        recent.forget(b"a");
        assert!(recent.insert(b"a"));
        for number in 0..2 * REMEMBERED {
            recent.insert(number.to_string().as_bytes());
        }
        assert!(recent.seen.len() <= REMEMBERED && recent.order.len() <= REMEMBERED);
        assert!(recent.insert(b"a"), "forgotten with time");
    }
}
