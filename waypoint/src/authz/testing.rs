//! Policies for tests, written as their objects are.

use std::net::IpAddr;

use karst_api::convert::address_bytes;
use karst_api::waypoint as wire;
use karst_api::waypoint::attribute_value::Kind;
use karst_api::waypoint::{Attribute, PolicyAction};

/// A value as an object has it.
fn value(attribute: Attribute, text: &str) -> wire::AttributeValue {
    let kind = match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            let (address, length) = text.split_once('/').unwrap_or((text, "32"));
            let address: IpAddr = address.parse().unwrap();
            Kind::IpBlock(wire::IpBlock {
                address: address_bytes(address),
                length: length.parse().unwrap(),
            })
        }
        Attribute::DestinationPort => Kind::Port(text.parse().unwrap()),
        Attribute::Path if text.contains('{') => Kind::PathTemplate(text.to_owned()),
        _ if text == "*" => Kind::Present(true),
        _ => match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(suffix), _) => Kind::Suffix(suffix.to_owned()),
            (None, Some(prefix)) => Kind::Prefix(prefix.to_owned()),
            (None, None) => Kind::Exact(text.to_owned()),
        },
    };
    wire::AttributeValue { kind: Some(kind) }
}

/// An attribute has one of the values, and none of those behind an exclamation mark.
pub(crate) fn has(attribute: Attribute, values: &[&str]) -> wire::AttributeMatch {
    let (mut yes, mut no) = (Vec::new(), Vec::new());
    for text in values {
        match text.strip_prefix('!') {
            Some(text) => no.push(value(attribute, text)),
            None => yes.push(value(attribute, text)),
        }
    }
    wire::AttributeMatch {
        attribute: attribute.into(),
        key: String::new(),
        values: yes,
        not_values: no,
    }
}

/// Likewise of a header.
pub(crate) fn header(name: &str, values: &[&str]) -> wire::AttributeMatch {
    wire::AttributeMatch {
        key: name.to_owned(),
        ..has(Attribute::Header, values)
    }
}

/// A rule with conditions that must all hold.
pub(crate) fn when(matches: Vec<wire::AttributeMatch>) -> wire::AuthorizationRule {
    wire::AuthorizationRule {
        when: matches,
        ..wire::AuthorizationRule::default()
    }
}

pub(crate) fn policy(
    name: &str,
    action: PolicyAction,
    mut rules: Vec<wire::AuthorizationRule>,
) -> wire::AuthorizationPolicy {
    for (index, rule) in (0..).zip(&mut rules) {
        rule.index = index;
    }
    wire::AuthorizationPolicy {
        name: name.to_owned(),
        action: action.into(),
        dry_run: false,
        rules,
        provider: None,
    }
}

/// The same on trial.
pub(crate) fn on_trial(policy: wire::AuthorizationPolicy) -> wire::AuthorizationPolicy {
    wire::AuthorizationPolicy {
        dry_run: true,
        ..policy
    }
}
