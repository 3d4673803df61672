//! Messages of a gRPC body, counted as it streams: each has five bytes in front, a flag and its length.

/// Where in the body it is, and how many messages have passed whole. It holds nothing of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Messages {
    whole: u64,
    /// Bytes read of what is in front of the next message.
    prefix: u8,
    /// Of the message itself: bytes still to come; while the prefix is read, the length as far as it is known.
    left: u32,
    /// It is not what gRPC sends; nothing more is counted.
    broken: bool,
}

/// Bytes in front of a message.
const PREFIX_BYTES: u8 = 5;

impl Messages {
    /// What comes next of the body.
    pub(super) fn pass(&mut self, mut data: &[u8]) {
        while !self.broken {
            if self.prefix == PREFIX_BYTES {
                let rest = usize::try_from(self.left).unwrap_or(usize::MAX);
                let Some(behind) = data.get(rest..) else {
                    // Less than `left`, which is of 32 bits, has come.
                    self.left -= u32::try_from(data.len()).unwrap_or(self.left);
                    return;
                };
                self.whole += 1;
                (self.prefix, self.left) = (0, 0);
                data = behind;
            }
            let Some((byte, behind)) = data.split_first() else {
                return;
            };
            match self.prefix {
                // Whether it is compressed.
                0 => self.broken = *byte > 1,
                _ => self.left = self.left << 8 | u32::from(*byte),
            }
            self.prefix += 1;
            data = behind;
        }
    }

    /// Messages that have passed whole.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }
}

#[cfg(test)]
mod tests {
    use super::Messages;

    fn message(flag: u8, length: u32) -> Vec<u8> {
        let mut bytes = vec![flag];
        bytes.extend(length.to_be_bytes());
        // What looks like the beginning of messages.
        bytes.extend((0..length).map(|at| u8::from(at % 5 == 4)));
        bytes
    }

    fn count<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
        let mut messages = Messages::default();
        for part in parts {
            messages.pass(part);
        }
        messages.whole()
    }

    #[test]
    fn chunks_may_end_anywhere() {
        let body = [message(0, 3), message(1, 0), message(0, 300), message(0, 1)].concat();
        for size in 1..=body.len() {
            assert_eq!(count(body.chunks(size)), 4, "{size}");
        }
        for at in 0..=body.len() {
            let (one, other) = body.split_at(at);
            assert_eq!(count([one, &[], other]), 4, "{at}");
        }
    }

    #[test]
    fn a_message_counts_when_all_of_it_has_come() {
        let body = message(0, 7);
        for at in 0..body.len() {
            assert_eq!(count([&body[..at]]), 0, "{at}");
        }
        assert_eq!(count([&body[..]]), 1);
        assert_eq!(count([&message(0, 0)[..]]), 1);
        assert_eq!(count([&[0, 0xff, 0xff, 0xff, 0xff][..], &[0; 1 << 16]]), 0);
    }

    #[test]
    fn what_is_not_grpc_ends_the_count() {
        let body = [message(0, 2), b"<html>".to_vec(), message(0, 2)].concat();
        for size in 1..=body.len() {
            assert_eq!(count(body.chunks(size)), 1, "{size}");
        }
    }
}
