//! The one normal form of paths (RFC 3986, section 6.2.2), so that routes match what applications will see.
//!
//! Percent-encoded octets that need no encoding are decoded, hex digits of the others are upper case, dot
//! segments are removed, octets that may not stand in a path are encoded. What applications may tell apart is
//! left alone: an encoded slash (`%2F`), empty segments (`//`), parameters (`;`), case. A path with a broken or
//! NUL escape is refused: after one decoding too many behind us it could be anything.

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    /// A percent sign without two hex digits, or `%00`.
    Escape,
    /// It leads above the root.
    AboveRoot,
}

/// The normal form of a path that begins with a slash; `None` if it has that form already.
///
/// # Errors
/// It has none.
pub fn normalise(path: &str) -> Result<Option<String>, BadPath> {
    if is_normal(path.as_bytes()) {
        return Ok(None);
    }
    let decoded = decode(path.as_bytes())?;
    let normal = remove_dots(&decoded)?;
    Ok((normal != path).then_some(normal))
}

/// A part of a path with its octets in their normal form, whatever its segments: for comparing with paths that have
/// that form.
///
/// # Errors
/// It has none.
pub fn octets(part: &str) -> Result<String, BadPath> {
    decode(part.as_bytes())
}

/// Whether there is nothing to do, which is so for nearly all paths.
fn is_normal(path: &[u8]) -> bool {
    let mut after_slash = false;
    path.iter().all(|byte| {
        let good = match byte {
            b'.' => !after_slash,
            b'%' => false,
            byte => may_stand(*byte),
        };
        after_slash = *byte == b'/';
        good
    })
}

/// Octets that may stand in a path as they are: unreserved, sub-delims, `:`, `@` and `/`.
fn may_stand(byte: u8) -> bool {
    is_unreserved(byte) || b"/!$&'()*+,;=:@".contains(&byte)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn decode(path: &[u8]) -> Result<String, BadPath> {
    let mut decoded = String::with_capacity(path.len() + 16);
    let mut rest = path.iter().copied();
    while let Some(byte) = rest.next() {
        let octet = if byte == b'%' {
            let digit = |digit: Option<u8>| char::from(digit.unwrap_or(b'%')).to_digit(16);
            let (high, low) = (digit(rest.next()), digit(rest.next()));
            let (Some(high), Some(low)) = (high, low) else {
                return Err(BadPath::Escape);
            };
            // Two hex digits fit.
            let octet = u8::try_from(high << 4 | low).unwrap_or(0);
            if octet == 0 {
                return Err(BadPath::Escape);
            }
            if !is_unreserved(octet) {
                push_encoded(&mut decoded, octet);
                continue;
            }
            octet
        } else {
            byte
        };
        if may_stand(octet) {
            decoded.push(char::from(octet));
        } else {
            push_encoded(&mut decoded, octet);
        }
    }
    Ok(decoded)
}

fn push_encoded(text: &mut String, octet: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.push('%');
    text.push(char::from(DIGITS[usize::from(octet >> 4)]));
    text.push(char::from(DIGITS[usize::from(octet & 15)]));
}

/// RFC 3986, section 5.2.4, but that nothing is above the root.
fn remove_dots(path: &str) -> Result<String, BadPath> {
    let mut normal = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    let parent = normal.rfind('/').ok_or(BadPath::AboveRoot)?;
                    normal.truncate(parent);
                }
                if last {
                    normal.push('/');
                }
            }
            segment => {
                normal.push('/');
                normal.push_str(segment);
            }
        }
    }
    Ok(normal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BadPath, normalise};

    #[track_caller]
    fn check(path: &str, expected: &str) {
        let normal = normalise(path).unwrap();
        assert_eq!(normal.as_deref().unwrap_or(path), expected, "{path}");
        if path == expected {
            assert_eq!(normal, None, "{path} is copied for nothing");
        }
    }

    #[test]
    fn paths_have_one_form() {
        for path in [
            "/", "/a/b", "/a//b", "//a", "/a.b/c..", "/a;b=c", "/...", "/%2F", "/a%20b", "/a/",
        ] {
            check(path, path);
        }
        check("/%61%2d%7E", "/a-~");
        check("/%2f%c3%a4", "/%2F%C3%A4");
        check("/ä", "/%C3%A4");
        check("/a\\b", "/a%5Cb");
        check("/a|b", "/a%7Cb");
        check("/a/./b/.", "/a/b/");
        check("/a/../b", "/b");
        check("/a/..", "/");
        check("/a/b/%2e%2E/c", "/a/c");
        check("/a//../b", "/a/b");
        check("/.%2e%2f", "/..%2F");
        check("/.hidden", "/.hidden");
    }

    #[test]
    fn what_has_no_form_is_refused() {
        for path in ["/%", "/%4", "/%zz", "/%00", "/a%%32e"] {
            assert_eq!(normalise(path), Err(BadPath::Escape), "{path}");
        }
        for path in ["/..", "/../a", "/a/../../b", "/%2e%2e/"] {
            assert_eq!(normalise(path), Err(BadPath::AboveRoot), "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_normal(path in "/[a./%2eEfF5c;\\\\ä-]{0,30}") {
            if let Ok(Some(normal)) = normalise(&path) {
                prop_assert!(normal.starts_with('/'));
                prop_assert_eq!(normalise(&normal), Ok(None));
                let dots = normal.split('/').any(|segment| segment == "." || segment == "..");
                prop_assert!(!dots, "{}", normal);
            }
        }
    }
}
