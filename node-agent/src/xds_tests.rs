use std::sync::Arc;

use karst_api::node::{DataplaneMode, NodePod as NodePodProto, WaypointRequirement};
use karst_api::security::{Action, Authorization, Scope};
use karst_api::workload::{Address, Workload, address};
use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE};
use karst_bpf_common::policy::Attributes;
use karst_client::{Resource, ResourceHandler};
use prost::Message;
use tokio::sync::mpsc;

use super::Handler;
use crate::enrol::Mode;
use crate::enrol::task::{Event, WorkerSet};
use crate::reason::Reason;
use crate::state::MeshState;
use crate::state::store::Store;
use crate::state::workload::Locality;
use crate::worker::Command;

struct Fixture {
    handler: Handler,
    state: Arc<MeshState>,
    events: mpsc::UnboundedReceiver<Event>,
    commands: mpsc::UnboundedReceiver<Command>,
}

fn fixture() -> Fixture {
    let state = Arc::new(MeshState::default());
    let (enrolment, events) = mpsc::unbounded_channel();
    let (worker, commands) = mpsc::unbounded_channel();
    let store = Store::new(Arc::clone(&state), Locality::default());
    let domain = "cluster.local".to_owned();
    let names = (String::new(), domain, "root".to_owned());
    let handler = Handler::new(
        (store, Arc::clone(&state)),
        names,
        enrolment,
        WorkerSet::new(vec![worker]),
    );
    Fixture {
        handler,
        state,
        events,
        commands,
    }
}

fn resource(name: &str, type_url: &str, message: &impl Message) -> Resource {
    Resource::pack(
        name.to_owned(),
        Vec::new(),
        "1".to_owned(),
        type_url,
        message.encode_to_vec(),
    )
}

fn described(uid: &str, ip: [u8; 4]) -> Workload {
    Workload {
        uid: uid.to_owned(),
        namespace: "ns".to_owned(),
        service_account: "sa".to_owned(),
        addresses: vec![ip.to_vec()],
        ..Workload::default()
    }
}

fn workload(uid: &str, ip: [u8; 4]) -> Resource {
    address_resource(described(uid, ip))
}

fn address_resource(workload: Workload) -> Resource {
    let uid = workload.uid.clone();
    resource(
        &uid,
        ADDRESS_TYPE,
        &Address {
            r#type: Some(address::Type::Workload(workload)),
        },
    )
}

#[test]
fn good_resources_apply_beside_bad_ones() {
    let mut f = fixture();
    let broken = Resource {
        resource: None,
        ..workload("b", [10, 0, 0, 2])
    };
    let misnamed = Resource {
        name: "other".to_owned(),
        ..workload("c", [10, 0, 0, 3])
    };
    let updates = vec![workload("a", [10, 0, 0, 1]), broken, misnamed];
    let errors = f.handler.apply(ADDRESS_TYPE, updates, Vec::new());
    let names: Vec<_> = errors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b", "other"]);
    assert!(f.state.workload("a").is_some());
    assert!(f.state.workload("c").is_none());
}

#[test]
fn removal_tells_the_workers_to_drop_tunnels() {
    let mut f = fixture();
    f.handler
        .apply(ADDRESS_TYPE, vec![workload("a", [10, 0, 0, 1])], Vec::new());
    assert!(matches!(f.commands.try_recv(), Ok(Command::Recheck)));
    assert!(f.commands.try_recv().is_err());
    f.handler
        .apply(ADDRESS_TYPE, Vec::new(), vec!["a".to_owned()]);
    assert!(matches!(f.commands.try_recv(), Ok(Command::Retain)));
    assert!(f.state.workload("a").is_none());
}

/// An ALLOW policy of the namespace that allows nothing.
fn allow_nothing() -> Authorization {
    Authorization {
        name: "p".to_owned(),
        namespace: "ns".to_owned(),
        scope: Scope::Namespace.into(),
        ..Authorization::default()
    }
}

/// Whether the workload `a` takes connections, by what has been published.
fn decided(f: &Fixture) -> Result<(), Reason> {
    let workload = f.state.workload("a").expect("workload");
    let ip = karst_bpf_common::Ip::UNSPECIFIED;
    let connection = Attributes {
        source: None,
        source_ip: ip,
        destination_ip: ip,
        destination_port: 80,
    };
    let policies = f.state.policies.effective(&workload);
    policies.decide(&connection).map_err(|denial| denial.reason)
}

impl Fixture {
    /// Applies a policy as the resource `ns/p`; what is wrong with it, and whether `a` takes
    /// connections then.
    fn policy(&mut self, policy: &Authorization) -> (Vec<String>, Result<(), Reason>) {
        let resource = resource("ns/p", AUTHORIZATION_TYPE, policy);
        let rejected = self
            .handler
            .apply(AUTHORIZATION_TYPE, vec![resource], Vec::new());
        assert!(matches!(self.commands.try_recv(), Ok(Command::Recheck)));
        let problems = rejected.into_iter().map(|(name, problem)| {
            assert_eq!(name, "ns/p");
            problem
        });
        (problems.collect(), decided(self))
    }
}

#[test]
fn policies_refuse_until_removed() {
    let mut f = fixture();
    f.handler
        .apply(ADDRESS_TYPE, vec![workload("a", [10, 0, 0, 1])], Vec::new());
    assert_eq!(decided(&f), Ok(()));
    let denied = (Vec::new(), Err(Reason::PolicyDenied));
    assert_eq!(f.policy(&allow_nothing()), denied);
    // Turned into a dry run: no longer enforced.
    let watches = Authorization {
        dry_run: true,
        ..allow_nothing()
    };
    assert_eq!(f.policy(&watches), (Vec::new(), Ok(())));
    assert_eq!(f.policy(&allow_nothing()), denied);
    f.handler
        .apply(AUTHORIZATION_TYPE, Vec::new(), vec!["ns/p".to_owned()]);
    assert_eq!(decided(&f), Ok(()));
    assert!(matches!(f.commands.try_recv(), Ok(Command::Recheck)));
}

