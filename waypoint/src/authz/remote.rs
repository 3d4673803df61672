//! The client beyond trusted proxies, by `x-forwarded-for`.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What the header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remote {
    /// It has not as many entries as there are trusted proxies: the request came past one of them.
    Direct,
    /// The client.
    Client(IpAddr),
    /// What a trusted proxy has written is no address.
    Unreadable,
}

/// The client as the outermost of `hops` trusted proxies saw it. Each proxy adds whom it had the request from at the
/// end; what stands in front of that is the client's own word, and is not looked at.
pub(super) fn beyond(headers: &HeaderMap, hops: usize) -> Remote {
    let lines = headers.get_all(&X_FORWARDED_FOR);
    let values = lines.iter().map(HeaderValue::as_bytes);
    let entries = values
        .rev()
        .flat_map(|line| line.rsplit(|byte| *byte == b','));
    let mut entries = entries.filter(|entry| !entry.trim_ascii().is_empty());
    match entries.nth(hops.saturating_sub(1)) {
        None => Remote::Direct,
        Some(entry) => address(entry).map_or(Remote::Unreadable, Remote::Client),
    }
}

/// An address, as some write it with its port.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry.trim_ascii()).ok()?;
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let alone = bare.unwrap_or(text).parse::<IpAddr>();
    let address = alone.or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::{Remote, beyond};

    #[test]
    fn only_trusted_proxies_are_believed() {
        let client = |text: &str| Remote::Client(text.parse().unwrap());
        for (lines, hops, expected) in [
            (&["9.9.9.9, 1.1.1.1"][..], 1, client("1.1.1.1")),
            (&["9.9.9.9, 1.1.1.1, 2.2.2.2"], 2, client("1.1.1.1")),
            (&["9.9.9.9, 1.1.1.1", "2.2.2.2"], 2, client("1.1.1.1")),
            (&["1.1.1.1"], 2, Remote::Direct),
            (&[], 1, Remote::Direct),
            (&["x, unknown"], 1, Remote::Unreadable),
            (&["[fd00::1]:80"], 1, client("fd00::1")),
            (&["[fd00::1]"], 1, client("fd00::1")),
            (&["fd00::1"], 1, client("fd00::1")),
            (&["1.1.1.1:80"], 1, client("1.1.1.1")),
            (&["::ffff:1.1.1.1"], 1, client("1.1.1.1")),
            (&["1.1.1.1,,"], 1, client("1.1.1.1")),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", line.parse().unwrap());
            }
            assert_eq!(beyond(&headers, hops), expected, "{lines:?} {hops}");
        }
    }
}
