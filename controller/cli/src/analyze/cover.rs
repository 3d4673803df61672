//! Whether one rule of an AuthorizationPolicy matches whatever another does, by what is written. It says so only
//! where that is certain: `false` means that nobody knows.

use std::net::IpAddr;

use serde_json::Value;

/// Whether `broad` matches whatever `narrow` does. Names of accounts without a namespace are of those namespaces.
pub fn rule(broad: (&Value, &str), narrow: (&Value, &str)) -> bool {
    let is_plain = |rule: &Value| {
        let known = |fields: &serde_json::Map<String, Value>| {
            fields
                .keys()
                .all(|key| matches!(key.as_str(), "from" | "to" | "when"))
        };
        rule.is_null() || rule.as_object().is_some_and(known)
    };
    is_plain(broad.0)
        && is_plain(narrow.0)
        && alternatives(broad, narrow, "from", "source")
        && alternatives(broad, narrow, "to", "operation")
        && conditions(broad, narrow)
}

fn list<'a>(rule: &'a Value, part: &str) -> &'a [Value] {
    rule.get(part)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Each alternative of the narrow one is within one of the broad one's.
fn alternatives(broad: (&Value, &str), narrow: (&Value, &str), part: &str, inner: &str) -> bool {
    let (wide, slim) = (list(broad.0, part), list(narrow.0, part));
    if wide.is_empty() {
        return true;
    }
    !slim.is_empty()
        && slim.iter().all(|slim| {
            wide.iter()
                .any(|wide| match (wide.get(inner), slim.get(inner)) {
                    (Some(wide), Some(slim)) => fields((wide, broad.1), (slim, narrow.1)),
                    _ => false,
                })
        })
}

/// `{}` is not taken to be anything: what it matches is not for this to say.
fn fields(broad: (&Value, &str), narrow: (&Value, &str)) -> bool {
    let (Some(wide), Some(slim)) = (broad.0.as_object(), narrow.0.as_object()) else {
        return false;
    };
    let set = |fields: &serde_json::Map<String, Value>| {
        fields.values().any(|value| !texts(value).is_empty())
    };
    if !set(wide) || !set(slim) {
        return false;
    }
    wide.iter().all(|(name, values)| {
        let wide = texts(values);
        let slim = slim.get(name).map(texts).unwrap_or_default();
        if wide.is_empty() {
            return true;
        }
        match name.strip_prefix("not") {
            Some(positive) => excluded(&lower_first(positive), (&wide, broad.1), (&slim, narrow.1)),
            None => included(name, (&wide, broad.1), (&slim, narrow.1)),
        }
    })
}

fn conditions(broad: (&Value, &str), narrow: (&Value, &str)) -> bool {
    list(broad.0, "when").iter().all(|wide| {
        let key = wide.get("key").and_then(Value::as_str).unwrap_or_default();
        list(narrow.0, "when").iter().any(|slim| {
            let name = field_of(key);
            let (yes, no) = (field_texts(wide, "values"), field_texts(wide, "notValues"));
            let (slim_yes, slim_no) = (field_texts(slim, "values"), field_texts(slim, "notValues"));
            slim.get("key").and_then(Value::as_str) == Some(key)
                && (!yes.is_empty() || !no.is_empty())
                && (yes.is_empty() || included(name, (&yes, broad.1), (&slim_yes, narrow.1)))
                && (no.is_empty() || excluded(name, (&no, broad.1), (&slim_no, narrow.1)))
        })
    })
}

/// The field whose values a key of `when` has.
fn field_of(key: &str) -> &str {
    match key {
        "source.ip" | "remote.ip" | "destination.ip" => "ipBlocks",
        "source.serviceAccount" => "serviceAccounts",
        other => other,
    }
}

/// Whatever is one of `narrow` is one of `broad`.
fn included(field: &str, broad: (&[&str], &str), narrow: (&[&str], &str)) -> bool {
    !narrow.0.is_empty()
        && narrow.0.iter().all(|slim| {
            broad
                .0
                .iter()
                .any(|wide| value(field, (wide, broad.1), (slim, narrow.1)))
        })
}

/// Whatever is none of `narrow` is none of `broad`.
fn excluded(field: &str, broad: (&[&str], &str), narrow: (&[&str], &str)) -> bool {
    broad.0.iter().all(|wide| {
        narrow
            .0
            .iter()
            .any(|slim| value(field, (slim, narrow.1), (wide, broad.1)))
    })
}

fn value(field: &str, (broad, broad_ns): (&str, &str), (narrow, narrow_ns): (&str, &str)) -> bool {
    match field {
        "serviceAccounts" => account(broad, broad_ns) == account(narrow, narrow_ns),
        "ipBlocks" | "remoteIpBlocks" => block(broad)
            .zip(block(narrow))
            .is_some_and(|(broad, narrow)| contains(broad, narrow)),
        "ports" | "destination.port" => broad == narrow,
        "hosts" => pattern(&broad.to_ascii_lowercase(), &narrow.to_ascii_lowercase()),
        // Templates are compared as they are written.
        "paths" if broad.contains('{') || narrow.contains('{') => broad == narrow,
        _ => pattern(broad, narrow),
    }
}

