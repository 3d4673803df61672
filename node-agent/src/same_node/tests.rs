//! The table against the matcher, and the table on its way from one state to another.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use karst_bpf_common::Ip;
use karst_bpf_common::layout::{ANY_PORT, VERDICT_ALLOW, VERDICT_ASK, VerdictKey};
use karst_bpf_common::policy::model::{
    self, Action, Clause, IpBlock, Match, Rule, ServiceAccount, StringMatch,
};
use karst_datapath::netns::Netns;
use karst_datapath::{DatapathError, LocalEndpoints};
use karst_identity::SpiffeId;

use super::table::{Services, Tables, Verdicts};
use super::verdicts::{Decision, LocalPod, all, decide};
use super::{services, verdicts};
use crate::egress::Egress;
use crate::pod::{Pod, PodSpec};
use crate::state::MeshState;
use crate::state::policy::{Policies, Policy, PolicyScope};
use crate::state::service::{HealthPolicy, LoadBalancingMode, ServiceSpec};
use crate::state::store::{Change, Store};
use crate::state::workload::{Locality, Protocol, ServiceMembership, Via, Workload, next_revision};
use crate::waypoints::{Others, Requirement, Waypoints};

/// Meshes that are drawn; `KARST_VERDICT_MESHES` draws more.
const MESHES: u64 = 1_500;

/// Ports of which policies speak, and their neighbours.
const PORTS: [u16; 8] = [1, 2, 79, 80, 81, 8080, 15_008, 65_535];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("small")
    }

    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    fn sometimes<T>(&mut self, odds: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        match self.one_in(odds) {
            true => (0..=self.below(3)).map(|_| make(self)).collect(),
            false => Vec::new(),
        }
    }

    fn text(&mut self, texts: &[&str]) -> StringMatch {
        let text = texts[self.below(texts.len())].to_owned();
        match self.below(4) {
            0 => StringMatch::Presence,
            1 => StringMatch::Prefix(text[..text.len() / 2].to_owned()),
            _ => StringMatch::Exact(text),
        }
    }

    fn block(&mut self) -> IpBlock {
        let ip = Ip::from(address(self.below(6), self.one_in(3)));
        IpBlock {
            ip,
            length: [96, 120, 126, 127, 128][self.below(5)],
        }
    }

    fn port(&mut self) -> u16 {
        PORTS[self.below(PORTS.len())]
    }

    fn condition(&mut self) -> Match {
        const NAMESPACES: [&str; 3] = ["ns0", "ns1", "other"];
        const PRINCIPALS: [&str; 3] = [
            "cluster.local/ns/ns0/sa/sa0",
            "cluster.local/ns/ns1/sa/sa1",
            "cluster.local/ns/ns1/sa/sa3",
        ];
        Match {
            namespaces: self.sometimes(5, |r| r.text(&NAMESPACES)),
            not_namespaces: self.sometimes(8, |r| r.text(&NAMESPACES)),
            principals: self.sometimes(5, |r| r.text(&PRINCIPALS)),
            not_principals: self.sometimes(8, |r| r.text(&PRINCIPALS)),
            source_ips: self.sometimes(6, Self::block),
            not_source_ips: self.sometimes(8, Self::block),
            destination_ips: self.sometimes(6, Self::block),
            not_destination_ips: self.sometimes(8, Self::block),
            destination_ports: self.sometimes(2, Self::port),
            not_destination_ports: self.sometimes(4, Self::port),
            service_accounts: self.sometimes(8, |r| ServiceAccount {
                namespace: format!("ns{}", r.below(2)),
                account: format!("sa{}", r.below(4)),
            }),
            not_service_accounts: Vec::new(),
        }
    }

    fn policy(&mut self, name: &str) -> Policy {
        let rules = (0..self.below(3)).map(|_| Rule {
            clauses: (0..self.below(3))
                .map(|_| Clause {
                    matches: (0..=self.below(2)).map(|_| self.condition()).collect(),
                })
                .collect(),
        });
        let rules = rules.collect();
        Policy {
            name: Arc::from(name),
            scope: match self.below(3) {
                0 => PolicyScope::Global,
                1 => PolicyScope::Namespace(Arc::from(format!("ns{}", self.below(2)))),
                _ => PolicyScope::Selector,
            },
            dry_run: self.one_in(6),
            rules: (!self.one_in(30)).then(|| model::Policy {
                name: name.to_owned(),
                action: match self.one_in(2) {
                    true => Action::Allow,
                    false => Action::Deny,
                },
                rules,
            }),
        }
    }
}

