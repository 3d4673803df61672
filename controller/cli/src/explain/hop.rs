//! What is said of one place that decides.

use std::net::{IpAddr, SocketAddr};

use karst_identity::SpiffeId;
use serde::Serialize;

use super::parties::identity;

/// One place that decides: a node agent, a waypoint or a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// `client_agent`, `node_agent`, `waypoint` or `gateway`.
    pub by: &'static str,
    /// The pod that the agent is for, the Gateway, or what the client asked for.
    pub at: String,
    /// Who is seen there.
    #[serde(serialize_with = "identity")]
    pub identity: Option<SpiffeId>,
    /// The address that the client has there.
    pub client: String,
    /// What is asked for there.
    pub destination: Option<SocketAddr>,
    /// Which mTLS mode holds.
    pub mtls: Option<Mtls>,
    /// The request, where one is looked at.
    pub request: Option<String>,
    /// Each policy that applies.
    pub policies: Vec<PolicyView>,
    /// Whether it may pass.
    pub allowed: bool,
    /// Stable label of a refusal.
    pub reason: Option<&'static str>,
    /// What decided, in words.
    pub because: String,
    /// Policy that decided: `namespace/name`, or `implicit_deny`.
    pub policy: Option<String>,
    /// Its rule.
    pub rule: Option<u32>,
    /// What policies on trial would have done.
    pub dry_run: Vec<String>,
    /// What else there is to know.
    pub notes: Vec<String>,
    /// Other pods for which the same is decided.
    pub alike: Vec<String>,
    /// The provider of CUSTOM policies that would be asked first.
    pub asks: Option<Asks>,
    /// `ISSUER/SUBJECT` of the request's token, where one was checked and counts.
    pub request_principal: Option<String>,
}

/// A provider that would be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Asks {
    /// Its name in the mesh's configuration.
    pub provider: String,
    /// CUSTOM policies that match.
    pub policies: Vec<String>,
    /// It lets requests pass that it gave no answer about.
    pub fail_open: bool,
    /// What it answers: always `unknown`, as nobody is asked here.
    pub answer: &'static str,
}

/// Which mTLS mode holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mtls {
    /// `STRICT` or `PERMISSIVE`.
    pub mode: &'static str,
    /// The PeerAuthentication that says so.
    pub by: Option<String>,
    /// It says so for this port.
    pub by_port: bool,
}

/// A policy that applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// `namespace/name`.
    pub name: String,
    /// The kind of object that it is made of.
    pub kind: &'static str,
    /// `ALLOW`, `DENY`, `CUSTOM`, `AUDIT`; none: it came in a form that cannot be used.
    pub action: Option<String>,
    /// `mesh`, `namespace`, `selector` or `targetRefs`.
    pub scope: &'static str,
    /// It decides nothing.
    pub dry_run: bool,
    /// Whether a rule matches.
    pub matches: bool,
    /// How it stands with each rule.
    pub rules: Vec<RuleView>,
    /// What of the policy is not done as written.
    pub narrowed: Option<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleView {
    /// Its place.
    pub index: u32,
    /// Whether it matches.
    pub matches: bool,
    /// Why not: what does not hold, one for each alternative.
    pub unmet: Vec<String>,
}

impl Asks {
    /// That it would be asked.
    pub fn sentence(&self) -> String {
        let open = match self.fail_open {
            true => "; without an answer it passes (failOpen)",
            false => "",
        };
        format!(
            "provider {} would be asked first, for {}: its answer is not known here, and what follows holds only if it \
             allows{open}",
            self.provider,
            self.policies.join(", ")
        )
    }
}

impl Hop {
    /// A place that lets nothing pass yet.
    pub fn new(by: &'static str, at: String, identity: Option<SpiffeId>, client: IpAddr) -> Self {
        Self {
            by,
            at,
            identity,
            client: client.to_string(),
            destination: None,
            mtls: None,
            request: None,
            policies: Vec::new(),
            allowed: false,
            reason: None,
            because: String::new(),
            policy: None,
            rule: None,
            dry_run: Vec::new(),
            notes: Vec::new(),
            alike: Vec::new(),
            asks: None,
            request_principal: None,
        }
    }

    /// Lets it pass, and says which of its policies does.
    pub fn pass_by_policies(&mut self) {
        self.allowed = true;
        let mut allowing = self
            .policies
            .iter()
            .filter(|one| one.matches && !one.dry_run && one.action.as_deref() == Some("ALLOW"));
        let Some(policy) = allowing.next() else {
            self.because = "no ALLOW policy applies, and no DENY policy matches".to_owned();
            return;
        };
        let rule = policy.rules.iter().find(|rule| rule.matches);
        let rule = rule.map(|rule| rule.index);
        let place = rule.unwrap_or_default();
        self.because = format!("{} rules[{place}] allows it", policy.name);
        (self.policy, self.rule) = (Some(policy.name.clone()), rule);
    }

    /// Whether two pods' hops say the same.
    pub fn is_like(&self, other: &Self) -> bool {
        let essence = |hop: &Self| Self {
            at: String::new(),
            destination: hop
                .destination
                .map(|one| SocketAddr::new([0, 0, 0, 0].into(), one.port())),
            alike: Vec::new(),
            ..hop.clone()
        };
        essence(self) == essence(other)
    }
}

/// Values of a condition, for a sentence.
pub fn values(values: &[String]) -> String {
    /// Values that are shown.
    const SHOWN: usize = 6;
    let mut text = values
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if values.len() > SHOWN {
        text.push_str(&format!(" and {} more", values.len() - SHOWN));
    }
    text
}