#[test]
fn a_bad_policy_leaves_the_last_good_one_or_refuses() {
    let mut f = fixture();
    f.handler
        .apply(ADDRESS_TYPE, vec![workload("a", [10, 0, 0, 1])], Vec::new());
    let bad_action = Authorization {
        action: 77,
        ..allow_nothing()
    };
    let (problems, decision) = f.policy(&bad_action);
    assert!(
        problems.len() == 1 && problems[0].contains("action"),
        "{problems:?}"
    );
    assert_eq!(decision, Err(Reason::PolicyUnusable));
    // Better now.
    let denies_nobody = Authorization {
        action: Action::Deny.into(),
        ..allow_nothing()
    };
    assert_eq!(f.policy(&denies_nobody), (Vec::new(), Ok(())));
    let (problems, decision) = f.policy(&bad_action);
    assert_eq!((problems.len(), decision), (1, Ok(())), "the last good one");
    let bad_scope = Authorization {
        scope: 77,
        ..allow_nothing()
    };
    let (problems, decision) = f.policy(&bad_scope);
    assert!(problems[0].contains("scope"), "{problems:?}");
    assert_eq!(decision, Ok(()), "the last good one");
}

#[test]
fn a_policy_of_unknown_scope_or_form_refuses_its_namespace() {
    for bytes in [
        Authorization {
            scope: 77,
            ..allow_nothing()
        }
        .encode_to_vec(),
        b"no protobuf".to_vec(),
    ] {
        let policy = |name: &str| {
            let (name, version) = (name.to_owned(), "1".to_owned());
            Resource::pack(name, Vec::new(), version, AUTHORIZATION_TYPE, bytes.clone())
        };
        for (name, decision) in [
            ("elsewhere/p", Ok(())),
            ("ns/p", Err(Reason::PolicyUnusable)),
            // By the one of the root namespace the whole mesh may have been meant.
            ("root/p", Err(Reason::PolicyUnusable)),
        ] {
            let mut f = fixture();
            f.handler
                .apply(ADDRESS_TYPE, vec![workload("a", [10, 0, 0, 1])], Vec::new());
            let rejected = f
                .handler
                .apply(AUTHORIZATION_TYPE, vec![policy(name)], Vec::new());
            assert_eq!(rejected.len(), 1, "{name}");
            assert_eq!(decided(&f), decision, "{name}");
        }
    }
}

#[test]
fn a_workload_with_other_policies_has_its_connections_looked_at() {
    let mut f = fixture();
    let listing = |policies: &[&str]| {
        let workload = Workload {
            authorization_policies: policies.iter().map(|p| (*p).to_owned()).collect(),
            ..described("a", [10, 0, 0, 1])
        };
        address_resource(workload)
    };
    // What it lives with may be from before it was gone for a while.
    f.handler
        .apply(ADDRESS_TYPE, vec![listing(&[])], Vec::new());
    assert!(matches!(f.commands.try_recv(), Ok(Command::Recheck)));
    f.handler
        .apply(ADDRESS_TYPE, vec![listing(&[])], Vec::new());
    assert!(f.commands.try_recv().is_err(), "nothing has changed");
    f.handler
        .apply(ADDRESS_TYPE, vec![listing(&["ns/p"])], Vec::new());
    assert!(matches!(f.commands.try_recv(), Ok(Command::Recheck)));
    assert_eq!(decided(&f), Err(Reason::PolicyUnknown));
}

#[test]
fn node_pods_reach_the_enrolment() {
    let mut f = fixture();
    let pod = NodePodProto {
        uid: "uid-1".to_owned(),
        pod_uid: "uid-1".to_owned(),
        namespace: "ns".to_owned(),
        name: "p".to_owned(),
        service_account: "sa".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        dataplane_mode: DataplaneMode::Ambient.into(),
        waypoints: vec![WaypointRequirement {
            required: true,
            ..WaypointRequirement::default()
        }],
        ..NodePodProto::default()
    };
    let foreign = NodePodProto {
        trust_domain: "elsewhere".to_owned(),
        ..pod.clone()
    };
    let updates = vec![
        resource("uid-1", NODE_POD_TYPE, &pod),
        resource("uid-2", NODE_POD_TYPE, &foreign),
    ];
    let errors = f
        .handler
        .apply(NODE_POD_TYPE, updates, vec!["uid-3".to_owned()]);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].1.starts_with("trust_domain"), "{errors:?}");
    let Ok(Event::NodePods(changes)) = f.events.try_recv() else {
        panic!("no event")
    };
    assert_eq!(changes.len(), 2);
    let known = changes[0].1.as_ref().expect("pod");
    assert_eq!(
        (known.mode, known.identity.as_str()),
        (Mode::Ambient, "spiffe://cluster.local/ns/ns/sa/sa")
    );
    assert!(known.waypoints.check(80, None).is_err());
    assert!(changes[1].1.is_none());
}

#[test]
fn unknown_types_are_refused() {
    let mut f = fixture();
    let errors = f.handler.apply(
        "type.googleapis.com/other",
        vec![workload("a", [1, 1, 1, 1])],
        Vec::new(),
    );
    assert_eq!(errors.len(), 1);
}