fn address(number: usize, v6: bool) -> IpAddr {
    let last = u8::try_from(number + 1).expect("small");
    match v6 {
        true => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
        false => IpAddr::from([10, 0, 0, last]),
    }
}

fn workload(number: usize) -> Workload {
    Workload {
        revision: next_revision(),
        uid: Arc::from(format!("w{number}")),
        namespace: Arc::from(format!("ns{}", number % 2)),
        addresses: vec![address(number, false), address(number, true)],
        protocol: Protocol::Hbone,
        ..Workload::default()
    }
}

fn pod(number: usize, workload: Workload, policies: &Policies) -> LocalPod {
    let account = format!("sa{number}");
    let spec = PodSpec {
        uid: Arc::from(format!("u{number}")),
        namespace: Arc::clone(&workload.namespace),
        name: Arc::from(format!("p{number}")),
        workload_uid: Arc::clone(&workload.uid),
        identity: SpiffeId::new("cluster.local", &workload.namespace, &account).expect("id"),
        addresses: workload.addresses.clone(),
        waypoints: Arc::default(),
        egress: Egress::default(),
    };
    let netns = Netns::open(Path::new("/proc/self/ns/net")).expect("netns");
    LocalPod {
        cookie: 100 + number as u64,
        guarded: true,
        plain: true,
        pod: Arc::new(Pod::new(spec, netns)),
        waypoints: Arc::default(),
        policies: policies.effective(&workload),
        workload: Arc::new(workload),
    }
}

fn drawn(random: &mut Random) -> Vec<LocalPod> {
    let names = ["ns0/a", "ns1/b", "root/c", "ns0/d"];
    let table = names.iter().take(random.below(5));
    let table = table.map(|name| (Arc::from(*name), Arc::new(random.policy(name))));
    let table = table.collect();
    let policies = Policies::default();
    policies.publish(&table);
    let count = 2 + random.below(3);
    let mut pods = Vec::new();
    for number in 0..count {
        let mut workload = workload(number);
        let listed = |random: &mut Random| Arc::from(names[random.below(names.len())]);
        workload.authorization_policies = random.sometimes(3, listed);
        if random.one_in(5) {
            workload.addresses.truncate(1);
        }
        let mut pod = pod(number, workload, &policies);
        pod.guarded = !random.one_in(10);
        pod.plain = !random.one_in(10);
        if random.one_in(6) {
            let requirement = Requirement {
                ports: random.sometimes(2, Random::port),
                identities: Vec::new(),
                others: Others::Refused,
            };
            pod.waypoints = Arc::new(Waypoints(vec![requirement]));
        }
        pods.push(pod);
    }
    pods
}

/// What the matcher says: whether connections of every family of the pair go past the agent.
fn expected(source: &LocalPod, destination: &LocalPod, port: u16) -> bool {
    let mut pairs = Vec::new();
    for from in &source.pod.addresses {
        for to in &destination.pod.addresses {
            if from.is_ipv4() == to.is_ipv4() {
                pairs.push((*from, *to));
            }
        }
    }
    let past = |ends| matches!(decide(source, destination, ends, port), Decision::Past);
    let may = source.plain && destination.plain && destination.guarded;
    may && !pairs.is_empty() && pairs.into_iter().all(past)
}

/// The kernel's tables. `watch` is called after every step.
struct Kernel<F: Fn(&BTreeMap<VerdictKey, u32>)> {
    verdicts: RefCell<BTreeMap<VerdictKey, u32>>,
    services: RefCell<HashMap<SocketAddr, (u64, LocalEndpoints)>>,
    room: Cell<usize>,
    watch: F,
}

