//! An explanation for people.

use std::fmt::Write as _;

use super::Explanation;
use super::hop::{Hop, PolicyView};
use crate::style::{BAD, DIM, GOOD, WARN, paint};

/// Rules of a policy that are shown.
const MAX_RULES: usize = 10;

/// Pods of which the same is said that are named.
const MAX_PODS: usize = 5;

/// The whole text.
pub fn text(explanation: &Explanation) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, explanation);
    out
}

fn write(out: &mut String, explanation: &Explanation) -> std::fmt::Result {
    let source = &explanation.source;
    let who = source
        .identity
        .as_ref()
        .map_or("no identity", |id| id.principal());
    writeln!(
        out,
        "Client       {} at {}: {who}",
        source.asked, source.address
    )?;
    writeln!(out, "             {}", paint(DIM, &source.because))?;
    writeln!(out, "Destination  {}", explanation.destination)?;
    for (index, way) in explanation.way.iter().enumerate() {
        writeln!(
            out,
            "{} {way}",
            if index == 0 {
                "Way         "
            } else {
                "            "
            }
        )?;
    }
    for hop in &explanation.hops {
        writeln!(out)?;
        write_hop(out, hop)?;
    }
    let style = if explanation.allowed { GOOD } else { BAD };
    writeln!(out, "\n{}", paint(style, &explanation.verdict))
}

fn write_hop(out: &mut String, hop: &Hop) -> std::fmt::Result {
    let place = match hop.by {
        "node_agent" => format!("Node agent of {}", hop.at),
        "waypoint" => format!("Waypoint {}", hop.at),
        "gateway" => format!("Gateway {}", hop.at),
        _ => format!("Client's side: {}", hop.at),
    };
    let destination = hop
        .destination
        .map(|to| format!(", to {to}"))
        .unwrap_or_default();
    writeln!(out, "{place}{destination}")?;
    if !hop.alike.is_empty() {
        let named = hop
            .alike
            .iter()
            .take(MAX_PODS)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let more = hop.alike.len().saturating_sub(MAX_PODS);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        writeln!(out, "  the same for {named}{more}")?;
    }
    let who = hop
        .identity
        .as_ref()
        .map_or("no identity", |id| id.principal());
    writeln!(out, "  sees {who}, address {}", hop.client)?;
    if let Some(request) = &hop.request {
        writeln!(out, "  request {request}")?;
    }
    if let Some(mtls) = &hop.mtls {
        let by = mtls
            .by
            .as_ref()
            .map_or("no PeerAuthentication says otherwise".to_owned(), |by| {
                let port = if mtls.by_port { ", for this port" } else { "" };
                format!("PeerAuthentication {by}{port}")
            });
        writeln!(out, "  mTLS mode {} ({by})", mtls.mode)?;
    }
    for note in &hop.notes {
        writeln!(out, "  {note}")?;
    }
    for policy in &hop.policies {
        write_policy(out, policy)?;
    }
    for line in &hop.dry_run {
        writeln!(out, "  {} {line}", paint(WARN, "dry run"))?;
    }
    let (style, word) = if hop.allowed {
        (GOOD, "passes")
    } else {
        (BAD, "refused")
    };
    writeln!(out, "  {}: {}", paint(style, word), hop.because)
}

fn write_policy(out: &mut String, policy: &PolicyView) -> std::fmt::Result {
    let action = policy.action.as_deref().unwrap_or("unusable");
    let dry_run = if policy.dry_run { ", dry run" } else { "" };
    let answer = if policy.matches {
        "matches"
    } else {
        "does not match"
    };
    writeln!(
        out,
        "  {} {} ({action}, {}{dry_run}): {answer}",
        policy.kind, policy.name, policy.scope
    )?;
    if policy.rules.is_empty() && policy.action.is_some() {
        writeln!(out, "    it has no rules, and matches nothing")?;
    }
    for rule in policy.rules.iter().take(MAX_RULES) {
        if rule.matches {
            writeln!(out, "    rules[{}] matches", rule.index)?;
        } else {
            writeln!(
                out,
                "    rules[{}] does not: {}",
                rule.index,
                rule.unmet.join("; or ")
            )?;
        }
    }
    if policy.rules.len() > MAX_RULES {
        let more = policy.rules.len() - MAX_RULES;
        writeln!(out, "    and {more} more rules (-j shows all)")?;
    }
    if let Some(narrowed) = &policy.narrowed {
        writeln!(out, "    {} {narrowed}", paint(WARN, "not as written:"))?;
    }
    Ok(())
}
