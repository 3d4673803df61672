//! From when until when certificates are valid.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Out;

/// Writes for each identity from when until when its certificate is valid, in seconds since 1970: times, so that
/// `time() - …` is an age and `… - time()` what is left. An identity without a certificate has neither.
///
/// # Errors
/// The text cannot be written.
pub fn encode(
    out: &mut Out<'_>,
    certificates: &[(&str, Option<(SystemTime, SystemTime)>)],
) -> fmt::Result {
    let values = |time: fn(&(SystemTime, SystemTime)) -> SystemTime| {
        let with = certificates.iter().filter_map(move |(id, validity)| {
            let since = time(validity.as_ref()?).duration_since(UNIX_EPOCH).ok()?;
            let seconds = i64::try_from(since.as_secs()).ok()?;
            Some((vec![("principal", *id)], seconds))
        });
        with.collect::<Vec<_>>()
    };
    let help = "Since when the certificate of an identity is valid, seconds since 1970";
    let name = "karst_certificate_not_before_timestamp_seconds";
    out.gauges(name, help, values(|validity| validity.0))?;
    let help = "Until when the certificate of an identity is valid, seconds since 1970";
    let name = "karst_certificate_not_after_timestamp_seconds";
    out.gauges(name, help, values(|validity| validity.1))
}
