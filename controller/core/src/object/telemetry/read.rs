//! Entries of a Telemetry, field by field.

use karst_api::telemetry::{
    ALL, HeaderTag, MAX_TAG_NAME_BYTES, MAX_TAG_VALUE_BYTES, MAX_TAGS, SpanTag, span_tag,
};
use karst_telemetry::filter::Filter;
use serde_json::Value;

use super::{Logging, SAMPLING, Side, Tracing};
use crate::object::policy::{PolicyDocument, Reader};

/// Entries of one section. Only the last of each side counts.
const MAX_ENTRIES: usize = 16;

/// Providers of an access log that are our own: lines on standard output, in the program's format.
const OWN_PROVIDERS: [&str; 2] = ["karst", "envoy"];

/// A percentage in millionths of the whole.
fn millionths(percent: f64) -> Option<u32> {
    let part = percent * f64::from(ALL) / 100.0;
    // In range, so that nothing is cut off.
    (0.0..=f64::from(ALL))
        .contains(&part)
        .then(|| part.round() as u32)
}

pub(super) fn log_sampling(document: &PolicyDocument, reader: &mut Reader<'_>) -> Option<u32> {
    let annotations = document.metadata.annotations.as_ref()?;
    let text = annotations.get(SAMPLING)?;
    let share = text.trim().parse().ok().and_then(millionths);
    if share.is_none() {
        let field = format!("metadata.annotations[{SAMPLING:?}]");
        let hint = "write percent, 0 to 100, as in \"12.5\"";
        reader.fault(&field, "is no percentage", hint);
    }
    Some(share.unwrap_or(ALL))
}

/// Says which entries have no effect, because later ones are for the same.
fn superseded(section: &str, sides: &[(usize, Side)], narrowed: &mut Vec<String>) {
    for (at, (index, side)) in sides.iter().enumerate() {
        let later = |one: Side| sides[at + 1..].iter().any(|(_, side)| side.is_for(one));
        let is_left = |one: Side| side.is_for(one) && !later(one);
        if !is_left(Side::Client) && !is_left(Side::Server) {
            narrowed.push(format!(
                "spec.{section}[{index}] has no effect, as what comes after it is for the same match.mode"
            ));
        }
    }
}

fn entries<'v>(value: &'v Value, field: &str, reader: &mut Reader<'_>) -> &'v [Value] {
    let items = reader.items(value, field).unwrap_or_default();
    if items.len() > MAX_ENTRIES {
        let problem = format!("has {} entries", items.len());
        reader.fault(
            field,
            problem,
            "use at most 16; one for each mode is enough",
        );
    }
    &items[..items.len().min(MAX_ENTRIES)]
}

pub(super) fn logging(
    value: &Value,
    reader: &mut Reader<'_>,
    narrowed: &mut Vec<String>,
) -> Vec<Logging> {
    let mut all = Vec::new();
    let mut sides = Vec::new();
    for (index, item) in entries(value, "spec.accessLogging", reader)
        .iter()
        .enumerate()
    {
        let field = format!("spec.accessLogging[{index}]");
        let everything = Logging {
            side: Side::Both,
            disabled: false,
            filter: String::new(),
        };
        let mut entry = everything.clone();
        let (mut is_ours, mut is_clear) = (true, true);
        for (name, value) in reader.fields(item, &field).unwrap_or_default() {
            let field = format!("{field}.{name}");
            match name {
                "match" => match side(value, &field, reader) {
                    Some(side) => entry.side = side,
                    None => is_clear = false,
                },
                "disabled" => entry.disabled = boolean(value, &field, reader).unwrap_or_default(),
                "filter" => entry.filter = filter(value, &field, reader, narrowed),
                "providers" => {
                    let Some(names) = providers(value, &field, reader) else {
                        is_clear = false;
                        continue;
                    };
                    let is_own = |name: &String| OWN_PROVIDERS.contains(&name.as_str());
                    is_ours = names.is_empty() || names.iter().any(is_own);
                    for name in names.iter().filter(|name| !is_own(name)) {
                        let problem =
                            format!("names {name:?}, which is no provider of access logs here");
                        let hint =
                            "use karst, or envoy, which is the same: lines on standard output";
                        reader.note(&field, &problem, hint);
                        narrowed.push(format!("{field} {problem}; {hint}"));
                    }
                }
                _ => reader.unknown(&field),
            }
        }
        // Of whom it switches something off is not known.
        if !is_clear {
            entry = everything;
        }
        // What is for others says nothing of ours.
        if is_ours {
            sides.push((index, entry.side));
            all.push(entry);
        }
    }
    superseded("accessLogging", &sides, narrowed);
    all
}