/// `*`, `a*`, `*a` or `a`.
fn pattern(broad: &str, narrow: &str) -> bool {
    if broad == narrow {
        return true;
    }
    if broad == "*" {
        return !narrow.is_empty();
    }
    match (broad.strip_suffix('*'), broad.strip_prefix('*')) {
        (Some(prefix), None) => {
            !narrow.starts_with('*') && narrow.trim_end_matches('*').starts_with(prefix)
        }
        (None, Some(suffix)) => {
            !narrow.ends_with('*') && narrow.trim_start_matches('*').ends_with(suffix)
        }
        _ => false,
    }
}

fn account(text: &str, namespace: &str) -> String {
    if text.contains('/') {
        text.to_owned()
    } else {
        format!("{namespace}/{text}")
    }
}

fn block(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.unwrap_or(most);
    (length <= most).then_some((address, length))
}

fn contains((broad, length): (IpAddr, u8), (narrow, other): (IpAddr, u8)) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    let differ = bits(broad) ^ bits(narrow);
    broad.is_ipv4() == narrow.is_ipv4()
        && length <= other
        && differ.leading_zeros() >= u32::from(length)
}

fn field_texts<'a>(value: &'a Value, field: &str) -> Vec<&'a str> {
    value.get(field).map(texts).unwrap_or_default()
}

fn texts(value: &Value) -> Vec<&str> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().filter_map(Value::as_str).collect()
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::rule;

    #[test]
    fn what_covers_and_what_does_not() {
        let from = |source: serde_json::Value| json!({"from": [{"source": source}]});
        for (broad, narrow, covers) in [
            (json!({}), from(json!({"namespaces": ["a"]})), true),
            (from(json!({"namespaces": ["a"]})), json!({}), false),
            (
                from(json!({"namespaces": ["a", "b"]})),
                from(json!({"namespaces": ["b"]})),
                true,
            ),
            (
                from(json!({"namespaces": ["a"]})),
                from(json!({"namespaces": ["a", "b"]})),
                false,
            ),
            (
                from(json!({"namespaces": ["a*"]})),
                from(json!({"namespaces": ["ab", "ac*"]})),
                true,
            ),
            (
                from(json!({"namespaces": ["ab*"]})),
                from(json!({"namespaces": ["a*"]})),
                false,
            ),
            (
                from(json!({"namespaces": ["*b"]})),
                from(json!({"namespaces": ["ab"]})),
                true,
            ),
            (
                from(json!({"namespaces": ["a"]})),
                from(json!({"namespaces": ["a"], "ipBlocks": ["::1"]})),
                true,
            ),
            (
                from(json!({"namespaces": ["a"], "ipBlocks": ["::1"]})),
                from(json!({"namespaces": ["a"]})),
                false,
            ),
            (
                from(json!({"notNamespaces": ["a"]})),
                from(json!({"notNamespaces": ["a", "b"]})),
                true,
            ),
            (
                from(json!({"notNamespaces": ["a", "b"]})),
                from(json!({"notNamespaces": ["a"]})),
                false,
            ),
            (
                from(json!({"notNamespaces": ["ab"]})),
                from(json!({"notNamespaces": ["a*"]})),
                true,
            ),
            (
                from(json!({"ipBlocks": ["10.0.0.0/8"]})),
                from(json!({"ipBlocks": ["10.1.2.3"]})),
                true,
            ),
            (
                from(json!({"ipBlocks": ["10.1.0.0/16"]})),
                from(json!({"ipBlocks": ["10.0.0.0/8"]})),
                false,
            ),
            (
                from(json!({"ipBlocks": ["::/0"]})),
                from(json!({"ipBlocks": ["10.1.2.3"]})),
                false,
            ),
            (
                from(json!({"serviceAccounts": ["n/x"]})),
                from(json!({"serviceAccounts": ["x"]})),
                true,
            ),
            (from(json!({})), from(json!({"namespaces": ["a"]})), false),
            (
                json!({"when": [{"key": "source.ip", "values": ["10.0.0.0/8"]}]}),
                json!({"when": [{"key": "source.ip", "values": ["10.0.0.1"]}]}),
                true,
            ),
            (
                json!({"when": [{"key": "source.ip", "values": ["10.0.0.0/8"]}]}),
                json!({"when": [{"key": "destination.ip", "values": ["10.0.0.1"]}]}),
                false,
            ),
        ] {
            assert_eq!(
                rule((&broad, "n"), (&narrow, "n")),
                covers,
                "{broad} and {narrow}"
            );
        }
    }
}
