//! Layer-4 authorization policies (`istio.security`), with a checked conversion to what is matched.

use std::net::{IpAddr, Ipv6Addr};

use karst_bpf_common::Ip;
use karst_bpf_common::policy::model;

use crate::convert::{FieldError, ip_address};

include!("gen/security.rs");

/// Length of the prefix below which IPv6 holds IPv4 addresses (`::ffff:0:0/96`), bits.
const MAPPED_BITS: u32 = 96;

impl Authorization {
    /// The resource name: `namespace/name`.
    #[must_use]
    pub fn resource_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

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
    pub fn to_policy(&self) -> Result<model::Policy, FieldError> {
        let action = match Action::try_from(self.action) {
            Ok(Action::Allow) => model::Action::Allow,
            Ok(Action::Deny) => model::Action::Deny,
            Err(_) => {
                let problem = format!("is {}, which is no known action", self.action);
                return Err(FieldError::new("action", problem));
            }
        };
        Ok(model::Policy {
            name: self.resource_name(),
            action,
            rules: each(&self.rules, Rule::to_model)?,
        })
    }
}

impl Rule {
    fn to_model(&self) -> Result<model::Rule, FieldError> {
        let clauses = each(&self.clauses, Clause::to_model)?;
        Ok(model::Rule { clauses })
    }
}

impl Clause {
    fn to_model(&self) -> Result<model::Clause, FieldError> {
        let matches = each(&self.matches, Match::to_model)?;
        Ok(model::Clause { matches })
    }
}

/// A field's path, for messages.
macro_rules! field {
    ($name:literal) => {
        concat!("rules.clauses.matches.", $name)
    };
}

impl Match {
    fn to_model(&self) -> Result<model::Match, FieldError> {
        Ok(model::Match {
            namespaces: texts(field!("namespaces"), &self.namespaces)?,
            not_namespaces: texts(field!("not_namespaces"), &self.not_namespaces)?,
            principals: texts(field!("principals"), &self.principals)?,
            not_principals: texts(field!("not_principals"), &self.not_principals)?,
            source_ips: blocks(field!("source_ips"), &self.source_ips)?,
            not_source_ips: blocks(field!("not_source_ips"), &self.not_source_ips)?,
            destination_ips: blocks(field!("destination_ips"), &self.destination_ips)?,
            not_destination_ips: blocks(field!("not_destination_ips"), &self.not_destination_ips)?,
            destination_ports: ports(field!("destination_ports"), &self.destination_ports)?,
            not_destination_ports: ports(
                field!("not_destination_ports"),
                &self.not_destination_ports,
            )?,
            service_accounts: accounts(&self.service_accounts),
            not_service_accounts: accounts(&self.not_service_accounts),
        })
    }
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
mod tests;
