//! Rules as waypoints and gateways enforce them: what a request or connection must be.
//!
//! Unlike node agents they know everything that the API can ask for but what only Istio's own proxy
//! knows. What they do not know, and what cannot be understood, follows the same two rules as for node
//! agents: a rule that allows is left out with it, one that refuses stays without it.

use karst_api::{
    security,
    waypoint::{self as wire, Attribute, attribute_value::Kind},
};
use serde_json::Value;

use super::{
    MAX_RULES,
    rules::{UNKNOWN, UNKNOWN_HINT, Unknown},
    values::{self, Wrong},
};
use crate::object::policy::Reader;

/// Entries of `from`, `to` or `when`. Proxies take no more of either.
const MAX_ITEMS: usize = 256;

/// Values of one list, and bytes of one value. Proxies take no more.
const MAX_VALUES: usize = 4096;

const NOT_KNOWN: &str = "is nothing that a waypoint or gateway knows";
const NOT_KNOWN_HINT: &str =
    "a rule that allows never matches with it, one that refuses is enforced without it";

/// Conditions that hold together, as far as they can be decided on.
#[derive(Default)]
struct Part {
    matches: Vec<wire::AttributeMatch>,
    /// Something was left out.
    lacks: bool,
}

struct RuleReader<'a, 'r> {
    reader: &'r mut Reader<'a>,
    namespace: &'r str,
}

/// Reads `spec.rules`; `None` if there is no telling what they are.
pub(super) fn read(
    value: &Value,
    unknown: Unknown,
    namespace: &str,
    reader: &mut Reader<'_>,
) -> Option<Vec<wire::AuthorizationRule>> {
    let items = reader.items(value, "spec.rules")?;
    let too_many = items.len() > MAX_RULES;
    if too_many {
        let problem = format!("has {} rules", items.len());
        let hint = "use at most 512, in several policies if need be";
        reader.fault("spec.rules", problem, hint);
    }
    let mut rules = Vec::new();
    for (index, item) in (0_u32..).zip(items.iter().take(MAX_RULES)) {
        let mut rule_reader = RuleReader { reader, namespace };
        let (mut rule, lacks) = rule_reader.rule(item, &format!("spec.rules[{index}]"));
        rule.index = index;
        if !lacks || unknown == Unknown::LeftOut {
            rules.push(rule);
        }
    }
    if too_many && unknown == Unknown::LeftOut {
        // What the others would have refused is not known: everything is.
        rules = vec![wire::AuthorizationRule::default()];
    }
    Some(rules)
}

impl RuleReader<'_, '_> {
    /// A rule, and whether something was left out.
    fn rule(&mut self, value: &Value, field: &str) -> (wire::AuthorizationRule, bool) {
        let mut rule = wire::AuthorizationRule::default();
        if value.is_null() {
            let hint = "write {} for a rule that matches everything";
            self.reader.fault(field, "is null", hint);
            return (rule, true);
        }
        let Some(fields) = self.reader.fields(value, field) else {
            return (rule, true);
        };
        let mut lacks = false;
        for (name, value) in fields {
            let field = format!("{field}.{name}");
            match name {
                "from" => lacks |= self.any_of(value, &field, "source", source, &mut rule.from),
                "to" => lacks |= self.any_of(value, &field, "operation", operation, &mut rule.to),
                "when" => lacks |= self.when(value, &field, &mut rule.when),
                _ => {
                    self.reader.fault(&field, UNKNOWN, UNKNOWN_HINT);
                    lacks = true;
                }
            }
        }
        (rule, lacks)
    }

