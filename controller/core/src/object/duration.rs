//! Durations as the Gateway API writes them (GEP-2257).

/// One number in a duration has at most this many digits.
const MAX_DIGITS: usize = 5;

/// A duration has at most this many parts, as in `1h2m3s4ms`.
const MAX_PARTS: usize = 4;

/// Milliseconds of a duration like `10s` or `1h30m`; `None` if it is none.
pub(crate) fn milliseconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0;
    let mut parts = 0;
    while !rest.is_empty() {
        parts += 1;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if parts > MAX_PARTS || !(1..=MAX_DIGITS).contains(&digits) {
            return None;
        }
        let (number, unit) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let (factor, length) = match unit {
            _ if unit.starts_with("ms") => (1, 2),
            _ if unit.starts_with('s') => (1000, 1),
            _ if unit.starts_with('m') => (60_000, 1),
            _ if unit.starts_with('h') => (3_600_000, 1),
            _ => return None,
        };
        total += number * factor;
        rest = unit.get(length..)?;
    }
    (parts > 0).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        for (text, expected) in [
            ("0s", Some(0)),
            ("10ms", Some(10)),
            ("1s", Some(1000)),
            ("1h30m", Some(5_400_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("99999h", Some(359_996_400_000)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("100000s", None),
            ("1h1h1h1h1h", None),
            ("1d", None),
            ("1s ", None),
        ] {
            assert_eq!(milliseconds(text), expected, "{text:?}");
        }
    }
}
