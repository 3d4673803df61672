//! The router against the specification taken literally: look at every match of every route, and take the best.

use std::cmp::Reverse;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// A request in the terms of the test.
#[derive(Debug, Clone)]
struct Asked {
    method: &'static str,
    host: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
}

const HOSTNAMES: [&str; 7] = [
    "a.com",
    "b.a.com",
    "*.a.com",
    "*.b.a.com",
    "*.com",
    "c.org",
    "*.org",
];
const HOSTS: [&str; 7] = [
    "a.com",
    "b.a.com",
    "x.b.a.com",
    "x.a.com",
    "c.org",
    "x.y",
    "",
];
const PATHS: [&str; 8] = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b", "/c/d"];
const PATTERNS: [&str; 4] = ["/a.*", "/[a-c]", "/a/b", "/.*/b"];
const QUERIES: [&str; 5] = ["x=1", "x=2", "x=1&y=1", "y=1&x=2&x=1", "x=%31"];

fn attached() -> impl Strategy<Value = Vec<(Vec<&'static str>, wire::Route)>> {
    let value = |names: [&'static str; 2]| {
        let texts = select(vec!["1", "2", "re:[12]", "re:.*"]);
        (select(names.to_vec()), texts).prop_map(|(name, text)| value(name, text))
    };
    let path = prop_oneof![
        select(PATHS.to_vec()).prop_map(exact),
        select(PATHS.to_vec()).prop_map(prefix),
        select(PATTERNS.to_vec()).prop_map(regex),
        Just(wire::HttpMatch::default()),
    ];
    let method = select(vec!["", "", "GET", "PUT"]);
    let conditions = (vec(value(["h", "H"]), 0..3), vec(value(["x", "y"]), 0..3));
    let one =
        (path, method, conditions).prop_map(|(base, method, (headers, query))| wire::HttpMatch {
            method: method.to_owned(),
            headers,
            query,
            ..base
        });
    let rules = vec(vec(one, 0..3), 1..4);
    let one = (vec(select(HOSTNAMES.to_vec()), 0..3), 0..3_i64, rules);
    vec(one, 1..6).prop_map(|routes| {
        let named = |(index, (hostnames, created, rules))| {
            (
                hostnames,
                route(&format!("n{}/r{index}", index % 2), created, rules),
            )
        };
        routes.into_iter().enumerate().map(named).collect()
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    let header = (select(vec!["h", "k"]), select(vec!["1", "2", "3"]));
    (
        select(vec!["GET", "PUT"]),
        select(HOSTS.to_vec()),
        select(PATHS.to_vec()),
        option::of(select(QUERIES.to_vec())),
        vec(header, 0..3),
    )
        .prop_map(|(method, host, path, query, headers)| Asked {
            method,
            host,
            path,
            query,
            headers,
        })
}

fn text_fits(kind: &Option<value_match::Kind>, text: &str) -> bool {
    match kind.as_ref().unwrap() {
        value_match::Kind::Exact(expected) => expected == text,
        value_match::Kind::Regex(pattern) => whole(pattern, text),
    }
}

fn whole(pattern: &str, text: &str) -> bool {
    let pattern = ::regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
    pattern.is_match(text)
}

/// First of each name, as the specification says of duplicates.
fn distinct(list: &[wire::ValueMatch], fold: fn(&str) -> String) -> Vec<&wire::ValueMatch> {
    let mut seen = std::collections::HashSet::new();
    list.iter()
        .filter(|value| seen.insert(fold(&value.name)))
        .collect()
}

fn fits(candidate: &wire::HttpMatch, asked: &Asked) -> bool {
    let path = match candidate.path.as_ref().and_then(|path| path.kind.as_ref()) {
        None => true,
        Some(path_match::Kind::Exact(path)) => path == asked.path,
        Some(path_match::Kind::Prefix(prefix)) => {
            let elements = |path: &str| {
                let mut elements: Vec<String> = path.split('/').map(str::to_owned).collect();
                if elements.last().is_some_and(String::is_empty) {
                    elements.pop();
                }
                elements
            };
            elements(asked.path).starts_with(&elements(prefix))
        }
        Some(path_match::Kind::Regex(pattern)) => whole(pattern, asked.path),
    };
    let headers = distinct(&candidate.headers, str::to_lowercase);
    let headers = headers.iter().all(|header| {
        let values = asked
            .headers
            .iter()
            .filter(|(name, _)| header.name.eq_ignore_ascii_case(name));
        let values: Vec<&str> = values.map(|(_, value)| *value).collect();
        !values.is_empty() && text_fits(&header.kind, &values.join(","))
    });
    let query = distinct(&candidate.query, str::to_owned);
    let query = query.iter().all(|parameter| {
        let pairs = asked.query.unwrap_or_default().split('&');
        let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
        let first = pairs.find(|(name, _)| *name == parameter.name);
        first.is_some_and(|(_, value)| text_fits(&parameter.kind, &value.replace("%31", "1")))
    });
    path && headers && query && (candidate.method.is_empty() || candidate.method == asked.method)
}

/// The greatest rank wins.
fn host_rank(hostnames: &[&str], host: &str) -> Option<(u8, usize)> {
    if hostnames.is_empty() {
        return Some((0, 0));
    }
    let rank = |name: &&str| match name.strip_prefix('*') {
        None if *name == host => Some((2, name.len())),
        Some(suffix) if host.len() > suffix.len() && host.ends_with(suffix) => {
            Some((1, name.len()))
        }
        _ => None,
    };
    hostnames.iter().filter_map(rank).max()
}

fn path_rank(candidate: &wire::HttpMatch) -> (u8, usize) {
    match candidate.path.as_ref().and_then(|path| path.kind.as_ref()) {
        Some(path_match::Kind::Exact(path)) => (3, path.len()),
        Some(path_match::Kind::Prefix(prefix)) if prefix != "/" => {
            (2, prefix.trim_end_matches('/').len())
        }
        Some(path_match::Kind::Regex(pattern)) => (1, pattern.len()),
        Some(path_match::Kind::Prefix(_)) | None => (0, 0),
    }
}

fn reference(routes: &[(Vec<&'static str>, wire::Route)], asked: &Asked) -> Option<String> {
    let everything = [wire::HttpMatch::default()];
    let mut best = None;
    for (hostnames, route) in routes {
        let Some(host) = host_rank(hostnames, asked.host) else {
            continue;
        };
        for (place, rule) in route.http_rules.iter().enumerate() {
            let matches = if rule.matches.is_empty() {
                &everything[..]
            } else {
                &rule.matches
            };
            for candidate in matches.iter().filter(|candidate| fits(candidate, asked)) {
                let rank = (
                    host,
                    path_rank(candidate),
                    !candidate.method.is_empty(),
                    distinct(&candidate.headers, str::to_lowercase).len(),
                    distinct(&candidate.query, str::to_owned).len(),
                    Reverse(route.created),
                    Reverse(route.name.clone()),
                    Reverse(place),
                );
                let name = format!("{}.{place}", route.name.rsplit_once('/').unwrap().1);
                if best.as_ref().is_none_or(|(former, _)| rank > *former) {
                    best = Some((rank, name));
                }
            }
        }
    }
    best.map(|(_, name)| name)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_router_answers_as_the_specification(routes in attached(), all in vec(asked(), 1..20)) {
        let borrowed: Vec<(&[&str], wire::Route)> =
            routes.iter().map(|(names, route)| (names.as_slice(), route.clone())).collect();
        let router = router(&borrowed);
        for asked in all {
            let query = asked.query.map(|query| format!("?{query}")).unwrap_or_default();
            let line = format!("{} {}{}{query}", asked.method, asked.host, asked.path);
            let headers: Vec<String> =
                asked.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
            let answer = ask(&router, &line, &headers);
            prop_assert_eq!(answer.ok(), reference(&routes, &asked), "{} {:?}", line, headers);
        }
    }
}
