//! Wall-clock time as text, without a calendar library.

use std::time::{SystemTime, UNIX_EPOCH};

/// RFC 3339 in UTC with milliseconds, e.g. `2026-01-31T23:59:59.123Z`, all ASCII.
/// Times before 1970 read as 1970, those after 9999 as of 9999. Without an
/// allocation: every line of the access log begins with one.
pub fn rfc3339(time: SystemTime) -> [u8; 24] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let millis = u64::from(since.subsec_millis());
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |last: usize, digits: usize, mut value: u64| {
        for digit in text[..=last].iter_mut().rev().take(digits) {
            *digit = b"0123456789"[(value % 10) as usize];
            value /= 10;
        }
    };
    put(3, 4, year.min(9999));
    put(6, 2, month);
    put(9, 2, day);
    put(12, 2, hour);
    put(15, 2, minute);
    put(18, 2, second);
    put(22, 3, millis);
    text
}

/// Days since 1970-01-01 to (year, month, day) of the proleptic Gregorian
/// calendar. Years are counted from March so that the leap day comes last.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days from 0000-03-01 to 1970-01-01
    let era = shifted / 146_097; // 400 years
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::rfc3339;

    #[test]
    fn known_times() {
        let text_of = |since| String::from_utf8(rfc3339(UNIX_EPOCH + since).into());
        let check = |seconds, text: &str| {
            assert_eq!(text_of(Duration::from_secs(seconds)), Ok(text.to_owned()))
        };
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_400, "2000-02-29T00:00:00.000Z");
        check(951_868_799, "2000-02-29T23:59:59.000Z");
        check(951_868_800, "2000-03-01T00:00:00.000Z");
        check(1_767_225_599, "2025-12-31T23:59:59.000Z");
        check(4_107_542_400, "2100-03-01T00:00:00.000Z");
        check(253_402_300_799, "9999-12-31T23:59:59.000Z");
        let millis = text_of(Duration::from_millis(1_767_225_599_087));
        assert_eq!(millis.as_deref(), Ok("2025-12-31T23:59:59.087Z"));
    }
}
