//! Host names of listeners and routes.

use std::fmt;

/// Longest host name in bytes (RFC 1035, section 2.3.4).
const MAX_HOSTNAME_BYTES: usize = 253;

/// Longest label of a host name in bytes.
const MAX_LABEL_BYTES: usize = 63;

/// A host name, or all names below one. Lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Hostname {
    /// This name alone.
    Exact(String),
    /// Any number of labels before it, at least one; begins with a dot.
    Below(String),
}

impl Hostname {
    /// Reads `example.com` or `*.example.com`. `None` for anything else, IP addresses included.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let (name, wildcard) = match lower.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (lower.as_str(), false),
        };
        let numeric = name.rsplit('.').next()?;
        let is_address = numeric.bytes().all(|byte| byte.is_ascii_digit());
        if name.len() > MAX_HOSTNAME_BYTES || is_address || !name.split('.').all(is_label) {
            return None;
        }
        Some(if wildcard {
            Self::Below(format!(".{name}"))
        } else {
            Self::Exact(name.to_owned())
        })
    }

    /// The names that both stand for, which is one of the two if there are any.
    pub(crate) fn intersection<'a>(&'a self, other: &'a Self) -> Option<&'a Self> {
        if other.covers(self) {
            Some(self)
        } else if self.covers(other) {
            Some(other)
        } else {
            None
        }
    }

    /// Whether every name that `other` stands for is one of this.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(own), Self::Exact(other)) => own == other,
            (Self::Exact(_), Self::Below(_)) => false,
            (Self::Below(suffix), Self::Exact(other)) => {
                other.len() > suffix.len() && other.ends_with(suffix.as_str())
            }
            (Self::Below(suffix), Self::Below(other)) => other.ends_with(suffix.as_str()),
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

fn is_label(label: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_LABEL_BYTES).contains(&label.len())
        && label.bytes().all(plain)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::Hostname;

    fn name(text: &str) -> Hostname {
        Hostname::parse(text).unwrap()
    }

    #[test]
    fn names_are_read_and_written() {
        for text in [
            "example.com",
            "*.example.com",
            "localhost",
            "*.com",
            "a_b.c",
        ] {
            assert_eq!(name(text).to_string(), text);
        }
        assert_eq!(name("EXAMPLE.com").to_string(), "example.com");
        for text in [
            "", "*", "*.", ".", "a..b", "10.0.0.1", "::1", "-a.b", "a*.b", "a.*.b", "a b",
        ] {
            assert_eq!(Hostname::parse(text), None, "{text}");
        }
        assert_eq!(Hostname::parse(&"a.".repeat(127)), None);
        assert_eq!(Hostname::parse(&"a".repeat(64)), None);
    }

    /// Both orders give the same.
    fn check(left: &str, right: &str, expected: Option<&str>) {
        let (left, right) = (name(left), name(right));
        let expected = expected.map(name);
        assert_eq!(
            left.intersection(&right),
            expected.as_ref(),
            "{left} {right}"
        );
        assert_eq!(
            right.intersection(&left),
            expected.as_ref(),
            "{right} {left}"
        );
    }

    #[test]
    fn what_two_names_have_in_common_is_one_of_them() {
        check("a.com", "a.com", Some("a.com"));
        check("a.com", "b.com", None);
        check("x.a.com", "*.a.com", Some("x.a.com"));
        check("y.x.a.com", "*.a.com", Some("y.x.a.com"));
        check("a.com", "*.a.com", None);
        check("xa.com", "*.a.com", None);
        check("*.a.com", "*.a.com", Some("*.a.com"));
        check("*.x.a.com", "*.a.com", Some("*.x.a.com"));
        check("*.xa.com", "*.a.com", None);
        check("*.b.com", "*.a.com", None);
        check("*.example.com", "*.com", Some("*.example.com"));
    }
}