impl<F: Fn(&BTreeMap<VerdictKey, u32>)> Kernel<F> {
    fn new(room: usize, watch: F) -> Self {
        Self {
            verdicts: RefCell::default(),
            services: RefCell::default(),
            room: Cell::new(room),
            watch,
        }
    }
}

impl<F: Fn(&BTreeMap<VerdictKey, u32>)> Tables for Kernel<F> {
    fn set_verdict(&self, key: &VerdictKey, verdict: u32) -> Result<bool, DatapathError> {
        let mut verdicts = self.verdicts.borrow_mut();
        let fits = verdicts.contains_key(key) || verdicts.len() < self.room.get();
        if fits {
            verdicts.insert(*key, verdict);
        }
        (self.watch)(&verdicts);
        Ok(fits)
    }

    fn remove_verdict(&self, key: &VerdictKey) -> Result<(), DatapathError> {
        let mut verdicts = self.verdicts.borrow_mut();
        verdicts.remove(key);
        (self.watch)(&verdicts);
        Ok(())
    }

    fn set_service(
        &self,
        address: SocketAddr,
        set: u64,
        endpoints: &LocalEndpoints,
    ) -> Result<bool, DatapathError> {
        let mut services = self.services.borrow_mut();
        assert!(
            services.values().all(|(used, _)| *used != set),
            "used again"
        );
        if !services.contains_key(&address) && services.len() >= self.room.get() {
            return Ok(false);
        }
        services.insert(address, (set, endpoints.clone()));
        Ok(true)
    }

    fn remove_service(&self, address: SocketAddr) -> Result<(), DatapathError> {
        self.services.borrow_mut().remove(&address);
        Ok(())
    }
}

/// As the programs look a verdict up.
fn found(table: &BTreeMap<VerdictKey, u32>, pair: (u64, u64), port: u16) -> bool {
    let key = |port| VerdictKey {
        source: pair.0,
        destination: pair.1,
        port,
        padding: 0,
    };
    let exact = table.get(&key(port.into()));
    exact.or_else(|| table.get(&key(ANY_PORT))) == Some(&VERDICT_ALLOW)
}

#[test]
fn the_table_says_what_the_matcher_says() {
    let meshes = std::env::var("KARST_VERDICT_MESHES");
    let meshes = meshes.map_or(MESHES, |meshes| meshes.parse().expect("a number"));
    let (mut past, mut agent) = (0u64, 0u64);
    for seed in 0..meshes {
        let mut random = Random(seed);
        let pods = drawn(&mut random);
        let table = all(&pods);
        for source in &pods {
            for destination in &pods {
                if source.cookie == destination.cookie {
                    continue;
                }
                let ports = PORTS.into_iter().chain([3, 9000, 15_001, 15_006]);
                for port in ports.filter(|port| !crate::pod::is_own_port(*port)) {
                    let pair = (source.cookie, destination.cookie);
                    let expected = expected(source, destination, port);
                    assert_eq!(
                        found(&table, pair, port),
                        expected,
                        "mesh {seed}, {pair:?}, port {port}"
                    );
                    *(if expected { &mut past } else { &mut agent }) += 1;
                }
            }
        }
    }
    // Otherwise the test would say little.
    assert!(
        past > agent / 8 && agent > past / 8,
        "{past} past, {agent} not"
    );
}