    /// Reads `from` or `to`; nothing is added if one of its entries always holds. Whether something was
    /// left out.
    fn any_of(
        &mut self,
        value: &Value,
        field: &str,
        inner: &str,
        attribute: fn(&str) -> Named,
        into: &mut Vec<wire::AttributeMatches>,
    ) -> bool {
        let Some(items) = self.reader.items(value, field) else {
            return true;
        };
        if items.is_empty() || items.len() > MAX_ITEMS {
            let hint = "leave it out for any, or write up to 256 entries";
            let problem = format!("has {} entries", items.len());
            self.reader.fault(field, problem, hint);
            return true;
        }
        let (mut sets, mut lacks) = (Vec::new(), false);
        for (index, item) in items.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let mut part = None;
            for (name, value) in self.reader.fields(item, &field).unwrap_or_default() {
                let field = format!("{field}.{name}");
                if name == inner {
                    part = Some(self.part(value, &field, attribute));
                } else {
                    self.reader.fault(&field, UNKNOWN, UNKNOWN_HINT);
                    lacks = true;
                }
            }
            let part = part.unwrap_or_default();
            if part.matches.is_empty() && !part.lacks {
                let hint = "write a condition, or leave the list out for any";
                self.reader.fault(&field, "has no condition", hint);
                lacks = true;
            }
            lacks |= part.lacks;
            sets.push(wire::AttributeMatches {
                matches: part.matches,
            });
        }
        if sets.iter().all(|set| !set.matches.is_empty()) {
            *into = sets;
        }
        lacks
    }

    /// The conditions of a source or operation.
    fn part(&mut self, value: &Value, field: &str, attribute: fn(&str) -> Named) -> Part {
        let mut part = Part::default();
        let Some(fields) = self.reader.fields(value, field) else {
            part.lacks = true;
            return part;
        };
        for (name, value) in fields {
            let field = format!("{field}.{name}");
            match attribute(name) {
                Named::Is(attribute) => {
                    self.list(value, &field, attribute, "", Sign::Plus, &mut part);
                }
                Named::IsNot(attribute) => {
                    self.list(value, &field, attribute, "", Sign::Minus, &mut part);
                }
                Named::NotKnown if value.as_array().is_some_and(Vec::is_empty) => {}
                Named::NotKnown => {
                    self.reader.unsupported(&field, NOT_KNOWN, NOT_KNOWN_HINT);
                    part.lacks = true;
                }
                Named::Unheard => {
                    self.reader.fault(&field, UNKNOWN, UNKNOWN_HINT);
                    part.lacks = true;
                }
            }
        }
        part
    }

    /// Reads `when`. Whether something was left out.
    fn when(&mut self, value: &Value, field: &str, into: &mut Vec<wire::AttributeMatch>) -> bool {
        let Some(items) = self.reader.items(value, field) else {
            return true;
        };
        if items.len() > MAX_ITEMS / 2 {
            let problem = format!("has {} entries", items.len());
            self.reader.fault(field, problem, "write at most 128");
            return true;
        }
        let mut part = Part::default();
        for (index, item) in items.iter().enumerate() {
            self.condition(item, &format!("{field}[{index}]"), &mut part);
        }
        *into = part.matches;
        part.lacks
    }

    fn condition(&mut self, value: &Value, field: &str, part: &mut Part) {
        let Some(fields) = self.reader.fields(value, field) else {
            part.lacks = true;
            return;
        };
        let null = Value::Null;
        let (mut key, mut values, mut not_values) = ("", &null, &null);
        for (name, value) in fields {
            match name {
                "key" => key = value.as_str().unwrap_or_default(),
                "values" => values = value,
                "notValues" => not_values = value,
                _ => {
                    let field = format!("{field}.{name}");
                    self.reader.fault(&field, UNKNOWN, UNKNOWN_HINT);
                    part.lacks = true;
                }
            }
        }
        let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        let says_nothing = |value: &Value| value.is_null() || is_empty(value);
        if says_nothing(values) && says_nothing(not_values) {
            let hint = "write values or notValues";
            self.reader.fault(field, "has no values", hint);
            part.lacks = true;
            return;
        }
        match keyed(key) {
            Some((attribute, key)) => {
                let yes = format!("{field}.values");
                self.list(values, &yes, attribute, &key, Sign::Plus, part);
                let no = format!("{field}.notValues");
                self.list(not_values, &no, attribute, &key, Sign::Minus, part);
            }
            None if key == "source.trustDomain" || key.starts_with("experimental.") => {
                let field = format!("{field} (key {key:?})");
                self.reader.unsupported(&field, NOT_KNOWN, NOT_KNOWN_HINT);
                part.lacks = true;
            }
            None => {
                let problem = format!("is {key:?}, which is no attribute");
                let hint = "see Istio's list of authorization policy conditions";
                self.reader.fault(&format!("{field}.key"), problem, hint);
                part.lacks = true;
            }
        }
    }

    /// Adds the condition of one list; none of it if a value is wrong.
    fn list(
        &mut self,
        value: &Value,
        field: &str,
        attribute: Attribute,
        key: &str,
        sign: Sign,
        part: &mut Part,
    ) {
        let Some(items) = self.reader.items(value, field) else {
            part.lacks = true;
            return;
        };
        if items.len() > MAX_VALUES {
            let problem = format!("has {} values", items.len());
            self.reader.fault(field, problem, "write at most 4096");
            part.lacks = true;
            return;
        }
        let (mut found, mut is_right) = (Vec::with_capacity(items.len()), true);
        for (index, item) in items.iter().enumerate() {
            let value = match item.as_str() {
                Some(text) => read_value(attribute, text, self.namespace),
                None => Err((format!("is {item}, not text"), "put it in quotes")),
            };
            match value {
                Ok(kind) => found.push(wire::AttributeValue { kind: Some(kind) }),
                Err((problem, hint)) => {
                    self.reader
                        .fault(&format!("{field}[{index}]"), problem, hint);
                    is_right = false;
                }
            }
        }
        part.lacks |= !is_right;
        if !is_right || found.is_empty() {
            return;
        }
        let mut condition = wire::AttributeMatch {
            attribute: attribute.into(),
            key: key.to_owned(),
            ..wire::AttributeMatch::default()
        };
        match sign {
            Sign::Plus => condition.values = found,
            Sign::Minus => condition.not_values = found,
        }
        part.matches.push(condition);
    }
}

