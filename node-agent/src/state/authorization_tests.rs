use super::*;
use string_match::MatchType;

fn authorization(condition: Match) -> Authorization {
    Authorization {
        name: "p".to_owned(),
        namespace: "n".to_owned(),
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![condition],
            }],
        }],
        ..Default::default()
    }
}

fn converted(condition: Match) -> Result<model::Match, FieldError> {
    let mut policy = to_policy(&authorization(condition))?;
    Ok(policy.rules.remove(0).clauses.remove(0).matches.remove(0))
}

fn text(kind: MatchType) -> Vec<StringMatch> {
    vec![StringMatch {
        match_type: Some(kind),
    }]
}

fn address(ip: &str, length: u32) -> Vec<Address> {
    let address = match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    vec![Address { address, length }]
}

fn block(ip: &str, length: u8) -> Vec<model::IpBlock> {
    let ip = ip.parse::<IpAddr>().unwrap().into();
    vec![model::IpBlock { ip, length }]
}

fn account(namespace: &str, name: &str) -> Vec<ServiceAccountMatch> {
    vec![ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: name.to_owned(),
    }]
}

#[test]
fn every_field_arrives_under_its_own_name() {
    let accounts = |namespace: &str, account: &str| {
        vec![model::ServiceAccount {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
        }]
    };
    let wire = Match {
        namespaces: text(MatchType::Exact("a".to_owned())),
        not_namespaces: text(MatchType::Prefix("b".to_owned())),
        principals: text(MatchType::Suffix("c".to_owned())),
        not_principals: text(MatchType::Presence(())),
        source_ips: address("10.0.0.1", 32),
        not_source_ips: address("10.0.0.0", 8),
        destination_ips: address("fd00::1", 128),
        not_destination_ips: address("::", 0),
        destination_ports: vec![0, 80],
        not_destination_ports: vec![65_535],
        service_accounts: account("d", "e"),
        not_service_accounts: account("f", "g"),
        extensions: Vec::new(),
    };
    let model = model::Match {
        namespaces: vec![model::StringMatch::Exact("a".to_owned())],
        not_namespaces: vec![model::StringMatch::Prefix("b".to_owned())],
        principals: vec![model::StringMatch::Suffix("c".to_owned())],
        not_principals: vec![model::StringMatch::Presence],
        source_ips: block("10.0.0.1", 128),
        not_source_ips: block("10.0.0.0", 104),
        destination_ips: block("fd00::1", 128),
        not_destination_ips: block("::", 0),
        destination_ports: vec![0, 80],
        not_destination_ports: vec![65_535],
        service_accounts: accounts("d", "e"),
        not_service_accounts: accounts("f", "g"),
    };
    assert_eq!(converted(wire), Ok(model));
}

#[test]
fn the_frame_of_a_policy_survives() {
    let mut wire = authorization(Match::default());
    wire.action = Action::Deny.into();
    wire.rules.push(Rule::default());
    wire.rules[0].clauses.push(Clause::default());
    let policy = to_policy(&wire).unwrap();
    assert_eq!(policy.name, "n/p");
    assert_eq!(policy.action, model::Action::Deny);
    assert_eq!(policy.rules.len(), 2);
    assert_eq!(
        policy.rules[0].clauses[0].matches,
        [model::Match::default()]
    );
    assert_eq!(policy.rules[0].clauses[1], model::Clause::default());
    assert_eq!(policy.rules[1], model::Rule::default());
    assert_eq!(
        to_policy(&Authorization::default()).unwrap().rules,
        Vec::new()
    );
}

#[test]
fn an_unknown_action_is_refused() {
    let mut wire = authorization(Match::default());
    wire.action = 2;
    assert_eq!(to_policy(&wire).unwrap_err().field, "action");
}

/// Each field of `Match` spoilt, with the name that the error must have.
#[test]
fn what_is_malformed_is_refused_under_its_name() {
    let none = || vec![StringMatch { match_type: None }];
    let short = || {
        vec![Address {
            address: vec![1, 2, 3],
            length: 8,
        }]
    };
    let check = |field: &str, wire: Match| {
        let error = converted(wire).unwrap_err();
        assert_eq!(error.field, format!("rules.clauses.matches.{field}"));
        assert_eq!(error.reason(), "api_invalid_field");
    };
    macro_rules! check_each {
        ($($field:ident: $value:expr),* $(,)?) => {$(
            check(stringify!($field), Match { $field: $value, ..Default::default() });
        )*};
    }
    check_each!(
        namespaces: none(),
        not_namespaces: none(),
        principals: none(),
        not_principals: none(),
        source_ips: short(),
        not_source_ips: address("10.0.0.1", 33),
        destination_ips: address("fd00::", 129),
        not_destination_ips: address("fd00::", u32::MAX),
        source_ips: address("10.0.0.1", u32::MAX),
        destination_ips: vec![Address::default()],
        destination_ports: vec![80, 65_536],
        not_destination_ports: vec![u32::MAX],
    );
}

#[test]
fn a_mapped_address_is_ipv4_as_far_as_its_prefix_says_so() {
    let convert = |length| {
        let wire = Match {
            source_ips: address("::ffff:10.1.2.3", length),
            ..Default::default()
        };
        converted(wire).unwrap().source_ips
    };
    assert_eq!(convert(128), block("10.1.2.3", 128));
    assert_eq!(convert(104), block("10.0.0.0", 104));
    assert_eq!(convert(96), block("0.0.0.0", 96));
    assert_eq!(convert(95), block("::fffe:0:0", 95));
    assert_eq!(convert(80), block("::", 80));
    assert_eq!(convert(0), block("::", 0));
}