#[test]
fn no_step_between_two_tables_allows_what_neither_does() {
    let mut checked = 0u64;
    for seed in 0..MESHES {
        let mut random = Random(seed ^ 0x5eed);
        let (before, after) = (drawn(&mut random), drawn(&mut random));
        let (from, to) = (all(&before), all(&after));
        let room = match random.one_in(3) {
            true => random.below(from.len().max(to.len()) + 1),
            false => usize::MAX,
        };
        let steps = Cell::new(0u64);
        let check = |now: &BTreeMap<VerdictKey, u32>| {
            for source in 100..105 {
                for destination in 100..105 {
                    for port in PORTS.into_iter().chain([3]) {
                        let pair = (source, destination);
                        let allowed = found(now, pair, port);
                        let either = found(&from, pair, port) || found(&to, pair, port);
                        assert!(!allowed || either, "mesh {seed}, {pair:?}, port {port}");
                    }
                }
            }
            steps.set(steps.get() + 1);
        };
        let kernel = Kernel::new(room, check);
        let mut table = Verdicts::default();
        table.become_(&from, &kernel).expect("never fails");
        let changed = table.become_(&to, &kernel).expect("never fails");
        let now = kernel.verdicts.borrow();
        assert_eq!(table.count(), now.len());
        for (key, verdict) in &to {
            let pair = (key.source, key.destination);
            let port = u16::try_from(key.port).expect("a port");
            let is = table.find(pair.0, pair.1, port);
            assert_eq!(found(&now, pair, port), is == VERDICT_ALLOW, "{key:?}");
            if changed.left_out.contains(&pair) {
                // Nothing less than the wanted exceptions may be missing of what is there.
                assert!(is == VERDICT_ASK || *verdict == VERDICT_ALLOW, "{key:?}");
            } else {
                assert_eq!(is, *verdict, "mesh {seed}, {key:?}");
            }
        }
        for (key, verdict) in now.iter() {
            let kept = to.get(key) == Some(verdict);
            assert!(kept, "mesh {seed}: {key:?} stays and is not wanted");
        }
        checked += steps.get();
    }
    assert!(checked > 1_000, "{checked} steps");
}

#[test]
fn a_pod_whose_policies_name_too_many_ports_is_reached_through_the_agent() {
    let policy = |ports: std::ops::Range<u16>| {
        let deny = Match {
            destination_ports: ports.collect(),
            ..Match::default()
        };
        let rule = Rule {
            clauses: vec![Clause {
                matches: vec![deny],
            }],
        };
        let policy = Policy {
            name: Arc::from("ns0/p"),
            scope: PolicyScope::Global,
            dry_run: false,
            rules: Some(model::Policy {
                name: "ns0/p".to_owned(),
                action: Action::Deny,
                rules: vec![rule],
            }),
        };
        let policies = Policies::default();
        policies.publish(&[(Arc::from("ns0/p"), Arc::new(policy))].into());
        let pods: Vec<_> = (0..2).map(|n| pod(n, workload(n), &policies)).collect();
        all(&pods)
    };
    assert_eq!(
        policy(100..164).len(),
        2 * 65,
        "all others, and 64 exceptions"
    );
    assert!(policy(100..165).is_empty());
}

#[test]
fn what_decides_is_the_address_of_the_connection_where_it_lives() {
    let deny = Match {
        source_ips: vec![IpBlock {
            ip: Ip::from(address(0, true)),
            length: 128,
        }],
        ..Match::default()
    };
    let rules = vec![Rule {
        clauses: vec![Clause {
            matches: vec![deny],
        }],
    }];
    let policy = Policy {
        name: Arc::from("ns0/p"),
        scope: PolicyScope::Global,
        dry_run: false,
        rules: Some(model::Policy {
            name: "ns0/p".to_owned(),
            action: Action::Deny,
            rules,
        }),
    };
    let policies = Policies::default();
    policies.publish(&[(Arc::from("ns0/p"), Arc::new(policy))].into());
    let pods: Vec<_> = (0..2).map(|n| pod(n, workload(n), &policies)).collect();
    // One family is refused, so that the agent looks at both; what lives over the other one goes on.
    assert!(!found(&all(&pods), (100, 101), 80));
    assert!(found(&all(&pods), (101, 100), 80));
    let of = |v6| decide(&pods[0], &pods[1], (address(0, v6), address(1, v6)), 80);
    assert!(matches!(of(false), Decision::Past));
    assert!(matches!(of(true), Decision::Refused(_)));
}

