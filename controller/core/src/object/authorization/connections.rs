//! Rules as node agents are told them: what a connection must be.
//!
//! On the wire a rule without clauses matches everything, as does a clause without matches, while a
//! match without conditions is one that node agents pass over. So none of those is ever written.

use karst_api::{
    security as wire,
    waypoint::{
        Attribute, AttributeMatch, AttributeMatches, AttributeValue, AuthorizationRule,
        attribute_value::Kind,
    },
};

/// Whether node agents know an attribute.
pub(super) fn has(attribute: Attribute) -> bool {
    matches!(
        attribute,
        Attribute::SourcePrincipal
            | Attribute::SourceNamespace
            | Attribute::SourceServiceAccount
            | Attribute::SourceIp
            | Attribute::DestinationIp
            | Attribute::DestinationPort
    )
}

/// A rule that was read for node agents: all its attributes are known to them.
pub(super) fn rule(rule: AuthorizationRule) -> wire::Rule {
    let mut clauses = Vec::new();
    for sets in [rule.from, rule.to] {
        if !sets.is_empty() {
            let matches = sets.into_iter().map(|AttributeMatches { matches }| {
                let mut all = wire::Match::default();
                matches.into_iter().for_each(|one| add(one, &mut all));
                all
            });
            clauses.push(wire::Clause {
                matches: matches.collect(),
            });
        }
    }
    clauses.extend(rule.when.into_iter().map(|condition| {
        let mut one = wire::Match::default();
        add(condition, &mut one);
        wire::Clause { matches: vec![one] }
    }));
    wire::Rule { clauses }
}

fn add(one: AttributeMatch, into: &mut wire::Match) {
    let attribute = one.attribute();
    let (yes, no) = (one.values, one.not_values);
    match attribute {
        Attribute::SourcePrincipal => {
            into.principals.extend(strings(yes));
            into.not_principals.extend(strings(no));
        }
        Attribute::SourceNamespace => {
            into.namespaces.extend(strings(yes));
            into.not_namespaces.extend(strings(no));
        }
        Attribute::SourceServiceAccount => {
            into.service_accounts.extend(accounts(yes));
            into.not_service_accounts.extend(accounts(no));
        }
        Attribute::SourceIp => {
            into.source_ips.extend(addresses(yes));
            into.not_source_ips.extend(addresses(no));
        }
        Attribute::DestinationIp => {
            into.destination_ips.extend(addresses(yes));
            into.not_destination_ips.extend(addresses(no));
        }
        Attribute::DestinationPort => {
            into.destination_ports.extend(ports(yes));
            into.not_destination_ports.extend(ports(no));
        }
        // What `has` does not name was left out when the rule was read.
        _ => {}
    }
}

fn strings(values: Vec<AttributeValue>) -> impl Iterator<Item = wire::StringMatch> {
    use wire::string_match::MatchType;
    values.into_iter().filter_map(|value| {
        let match_type = match value.kind? {
            Kind::Exact(text) => MatchType::Exact(text),
            Kind::Prefix(text) => MatchType::Prefix(text),
            Kind::Suffix(text) => MatchType::Suffix(text),
            Kind::Present(_) => MatchType::Presence(()),
            Kind::PathTemplate(_) | Kind::IpBlock(_) | Kind::Port(_) => return None,
        };
        Some(wire::StringMatch {
            match_type: Some(match_type),
        })
    })
}

fn accounts(values: Vec<AttributeValue>) -> impl Iterator<Item = wire::ServiceAccountMatch> {
    values.into_iter().filter_map(|value| match value.kind? {
        Kind::Exact(text) => {
            let (namespace, name) = text.split_once('/')?;
            Some(wire::ServiceAccountMatch {
                namespace: namespace.to_owned(),
                service_account: name.to_owned(),
            })
        }
        _ => None,
    })
}

fn addresses(values: Vec<AttributeValue>) -> impl Iterator<Item = wire::Address> {
    values.into_iter().filter_map(|value| match value.kind? {
        Kind::IpBlock(block) => Some(wire::Address {
            address: block.address,
            length: block.length,
        }),
        _ => None,
    })
}

fn ports(values: Vec<AttributeValue>) -> impl Iterator<Item = u32> {
    values.into_iter().filter_map(|value| match value.kind? {
        Kind::Port(port) => Some(port),
        _ => None,
    })
}