/// Whether a list has what must be, or what must not.
#[derive(Clone, Copy)]
enum Sign {
    Plus,
    Minus,
}

/// What a field of a source or operation asks for.
enum Named {
    Is(Attribute),
    IsNot(Attribute),
    /// Something of Istio's that proxies of ours do not know.
    NotKnown,
    /// Nothing.
    Unheard,
}

fn source(name: &str) -> Named {
    match name {
        "principals" => Named::Is(Attribute::SourcePrincipal),
        "notPrincipals" => Named::IsNot(Attribute::SourcePrincipal),
        "namespaces" => Named::Is(Attribute::SourceNamespace),
        "notNamespaces" => Named::IsNot(Attribute::SourceNamespace),
        "serviceAccounts" => Named::Is(Attribute::SourceServiceAccount),
        "notServiceAccounts" => Named::IsNot(Attribute::SourceServiceAccount),
        "ipBlocks" => Named::Is(Attribute::SourceIp),
        "notIpBlocks" => Named::IsNot(Attribute::SourceIp),
        "remoteIpBlocks" => Named::Is(Attribute::RemoteIp),
        "notRemoteIpBlocks" => Named::IsNot(Attribute::RemoteIp),
        "requestPrincipals" => Named::Is(Attribute::RequestPrincipal),
        "notRequestPrincipals" => Named::IsNot(Attribute::RequestPrincipal),
        "trustDomains" | "notTrustDomains" => Named::NotKnown,
        _ => Named::Unheard,
    }
}

fn operation(name: &str) -> Named {
    match name {
        "hosts" => Named::Is(Attribute::Host),
        "notHosts" => Named::IsNot(Attribute::Host),
        "ports" => Named::Is(Attribute::DestinationPort),
        "notPorts" => Named::IsNot(Attribute::DestinationPort),
        "methods" => Named::Is(Attribute::Method),
        "notMethods" => Named::IsNot(Attribute::Method),
        "paths" => Named::Is(Attribute::Path),
        "notPaths" => Named::IsNot(Attribute::Path),
        _ => Named::Unheard,
    }
}

