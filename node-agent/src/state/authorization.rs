//! Authorization policies from the wire to what the matcher takes.
//!
//! Here and not beside the wire types: those are the controller's and the waypoint's too, whose builds know
//! nothing of what user space shares with eBPF programs.

use std::net::{IpAddr, Ipv6Addr};

use karst_api::convert::{FieldError, ip_address};
use karst_api::security::{
    Action, Address, Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch,
    string_match,
};
use karst_bpf_common::Ip;
use karst_bpf_common::policy::model;

/// Length of the prefix below which IPv6 holds IPv4 addresses (`::ffff:0:0/96`), bits.
const MAPPED_BITS: u32 = 96;

/// The policy as the matcher takes it. `scope`, `dry_run` and `extensions` are not part of it:
/// whoever applies the policy looks at them, and must not enforce one that is a dry run.
///
/// Nothing that is not understood is left out, because a condition less is a policy that
/// matches more: a reader that dropped a malformed address would turn "allow this address"
/// into "allow all".
///
/// # Errors
/// When the action is unknown, a string match has no kind or one that is unknown, an address
/// is neither 4 nor 16 bytes long, a prefix is longer than the address, or a port is above
/// 65535. Port 0 is fine: no connection has it.
pub fn to_policy(policy: &Authorization) -> Result<model::Policy, FieldError> {
    let action = match Action::try_from(policy.action) {
        Ok(Action::Allow) => model::Action::Allow,
        Ok(Action::Deny) => model::Action::Deny,
        Err(_) => {
            let problem = format!("is {}, which is no known action", policy.action);
            return Err(FieldError::new("action", problem));
        }
    };
    Ok(model::Policy {
        name: policy.resource_name(),
        action,
        rules: each(&policy.rules, rule)?,
    })
}

fn rule(wire: &Rule) -> Result<model::Rule, FieldError> {
    let clauses = each(&wire.clauses, clause)?;
    Ok(model::Rule { clauses })
}

fn clause(wire: &Clause) -> Result<model::Clause, FieldError> {
    let matches = each(&wire.matches, condition)?;
    Ok(model::Clause { matches })
}

/// A field's path, for messages.
macro_rules! field {
    ($name:literal) => {
        concat!("rules.clauses.matches.", $name)
    };
}

fn condition(wire: &Match) -> Result<model::Match, FieldError> {
    Ok(model::Match {
        namespaces: texts(field!("namespaces"), &wire.namespaces)?,
        not_namespaces: texts(field!("not_namespaces"), &wire.not_namespaces)?,
        principals: texts(field!("principals"), &wire.principals)?,
        not_principals: texts(field!("not_principals"), &wire.not_principals)?,
        source_ips: blocks(field!("source_ips"), &wire.source_ips)?,
        not_source_ips: blocks(field!("not_source_ips"), &wire.not_source_ips)?,
        destination_ips: blocks(field!("destination_ips"), &wire.destination_ips)?,
        not_destination_ips: blocks(field!("not_destination_ips"), &wire.not_destination_ips)?,
        destination_ports: ports(field!("destination_ports"), &wire.destination_ports)?,
        not_destination_ports: ports(field!("not_destination_ports"), &wire.not_destination_ports)?,
        service_accounts: accounts(&wire.service_accounts),
        not_service_accounts: accounts(&wire.not_service_accounts),
    })
}

fn each<T, U>(
    list: &[T],
    convert: impl Fn(&T) -> Result<U, FieldError>,
) -> Result<Vec<U>, FieldError> {
    list.iter().map(convert).collect()
}

fn texts(field: &'static str, list: &[StringMatch]) -> Result<Vec<model::StringMatch>, FieldError> {
    use string_match::MatchType;
    each(list, |value| match &value.match_type {
        Some(MatchType::Exact(text)) => Ok(model::StringMatch::Exact(text.clone())),
        Some(MatchType::Prefix(text)) => Ok(model::StringMatch::Prefix(text.clone())),
        Some(MatchType::Suffix(text)) => Ok(model::StringMatch::Suffix(text.clone())),
        Some(MatchType::Presence(())) => Ok(model::StringMatch::Presence),
        // Also what a newer sender's kind looks like.
        None => Err(FieldError::new(
            field,
            "has a match of no kind, or of one that is unknown",
        )),
    })
}

fn blocks(field: &'static str, list: &[Address]) -> Result<Vec<model::IpBlock>, FieldError> {
    each(list, |value| {
        let ip = ip_address(field, &value.address)?;
        let written_bits = if value.address.len() == 4 { 32 } else { 128 };
        if value.length > written_bits {
            let problem = format!(
                "has a prefix of {} bits in an address of {written_bits}",
                value.length
            );
            return Err(FieldError::new(field, problem));
        }
        let length = value.length + if written_bits == 32 { MAPPED_BITS } else { 0 };
        let length = u8::try_from(length)
            .map_err(|_| FieldError::new(field, "has a prefix of more than 128 bits"))?;
        Ok(model::IpBlock {
            ip: network(ip, length),
            length,
        })
    })
}

/// The address without what the prefix leaves out. That matters for one kind: a mapped address with
/// fewer bits than the mapping is the IPv6 network around it, and no IPv4 address.
fn network(ip: IpAddr, length: u8) -> Ip {
    let bits = u128::from_be_bytes(Ip::from(ip).octets());
    let beyond = u128::MAX.checked_shr(length.into()).unwrap_or(0);
    Ip::from(Ipv6Addr::from(bits & !beyond))
}

fn ports(field: &'static str, list: &[u32]) -> Result<Vec<u16>, FieldError> {
    each(list, |&value| {
        u16::try_from(value)
            .map_err(|_| FieldError::new(field, format!("is {value}, a port is at most 65535")))
    })
}

fn accounts(list: &[ServiceAccountMatch]) -> Vec<model::ServiceAccount> {
    let convert = |value: &ServiceAccountMatch| model::ServiceAccount {
        namespace: value.namespace.clone(),
        account: value.service_account.clone(),
    };
    list.iter().map(convert).collect()
}

#[cfg(test)]
#[path = "authorization_tests.rs"]
mod tests;
