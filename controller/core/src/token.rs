//! Tokens: names of headers and cookies, and methods.

/// Most bytes of a name that an object may have.
const MAX_NAME_BYTES: usize = 256;

/// Whether a text is a token (RFC 9110 5.6.2, RFC 6265 4.1.1).
pub(crate) fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

/// Whether a text is a token that is not too long for a name.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES && is_token(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_no_separators() {
        for good in ["x-name", "A1", "!#$%&'*+-.^_`|~", &"a".repeat(1000)] {
            assert!(is_token(good), "{good}");
        }
        for bad in [
            "", "a b", "a:", "a\n", "\0", "é", "a,b", "a/b", "a;b", "a=b", "(a)", "[a]", "{a}",
            "\"a\"", "a@b", "a\\", "\x7f",
        ] {
            assert!(!is_token(bad), "{bad:?}");
            assert!(!is_name(bad), "{bad:?}");
        }
        assert!(is_name(&"a".repeat(256)));
        assert!(!is_name(&"a".repeat(257)));
    }
}