pub(super) fn tracing(
    value: &Value,
    reader: &mut Reader<'_>,
    narrowed: &mut Vec<String>,
) -> Vec<Tracing> {
    let mut all = Vec::new();
    let mut sides = Vec::new();
    for (index, item) in entries(value, "spec.tracing", reader).iter().enumerate() {
        let field = format!("spec.tracing[{index}]");
        let mut entry = Tracing {
            side: Side::Both,
            disabled: None,
            provider: None,
            sampling: None,
            tags: None,
        };
        let mut is_clear = true;
        for (name, value) in reader.fields(item, &field).unwrap_or_default() {
            let field = format!("{field}.{name}");
            match name {
                "match" => match side(value, &field, reader) {
                    Some(side) => entry.side = side,
                    None => is_clear = false,
                },
                "disableSpanReporting" => {
                    let disabled = boolean(value, &field, reader);
                    entry.disabled = Some(disabled.unwrap_or(true));
                }
                "randomSamplingPercentage" => {
                    let share = value.as_f64().and_then(millionths);
                    if share.is_none() {
                        let problem = "is no percentage";
                        reader.fault(&field, problem, "write a number from 0 to 100");
                    }
                    entry.sampling = Some(share.unwrap_or(0));
                }
                "providers" => {
                    let Some(names) = providers(value, &field, reader) else {
                        is_clear = false;
                        continue;
                    };
                    if names.len() > 1 {
                        let problem = "has several entries; spans go to the first";
                        reader.note(&field, problem, "write one");
                        narrowed.push(format!("{field} {problem}"));
                    }
                    entry.provider = names.into_iter().next();
                }
                "customTags" => entry.tags = tags(value, &field, reader, narrowed),
                "enableIstioTags" | "useRequestIdForTraceSampling" => {
                    let problem = "is not supported, and has no effect";
                    reader.note(&field, problem, "remove it");
                    narrowed.push(format!("{field} {problem}"));
                }
                _ => reader.unknown(&field),
            }
        }
        // Of whom there are spans, or where they go, is not known.
        if !is_clear {
            (entry.side, entry.disabled) = (Side::Both, Some(true));
        }
        sides.push((index, entry.side));
        all.push(entry);
    }
    superseded("tracing", &sides, narrowed);
    all
}

