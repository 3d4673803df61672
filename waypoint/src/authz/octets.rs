//! Texts in parts, compared without putting them together.

use std::cmp::Ordering;

use http::HeaderMap;
use http::header::{COOKIE, HeaderName};

/// A text that may be in parts.
pub(super) trait Octets {
    /// Its bytes in order.
    fn octets(&self) -> impl Iterator<Item = u8>;

    /// Its length in bytes.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn cmp(&self, other: &[u8]) -> Ordering {
        self.octets().cmp(other.iter().copied())
    }

    fn starts_with(&self, prefix: &[u8]) -> bool {
        self.len() >= prefix.len() && self.octets().zip(prefix).all(|(one, other)| one == *other)
    }

    fn ends_with(&self, suffix: &[u8]) -> bool {
        let Some(before) = self.len().checked_sub(suffix.len()) else {
            return false;
        };
        self.octets().skip(before).eq(suffix.iter().copied())
    }
}

impl Octets for [u8] {
    fn octets(&self) -> impl Iterator<Item = u8> {
        self.iter().copied()
    }

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

/// Up to three parts in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joined<'a>(pub(super) [&'a str; 3]);

impl<'a> Joined<'a> {
    pub(super) fn one(text: &'a str) -> Self {
        Self([text, "", ""])
    }
}

impl Octets for Joined<'_> {
    fn octets(&self) -> impl Iterator<Item = u8> {
        self.0.iter().flat_map(|part| part.bytes())
    }

    fn len(&self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }
}

/// All lines of a header as one value (RFC 9110 5.2; cookies: RFC 9113 8.2.3).
pub(super) struct Lines<'a> {
    headers: &'a HeaderMap,
    name: &'a HeaderName,
}

impl<'a> Lines<'a> {
    pub(super) fn new(headers: &'a HeaderMap, name: &'a HeaderName) -> Self {
        Self { headers, name }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        let values = self.headers.get_all(self.name).iter();
        values.map(|value| value.as_bytes())
    }

    fn separator(&self) -> &'static [u8] {
        if self.name == COOKIE { b"; " } else { b"," }
    }
}

impl Octets for Lines<'_> {
    fn octets(&self) -> impl Iterator<Item = u8> {
        let separators = std::iter::once(&b""[..]).chain(std::iter::repeat(self.separator()));
        let parts = separators.zip(self.iter());
        parts.flat_map(|(separator, line)| separator.iter().chain(line).copied())
    }

    fn len(&self) -> usize {
        let (mut lines, mut bytes) = (0_usize, 0);
        for line in self.iter() {
            lines += 1;
            bytes += line.len();
        }
        bytes + self.separator().len() * lines.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use http::HeaderMap;
    use http::header::{ACCEPT, COOKIE};

    use super::{Joined, Lines, Octets};

    #[test]
    fn parts_are_compared_as_a_whole() {
        let text = Joined(["shop", "/", "cart"]);
        assert_eq!(text.len(), 9);
        assert_eq!(Octets::cmp(&text, b"shop/cart"), Ordering::Equal);
        assert_eq!(Octets::cmp(&text, b"shop/cars"), Ordering::Greater);
        assert!(text.starts_with(b"shop/c") && !text.starts_with(b"shop/cart2"));
        assert!(text.ends_with(b"p/cart") && !text.ends_with(b"xshop/cart"));
        assert!(text.starts_with(b"") && text.ends_with(b""));
    }

    #[test]
    fn lines_of_a_header_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT, "a".parse().unwrap());
        headers.append(ACCEPT, "b".parse().unwrap());
        headers.append(COOKIE, "x=1".parse().unwrap());
        headers.append(COOKIE, "y=2".parse().unwrap());
        let text = |name| {
            let lines = Lines::new(&headers, name);
            let text: Vec<u8> = lines.octets().collect();
            assert_eq!(text.len(), lines.len());
            String::from_utf8(text).unwrap()
        };
        assert_eq!(text(&ACCEPT), "a,b");
        assert_eq!(text(&COOKIE), "x=1; y=2");
        assert_eq!(text(&http::header::HOST), "");
    }
}