fn spec(via: Via, mode: LoadBalancingMode) -> ServiceSpec {
    ServiceSpec {
        key: Arc::from("ns0/svc"),
        name: Arc::from("svc"),
        namespace: Arc::from("ns0"),
        hostname: Arc::from("svc"),
        vips: vec![
            "10.96.0.1".parse().expect("ip"),
            "fd96::1".parse().expect("ip"),
        ],
        ports: vec![(80, 0), (81, 0)],
        via,
        routing_preference: Vec::new(),
        mode,
        health_policy: HealthPolicy::OnlyHealthy,
        outside: None,
    }
}

/// A service with endpoints 0 and 1 here and 2 elsewhere; port 81 only elsewhere.
fn with_service(spec: ServiceSpec) -> BTreeMap<SocketAddr, LocalEndpoints> {
    let state = Arc::new(MeshState::default());
    let mut store = Store::new(Arc::clone(&state), Locality::default());
    let mut changes = vec![Change::Service(spec)];
    for number in 0..3 {
        let mut workload = workload(number);
        let ports = match number {
            2 => vec![(80, 8080), (81, 8081)],
            _ => vec![(80, 8080)],
        };
        workload.services = Arc::from([ServiceMembership {
            service: Arc::from("ns0/svc"),
            ports,
        }]);
        changes.push(Change::Workload(workload));
    }
    store.apply(changes);
    let pods: Vec<_> = (0..2)
        .map(|number| {
            let stored = state.workload(&format!("w{number}")).expect("stored");
            let mut pod = pod(number, workload(number), &state.policies);
            pod.workload = stored;
            pod
        })
        .collect();
    let found = services::with_endpoints(&pods, &state);
    services::all(&found, &pods, &state)
}

#[test]
fn a_service_has_its_endpoints_of_the_family_here_and_the_number_of_all() {
    let all = with_service(spec(Via::Direct, LoadBalancingMode::Any));
    let ends = |texts: &[&str]| LocalEndpoints {
        local: texts
            .iter()
            .map(|text| text.parse().expect("address"))
            .collect(),
        total: 3,
    };
    let expected = [
        ("10.96.0.1:80", ends(&["10.0.0.1:8080", "10.0.0.2:8080"])),
        ("[fd96::1]:80", ends(&["[fd00::1]:8080", "[fd00::2]:8080"])),
    ];
    let expected = expected.map(|(at, ends)| (at.parse().expect("address"), ends));
    assert_eq!(all, BTreeMap::from(expected));
}

#[test]
fn what_the_agent_has_to_look_at_is_no_service_of_the_kernels() {
    assert!(with_service(spec(Via::UnusableWaypoint, LoadBalancingMode::Any)).is_empty());
    assert!(with_service(spec(Via::Direct, LoadBalancingMode::Passthrough)).is_empty());
    let mut taken = spec(Via::Direct, LoadBalancingMode::Any);
    // The address of a pod is the pod's.
    taken.vips = vec![address(2, false)];
    assert!(with_service(taken).is_empty());
}

#[test]
fn services_change_without_a_number_being_used_twice() {
    let kernel = Kernel::new(2, |_| ());
    let mut services = Services::none(7);
    let at = |port: u16| SocketAddr::new(address(0, false), port);
    let of = |ports: &[u16], total: u32| -> BTreeMap<SocketAddr, LocalEndpoints> {
        let ends = |port: &u16| {
            let local = vec![at(*port)];
            (at(*port), LocalEndpoints { local, total })
        };
        ports.iter().map(ends).collect()
    };
    assert_eq!(services.become_(&of(&[1, 2], 1), &kernel).expect("held"), 0);
    assert_eq!(services.become_(&of(&[2, 3], 4), &kernel).expect("held"), 0);
    let held = kernel.services.borrow().clone();
    assert_eq!(held.len(), 2);
    assert!(
        held.values()
            .all(|(set, ends)| *set >= 7 && ends.total == 4)
    );
    assert_eq!(
        services.become_(&of(&[2, 3, 4], 4), &kernel).expect("full"),
        1
    );
    assert_eq!(services.count(), 2);
    assert_eq!(verdicts::all(&[]), BTreeMap::new());
}