fn boolean(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<bool> {
    if value.as_bool().is_none() {
        reader.fault(field, "is no truth value", "write true or false");
    }
    value.as_bool()
}

/// `None` if it cannot be read whole.
fn side(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<Side> {
    let mut side = Some(Side::Both);
    for (name, value) in reader.fields(value, field)? {
        let field = format!("{field}.{name}");
        if name != "mode" {
            reader.unknown(&field);
            side = None;
            continue;
        }
        let named = match value.as_str() {
            Some("CLIENT") => Some(Side::Client),
            Some("SERVER") => Some(Side::Server),
            Some("CLIENT_AND_SERVER" | "UNDEFINED") => Some(Side::Both),
            _ => None,
        };
        if named.is_none() {
            let hint = "write CLIENT, SERVER or CLIENT_AND_SERVER";
            reader.fault(&field, "is no mode", hint);
        }
        side = side.and(named);
    }
    side
}

/// Their names; `None` if they cannot be read whole.
fn providers(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<Vec<String>> {
    let items = entries(value, field, reader);
    let before = reader.problems.len();
    let mut names = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let mut named = "";
        for (name, value) in reader.fields(item, &field).unwrap_or_default() {
            match name {
                "name" => named = value.as_str().unwrap_or_default(),
                _ => reader.unknown(&format!("{field}.{name}")),
            }
        }
        if named.is_empty() || named.len() > MAX_TAG_NAME_BYTES {
            let field = format!("{field}.name");
            let problem = "is missing, or too long for the name of a provider";
            reader.fault(&field, problem, "name a provider");
        } else {
            names.push(named.to_owned());
        }
    }
    (value.is_null() || value.is_array())
        .then_some(names)
        .filter(|_| reader.problems.len() == before)
}

/// The expression; empty if there is none that could be used, which the status says.
fn filter(
    value: &Value,
    field: &str,
    reader: &mut Reader<'_>,
    narrowed: &mut Vec<String>,
) -> String {
    let mut expression = String::new();
    for (name, value) in reader.fields(value, field).unwrap_or_default() {
        let field = format!("{field}.{name}");
        match (name, value.as_str()) {
            ("expression", Some("")) => {}
            ("expression", Some(text)) => match Filter::compile(text) {
                Ok(_) => expression = text.to_owned(),
                Err(problem) => {
                    reader.note(&field, &problem, "everything is logged");
                    narrowed.push(format!("{field} {problem}. Everything is logged"));
                }
            },
            ("expression", None) => {
                reader.fault(&field, "is no text", "write an expression in CEL")
            }
            _ => reader.unknown(&field),
        }
    }
    expression
}

fn tags(
    value: &Value,
    field: &str,
    reader: &mut Reader<'_>,
    narrowed: &mut Vec<String>,
) -> Option<Vec<SpanTag>> {
    let fields = reader.fields(value, field)?;
    if fields.len() > MAX_TAGS {
        let problem = format!("has {} entries", fields.len());
        reader.fault(field, problem, "use at most 32");
    }
    let mut tags = Vec::new();
    for (name, value) in fields.into_iter().take(MAX_TAGS) {
        let field = format!("{field}[{name:?}]");
        if name.is_empty() || name.len() > MAX_TAG_NAME_BYTES {
            reader.fault(&field, "has a name that cannot be", "use 1 to 128 bytes");
            continue;
        }
        let kind = tag(value, &field, reader, narrowed);
        tags.extend(kind.map(|kind| SpanTag {
            name: name.to_owned(),
            kind: Some(kind),
        }));
    }
    Some(tags)
}

fn tag(
    value: &Value,
    field: &str,
    reader: &mut Reader<'_>,
    narrowed: &mut Vec<String>,
) -> Option<span_tag::Kind> {
    let fields = reader.fields(value, field)?;
    let [(kind, value)] = fields.as_slice() else {
        let hint = "write one of literal and header";
        reader.fault(field, "is not of exactly one kind", hint);
        return None;
    };
    let field = &format!("{field}.{kind}");
    match *kind {
        "literal" => {
            let [text] = texts(value, field, ["value"], reader)?;
            if text.is_empty() || text.len() > MAX_TAG_VALUE_BYTES {
                let problem = "has no value, or one that is too long";
                reader.fault(field, problem, "write 1 to 256 bytes");
                return None;
            }
            Some(span_tag::Kind::Literal(text.to_owned()))
        }
        "header" => {
            let [name, default_value] = texts(value, field, ["name", "defaultValue"], reader)?;
            let name = name.to_ascii_lowercase();
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if name.is_empty() || name.len() > MAX_TAG_NAME_BYTES || !name.bytes().all(fits) {
                reader.fault(field, "names no header", "write header.name");
                return None;
            }
            if default_value.len() > MAX_TAG_VALUE_BYTES {
                reader.fault(field, "has a default that is too long", "use 256 bytes");
                return None;
            }
            Some(span_tag::Kind::Header(HeaderTag {
                name,
                default_value: default_value.to_owned(),
            }))
        }
        _ => {
            let problem = "is not supported";
            reader.note(field, problem, "use literal or header");
            narrowed.push(format!("{field} {problem}"));
            None
        }
    }
}

/// The texts of an object with these fields and no others; empty where there is none. `None` if they cannot be read.
fn texts<'v, const N: usize>(
    value: &'v Value,
    field: &str,
    names: [&str; N],
    reader: &mut Reader<'_>,
) -> Option<[&'v str; N]> {
    let before = reader.problems.len();
    let mut found = [""; N];
    for (name, value) in reader.fields(value, field)? {
        let field = format!("{field}.{name}");
        match (
            names.iter().position(|known| *known == name),
            value.as_str(),
        ) {
            (None, _) => reader.unknown(&field),
            (Some(_), None) => reader.fault(&field, "is no text", "put it in quotes"),
            (Some(at), Some(text)) => found[at] = text,
        }
    }
    (reader.problems.len() == before).then_some(found)
}
