//! Who may talk to whom: Istio's AuthorizationPolicy and PeerAuthentication, by files that the controller
//! reads, enforced by the agent of the destination's node.

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::{Mesh, until};
use karst_lab_tests::scenario::port;
use karst_lab_tests::{Chat, Refusal, World, access_records};

use serde_json::Value;

static WORLD: LazyLock<Result<World>> = LazyLock::new(|| World::up("policy", Mesh::On));
/// Policies are the whole world's: one test at a time has some.
static TURN: Mutex<()> = Mutex::new(());

fn world() -> Result<&'static World> {
    WORLD.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// The same service account's namespace, another service account of it, and a pod outside of the mesh.
const CLIENT: &str = "mesh/client";
const NEAR: &str = "mesh/near";
const PLAIN: &str = "plain/client";
const SERVER: &str = "mesh/server";
const SERVER_NODE: &str = "node2";
/// A change is in force within.
const IN_FORCE: Duration = Duration::from_secs(10);

/// A kind of policy, by name, with its spec in YAML's flow style.
#[derive(Clone, Copy)]
enum Written {
    /// AuthorizationPolicy of a namespace.
    Authorization(&'static str, &'static str, &'static str),
    /// The same, as a dry run.
    DryRun(&'static str, &'static str, &'static str),
    /// PeerAuthentication of a namespace.
    Peer(&'static str, &'static str, &'static str),
}
use Written::{Authorization, DryRun, Peer};

impl Written {
    fn manifest(self, world: &World) -> Result<String> {
        let (kind, annotations, (namespace, name, spec)) = match self {
            Authorization(namespace, name, spec) => {
                ("AuthorizationPolicy", "", (namespace, name, spec))
            }
            DryRun(namespace, name, spec) => (
                "AuthorizationPolicy",
                ", annotations: {istio.io/dry-run: \"true\"}",
                (namespace, name, spec),
            ),
            Peer(namespace, name, spec) => ("PeerAuthentication", "", (namespace, name, spec)),
        };
        let mut spec = spec.to_owned();
        for (word, pod) in [
            ("CLIENT_IP", CLIENT),
            ("PLAIN_IP", PLAIN),
            ("SERVER_IP", SERVER),
        ] {
            spec = spec.replace(word, &world.v4(pod)?.to_string());
        }
        Ok(format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\n\
             metadata: {{name: {name}, namespace: {namespace}{annotations}}}\nspec: {spec}\n---\n"
        ))
    }
}

/// What must pass (`true`) and what must be refused: client, server, port.
type Expected = (&'static str, &'static str, u16, bool);

struct Case {
    name: &'static str,
    policies: &'static [Written],
    expected: &'static [Expected],
    /// What refuses, by the access log.
    by: &'static str,
}

/// The three clients to the server's echo port.
macro_rules! echo {
    ($client:literal, $near:literal, $plain:literal) => {
        &[
            (CLIENT, SERVER, port::ECHO, $client),
            (NEAR, SERVER, port::ECHO, $near),
            (PLAIN, SERVER, port::ECHO, $plain),
        ]
    };
}

const ROOT: &str = "karst-system";
const NONE_ALLOWS: &str = "implicit_deny";
const STRICT: &str = "karst-system/istio_converted_static_strict";

const CASES: &[Case] = &[
    Case {
        name: "a principal, exact",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}]}",
        )],
        expected: echo!(true, false, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a principal, by prefix",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {principals: [\"cluster.local/ns/mesh/*\"]}}]}]}",
        )],
        expected: echo!(true, true, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a principal, by suffix",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {principals: [\"*/sa/near\"]}}]}]}",
        )],
        expected: echo!(false, true, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "any principal",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {principals: [\"*\"]}}]}]}",
        )],
        expected: echo!(true, true, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a principal that it must not be",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {notPrincipals: [cluster.local/ns/mesh/sa/client]}}]}]}",
        )],
        expected: echo!(false, true, true),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a namespace",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {namespaces: [mesh]}}]}]}",
        )],
        expected: echo!(true, true, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a namespace that it must not be",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {notNamespaces: [mesh]}}]}]}",
        )],
        expected: echo!(false, false, true),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a namespace by prefix, denied",
        policies: &[Authorization(
            "mesh",
            "p",
            "{action: DENY, rules: [{from: [{source: {namespaces: [\"me*\"]}}]}]}",
        )],
        expected: echo!(false, false, true),
        by: "mesh/p",
    },
    Case {
        name: "a service account of the policy's namespace",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {serviceAccounts: [near]}}]}]}",
        )],
        expected: echo!(false, true, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a service account with its namespace, denied",
        policies: &[Authorization(
            "mesh",
            "p",
            "{action: DENY, rules: [{from: [{source: {serviceAccounts: [mesh/client]}}]}]}",
        )],
        expected: echo!(false, true, true),
        by: "mesh/p",
    },
    Case {
        name: "an address",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {ipBlocks: [CLIENT_IP]}}]}]}",
        )],
        expected: echo!(true, false, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a range of addresses, denied",
        policies: &[Authorization(
            "mesh",
            "p",
            "{action: DENY, rules: [{from: [{source: {ipBlocks: [PLAIN_IP/32]}}]}]}",
        )],
        expected: echo!(true, true, false),
        by: "mesh/p",
    },
    Case {
        name: "addresses that it must not have, denied",
        policies: &[Authorization(
            "mesh",
            "p",
            "{action: DENY, rules: [{from: [{source: {notIpBlocks: [CLIENT_IP]}}]}]}",
        )],
        expected: echo!(true, false, false),
        by: "mesh/p",
    },
    Case {
        name: "a port, denied",
        policies: &[Authorization(
            "mesh",
            "p",
            "{action: DENY, rules: [{to: [{operation: {ports: [\"7000\"]}}]}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, false),
            (PLAIN, SERVER, port::ECHO, false),
            (CLIENT, SERVER, port::BANNER, true),
            (PLAIN, SERVER, port::BANNER, true),
        ],
        by: "mesh/p",
    },
    Case {
        name: "a port, allowed",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{to: [{operation: {ports: [\"7001\"]}}]}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, false),
            (CLIENT, SERVER, port::BANNER, true),
            (PLAIN, SERVER, port::BANNER, true),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "a port that it must not be",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{to: [{operation: {notPorts: [\"7000\"]}}]}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, false),
            (CLIENT, SERVER, port::BANNER, true),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "when source.principal",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{when: [{key: source.principal, values: [cluster.local/ns/mesh/sa/near]}]}]}",
        )],
        expected: echo!(false, true, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "when source.namespace is not",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{when: [{key: source.namespace, notValues: [mesh]}]}]}",
        )],
        expected: echo!(false, false, true),
        by: NONE_ALLOWS,
    },
    Case {
        name: "when source.ip, denied",
        policies: &[Authorization(
            "mesh",
            "p",
            "{action: DENY, rules: [{when: [{key: source.ip, values: [CLIENT_IP]}]}]}",
        )],
        expected: echo!(false, true, true),
        by: "mesh/p",
    },
    Case {
        name: "when destination.port, denied",
        policies: &[Authorization(
            "mesh",
            "p",
            "{action: DENY, rules: [{when: [{key: destination.port, values: [\"7001\"]}]}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, true),
            (CLIENT, SERVER, port::BANNER, false),
            (PLAIN, SERVER, port::BANNER, false),
        ],
        by: "mesh/p",
    },
    Case {
        name: "when destination.ip, denied",
        policies: &[Authorization(
            "mesh",
            "p",
            "{action: DENY, rules: [{when: [{key: destination.ip, values: [SERVER_IP]}]}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, false),
            (PLAIN, SERVER, port::ECHO, false),
            (CLIENT, NEAR, port::ECHO, true),
        ],
        by: "mesh/p",
    },
    Case {
        name: "conditions of one rule must all hold",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}], \
             to: [{operation: {ports: [\"7000\"]}}]}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, true),
            (CLIENT, SERVER, port::BANNER, false),
            (NEAR, SERVER, port::ECHO, false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "any source of a rule is enough",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}, \
             {source: {ipBlocks: [PLAIN_IP]}}]}]}",
        )],
        expected: echo!(true, false, true),
        by: NONE_ALLOWS,
    },
    Case {
        name: "any rule is enough",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}]}, \
             {to: [{operation: {ports: [\"7001\"]}}]}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, true),
            (NEAR, SERVER, port::ECHO, false),
            (NEAR, SERVER, port::BANNER, true),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "what is denied is not allowed",
        policies: &[
            Authorization("mesh", "a", "{rules: [{}]}"),
            Authorization(
                "mesh",
                "z",
                "{action: DENY, rules: [{from: [{source: {principals: [\"*/sa/client\"]}}]}]}",
            ),
        ],
        expected: echo!(false, true, true),
        by: "mesh/z",
    },
    Case {
        name: "an empty policy allows nothing",
        policies: &[Authorization("mesh", "p", "{}")],
        expected: echo!(false, false, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a DENY policy without rules denies nothing",
        policies: &[
            Authorization("mesh", "d", "{action: DENY}"),
            Authorization(
                "mesh",
                "p",
                "{rules: [{from: [{source: {namespaces: [mesh]}}]}]}",
            ),
        ],
        expected: echo!(true, true, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a selector that selects the server",
        policies: &[Authorization(
            "mesh",
            "p",
            "{selector: {matchLabels: {app: server}}, action: DENY, rules: [{}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, false),
            (PLAIN, SERVER, port::ECHO, false),
            (CLIENT, NEAR, port::ECHO, true),
            (PLAIN, NEAR, port::ECHO, true),
        ],
        by: "mesh/p",
    },
    Case {
        name: "the whole mesh, from the root namespace",
        policies: &[Authorization(
            ROOT,
            "p",
            "{action: DENY, rules: [{from: [{source: {namespaces: [mesh]}}]}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, false),
            (NEAR, SERVER, port::ECHO, false),
            (PLAIN, SERVER, port::ECHO, true),
            (CLIENT, NEAR, port::ECHO, false),
        ],
        by: "karst-system/p",
    },
    Case {
        name: "a selector in the root namespace",
        policies: &[Authorization(
            ROOT,
            "p",
            "{selector: {matchLabels: {app: server}}, action: DENY, \
             rules: [{from: [{source: {principals: [\"*/sa/client\"]}}]}]}",
        )],
        expected: &[
            (CLIENT, SERVER, port::ECHO, false),
            (NEAR, SERVER, port::ECHO, true),
            (CLIENT, NEAR, port::ECHO, true),
        ],
        by: "karst-system/p",
    },
    Case {
        name: "a policy of another namespace",
        policies: &[
            Authorization("plain", "p", "{}"),
            Authorization(
                "mesh",
                "d",
                "{action: DENY, rules: [{from: [{source: {principals: [\"*/sa/near\"]}}]}]}",
            ),
        ],
        expected: echo!(true, false, true),
        by: "mesh/d",
    },
    Case {
        name: "a dry run beside one that is in earnest",
        policies: &[
            DryRun("mesh", "a", "{action: DENY, rules: [{}]}"),
            Authorization(
                "mesh",
                "d",
                "{action: DENY, rules: [{from: [{source: {principals: [\"*/sa/near\"]}}]}]}",
            ),
        ],
        expected: echo!(true, false, true),
        by: "mesh/d",
    },
    Case {
        name: "what only HTTP has never allows a connection",
        policies: &[Authorization(
            "mesh",
            "p",
            "{rules: [{to: [{operation: {methods: [GET]}}]}, \
             {from: [{source: {principals: [\"*/sa/client\"]}}]}]}",
        )],
        expected: echo!(true, false, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "what only HTTP has is left out where a rule denies",
        policies: &[Authorization(
            "mesh",
            "p",
            "{action: DENY, rules: [{from: [{source: {principals: [\"*/sa/client\"]}}], \
             to: [{operation: {methods: [POST], paths: [/admin]}}]}]}",
        )],
        expected: echo!(false, true, true),
        by: "mesh/p",
    },
    Case {
        name: "mTLS of a namespace",
        policies: &[Peer("mesh", "default", "{mtls: {mode: STRICT}}")],
        expected: echo!(true, true, false),
        by: STRICT,
    },
    Case {
        name: "mTLS of the mesh",
        policies: &[Peer(ROOT, "default", "{mtls: {mode: STRICT}}")],
        expected: echo!(true, true, false),
        by: STRICT,
    },
    Case {
        name: "a namespace without what the mesh wants",
        policies: &[
            Peer(ROOT, "default", "{mtls: {mode: STRICT}}"),
            Peer("mesh", "default", "{mtls: {mode: PERMISSIVE}}"),
            Peer(
                "mesh",
                "near",
                "{selector: {matchLabels: {app: near}}, mtls: {mode: STRICT}}",
            ),
        ],
        expected: &[
            (PLAIN, SERVER, port::ECHO, true),
            (PLAIN, NEAR, port::ECHO, false),
            (CLIENT, NEAR, port::ECHO, true),
        ],
        by: "",
    },
    Case {
        name: "mTLS disabled for a workload",
        policies: &[
            Peer("mesh", "default", "{mtls: {mode: STRICT}}"),
            Peer(
                "mesh",
                "near",
                "{selector: {matchLabels: {app: near}}, mtls: {mode: DISABLE}}",
            ),
        ],
        expected: &[
            (PLAIN, SERVER, port::ECHO, false),
            (PLAIN, NEAR, port::ECHO, true),
            (CLIENT, NEAR, port::ECHO, true),
        ],
        by: STRICT,
    },
    Case {
        name: "a port that needs no mTLS",
        policies: &[Peer(
            "mesh",
            "server",
            "{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, \
             portLevelMtls: {\"7001\": {mode: PERMISSIVE}}}",
        )],
        expected: &[
            (PLAIN, SERVER, port::ECHO, false),
            (PLAIN, SERVER, port::BANNER, true),
            (CLIENT, SERVER, port::ECHO, true),
        ],
        by: "mesh/converted_peer_authentication_server",
    },
    Case {
        name: "a port that needs mTLS",
        policies: &[Peer(
            "mesh",
            "server",
            "{selector: {matchLabels: {app: server}}, mtls: {mode: PERMISSIVE}, \
             portLevelMtls: {\"7001\": {mode: STRICT}}}",
        )],
        expected: &[
            (PLAIN, SERVER, port::ECHO, true),
            (PLAIN, SERVER, port::BANNER, false),
            (CLIENT, SERVER, port::BANNER, true),
        ],
        by: "mesh/converted_peer_authentication_server",
    },
];

#[test]
fn policies_do_what_istio_says() -> Result<()> {
    let world = world()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for case in CASES {
        run(world, case).with_context(|| case.name)?;
    }
    Ok(())
}

fn run(world: &World, case: &Case) -> Result<()> {
    let mut manifests = String::new();
    for policy in case.policies {
        manifests.push_str(&policy.manifest(world)?);
    }
    let before = names(world)?;
    ensure!(before.is_empty(), "left over: {before:?}");
    world.lab.apply(&manifests)?;
    let result = hold(world, case);
    world.lab.delete(&manifests)?;
    let gone = until("policies are gone", IN_FORCE, || {
        let left = names(world)?;
        ensure!(left.is_empty(), "{left:?}");
        passes(world, &(CLIENT, SERVER, port::ECHO, true))?;
        passes(world, &(PLAIN, SERVER, port::ECHO, true))
    });
    result.and(gone)
}

fn hold(world: &World, case: &Case) -> Result<()> {
    let all = |world| {
        case.expected
            .iter()
            .try_for_each(|expected| passes(world, expected))
    };
    until("policies are in force", IN_FORCE, || {
        ensure!(!names(world)?.is_empty(), "none has come");
        all(world)
    })?;
    // Once more, now that they are.
    let refusal = Refusal::watch(&world.lab, SERVER_NODE)?;
    all(world)?;
    if !case.by.is_empty() {
        let record = refusal.expect("policy_denied", "inbound")?;
        ensure!(record["policy.name"] == case.by, "{record}");
    }
    Ok(())
}

fn passes(world: &World, (client, server, port, passes): &Expected) -> Result<()> {
    let at = world.at(server, *port)?;
    let send: &[&str] = if *port == port::ECHO {
        &["--send", "x"]
    } else {
        &[]
    };
    let args = [&["connect", &at], send, &["--read-lines", "1"]].concat();
    let report = world.app(client, &args)?;
    ensure!(
        report["ok"] == *passes,
        "{client} to {server}:{port}, expected {passes}: {report}"
    );
    Ok(())
}

/// Names of the policies that the server's node has.
fn names(world: &World) -> Result<BTreeSet<String>> {
    let policies = world.lab.agent_admin(SERVER_NODE, "/v1/policies")?;
    let policies = policies.as_array().context("no list")?;
    let name = |policy: &Value| policy["name"].as_str().map(str::to_owned);
    Ok(policies.iter().filter_map(name).collect())
}

const DENY_CLIENT: Written = Authorization(
    "mesh",
    "cut",
    "{action: DENY, rules: [{from: [{source: {principals: [\"*/sa/client\"]}}]}]}",
);

#[test]
fn a_denial_cuts_what_is_established_within_a_second() -> Result<()> {
    let world = world()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let at = world.at(SERVER, port::ECHO)?;
    let mut client = Chat::open(&world.lab, CLIENT, &at)?;
    let mut near = Chat::open(&world.lab, NEAR, &at)?;
    client.say("before")?;
    near.say("before")?;
    let manifest = DENY_CLIENT.manifest(world)?;
    let started = Instant::now();
    world.lab.apply(&manifest)?;
    while client.say("still").is_ok() {
        ensure!(started.elapsed() < Duration::from_secs(5), "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    let cut = started.elapsed();
    near.say("after")?;
    let record = until("the cut is logged", IN_FORCE, || {
        let records = access_records(&world.lab, SERVER_NODE)?;
        let record = records
            .into_iter()
            .find(|record| record["policy.name"] == "mesh/cut" && record["bytes_recv"] != 0);
        record.context("no record")
    })?;
    ensure!(record["reason"] == "policy_denied", "{record}");
    ensure!(record["policy.rule"] == 0, "{record}");
    let new = world.app(
        CLIENT,
        &["connect", &at, "--send", "x", "--read-lines", "1"],
    )?;
    ensure!(new["ok"] == false, "{new}");
    world.lab.delete(&manifest)?;
    until("new connections pass again", IN_FORCE, || {
        passes(world, &(CLIENT, SERVER, port::ECHO, true))
    })?;
    near.end()?;
    ensure!(cut < Duration::from_secs(1), "cut after {cut:?}");
    Ok(())
}

#[test]
fn changes_lose_nothing_that_is_allowed() -> Result<()> {
    const CHANGES: usize = 200;
    let world = world()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let at = world.at(SERVER, port::ECHO)?;
    let mut chat = Chat::open(&world.lab, CLIENT, &at)?;
    // Every other change selects by labels, so that the workload changes too.
    let manifest = |change: usize| {
        let selector = match change % 2 {
            0 => "",
            _ => "selector: {matchLabels: {app: server}}, ",
        };
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p{change}, namespace: mesh}}\nspec: {{{selector}rules: \
             [{{from: [{{source: {{principals: [\"*/sa/client\"]}}}}]}}]}}\n---\n"
        )
    };
    world.lab.apply(&manifest(0))?;
    let (mut done, mut connections) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let changes = scope.spawn(|| -> Result<()> {
            for change in 1..=CHANGES {
                // The new one first: what the last allows is allowed all the time.
                world.lab.apply(&manifest(change))?;
                world.lab.delete(&manifest(change - 1))?;
                let name = format!("mesh/p{change}");
                until("a change has come", IN_FORCE, || {
                    let names = names(world)?;
                    ensure!(names.len() == 1 && names.contains(&name), "{names:?}");
                    Ok(())
                })?;
            }
            Ok(())
        });
        while !changes.is_finished() {
            let storm = world.app_ok(CLIENT, &["storm", &at, "100", "--at-once", "4"])?;
            ensure!(storm["failed"] == 0, "{storm}");
            chat.say("goes on")?;
            connections += 100;
        }
        changes
            .join()
            .map_err(|_| anyhow!("the changes panicked"))??;
        done = CHANGES;
        Ok(())
    })?;
    chat.end()?;
    // It was not by being open to all.
    passes(world, &(NEAR, SERVER, port::ECHO, false))?;
    world.lab.delete(&manifest(CHANGES))?;
    until("policies are gone", IN_FORCE, || {
        ensure!(names(world)?.is_empty(), "still there");
        passes(world, &(NEAR, SERVER, port::ECHO, true))
    })?;
    ensure!(
        done == CHANGES && connections >= 1_000,
        "{connections} connections"
    );
    Ok(())
}

#[test]
fn the_command_line_shows_policies() -> Result<()> {
    let world = world()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let manifest = DENY_CLIENT.manifest(world)?;
    world.lab.apply(&manifest)?;
    let shown = until("it is shown", IN_FORCE, || {
        let shown = world.lab.inspect(SERVER_NODE, &["policy"])?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(shown.contains("mesh/cut"), "{shown}");
        Ok(shown)
    });
    world.lab.delete(&manifest)?;
    let shown = shown?;
    ensure!(
        shown.contains("DENY") && shown.contains("namespace"),
        "{shown}"
    );
    until("policies are gone", IN_FORCE, || {
        ensure!(names(world)?.is_empty(), "still there");
        Ok(())
    })
}