/// The attribute of a condition's key, and what is in its brackets.
fn keyed(key: &str) -> Option<(Attribute, String)> {
    let plain = match key {
        "source.ip" => Attribute::SourceIp,
        "remote.ip" => Attribute::RemoteIp,
        "source.namespace" => Attribute::SourceNamespace,
        "source.principal" => Attribute::SourcePrincipal,
        "source.serviceAccount" => Attribute::SourceServiceAccount,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        "connection.sni" => Attribute::Sni,
        "request.auth.principal" => Attribute::RequestPrincipal,
        "request.auth.audiences" => Attribute::RequestAudiences,
        "request.auth.presenter" => Attribute::RequestPresenter,
        _ => return bracketed(key),
    };
    Some((plain, String::new()))
}

fn bracketed(key: &str) -> Option<(Attribute, String)> {
    let inner = |prefix: &str| {
        let rest = key.strip_prefix(prefix)?.strip_prefix('[')?;
        rest.strip_suffix(']')
    };
    if let Some(name) = inner("request.headers") {
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let is_name = !name.is_empty() && name.bytes().all(is_token);
        return is_name.then(|| (Attribute::Header, name.to_owned()));
    }
    let claims: Vec<&str> = inner("request.auth.claims")?.split("][").collect();
    let is_path = claims.iter().all(|claim| !claim.is_empty());
    is_path.then(|| (Attribute::RequestClaim, claims.join("][")))
}

fn read_value(attribute: Attribute, text: &str, namespace: &str) -> Result<Kind, Wrong> {
    if text.len() > MAX_VALUES {
        return Err((
            format!("is {} bytes long", text.len()),
            "write at most 4096 bytes",
        ));
    }
    match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            let block = values::address(text)?;
            Ok(Kind::IpBlock(wire::IpBlock {
                address: block.address,
                length: block.length,
            }))
        }
        Attribute::DestinationPort => values::port(text).map(Kind::Port),
        Attribute::SourceServiceAccount => {
            let account = values::service_account(text, namespace)?;
            let (namespace, name) = (account.namespace, account.service_account);
            Ok(Kind::Exact(format!("{namespace}/{name}")))
        }
        Attribute::SourcePrincipal => values::principal(text).and_then(string_kind),
        Attribute::Path if text.contains(['{', '}']) => template(text),
        _ => values::string(text).and_then(string_kind),
    }
}

fn string_kind(value: security::StringMatch) -> Result<Kind, Wrong> {
    use security::string_match::MatchType;
    match value.match_type {
        Some(MatchType::Exact(text)) => Ok(Kind::Exact(text)),
        Some(MatchType::Prefix(text)) => Ok(Kind::Prefix(text)),
        Some(MatchType::Suffix(text)) => Ok(Kind::Suffix(text)),
        Some(MatchType::Presence(())) => Ok(Kind::Present(true)),
        None => Err(("is nothing".to_owned(), "write a value")),
    }
}

/// A path with the operators `{*}` and `{**}`, each a whole segment, and the latter the last of them.
fn template(text: &str) -> Result<Kind, Wrong> {
    let hint = "use {*} for one segment and {**} for any number, each alone between slashes, and nothing of the \
                kind behind {**}; other asterisks and braces may not be in such a path";
    let mut is_last = false;
    let is_good = |segment: &str| match segment {
        "{*}" | "{**}" if is_last => false,
        "{**}" => {
            is_last = true;
            true
        }
        "{*}" => true,
        literal => !literal.contains(['*', '{', '}']),
    };
    let segments = text.strip_prefix('/').map(|rest| rest.split('/'));
    // Proxies take no more segments.
    let few = |count: usize| count <= 256;
    let is_template =
        segments.is_some_and(|segments| few(segments.clone().count()) && { segments }.all(is_good));
    if is_template {
        Ok(Kind::PathTemplate(text.to_owned()))
    } else {
        Err((format!("is {text:?}, which is no template of paths"), hint))
    }
}
