//! Who may ask for what: AuthorizationPolicies with `targetRefs`, by files that the controller reads, enforced
//! by the waypoint in front of a service.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use karst_harness::until;
use karst_lab_tests::shop::{CLIENT, Shop};
use serde_json::Value;

static SHOP: LazyLock<Result<Shop>> = LazyLock::new(|| Shop::open("authz"));
/// Policies are the whole service's: one test at a time has some.
static TURN: Mutex<()> = Mutex::new(());

fn shop() -> Result<&'static Shop> {
    SHOP.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// Another namespace's pod.
const GUEST: &str = "mesh/client";
const WAYPOINT: &str = "shop/waypoint";
const WEB: &str = "web.shop:80";
const ROOT: &str = "karst-system";
/// A change is in force within.
const IN_FORCE: Duration = Duration::from_secs(10);
/// What a client is told where there are ALLOW policies and none matches.
const NONE_ALLOWS: &str = "implicit_deny";

/// The kind of service that policies here are attached to.
const ON_WEB: &str = "targetRefs: [{group: '', kind: Service, name: web}]";
const ON_WAYPOINT: &str =
    "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]";
const ON_CLASS: &str =
    "targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: karst-waypoint}]";

/// A policy: namespace, name, what it is attached to, the rest of its spec in YAML's flow style.
struct Written(&'static str, &'static str, &'static str, &'static str, bool);

const fn policy(name: &'static str, rest: &'static str) -> Written {
    Written("shop", name, ON_WEB, rest, false)
}

const fn dry_run(name: &'static str, rest: &'static str) -> Written {
    Written("shop", name, ON_WEB, rest, true)
}

impl Written {
    fn manifest(&self, shop: &Shop) -> Result<String> {
        let Self(namespace, name, targets, rest, dry_run) = self;
        let mut rest = (*rest).to_owned();
        for (word, pod) in [("CLIENT_IP", CLIENT), ("GUEST_IP", GUEST)] {
            rest = rest.replace(word, &shop.world.v4(pod)?.to_string());
        }
        let annotations = if *dry_run {
            ", annotations: {istio.io/dry-run: \"true\"}"
        } else {
            ""
        };
        Ok(format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: {namespace}{annotations}}}\n\
             spec: {{{targets}, {rest}}}\n---\n"
        ))
    }
}

/// Who asks, how, and whether it passes.
type Asked = (&'static str, &'static [&'static str], bool);

struct Case {
    name: &'static str,
    policies: &'static [Written],
    asked: &'static [Asked],
    /// What refuses: `name` for a policy's first rule, [`NONE_ALLOWS`] for none.
    by: &'static str,
}

/// The two clients, both asking for `/`.
macro_rules! who {
    ($client:literal, $guest:literal) => {
        &[(CLIENT, &[], $client), (GUEST, &[], $guest)]
    };
}

const CASES: &[Case] = &[
    Case {
        name: "a principal",
        policies: &[policy(
            "p",
            "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]",
        )],
        asked: who!(true, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a principal that it must not be",
        policies: &[policy(
            "p",
            "rules: [{from: [{source: {notPrincipals: [\"*/ns/shop/sa/client\"]}}]}]",
        )],
        asked: who!(false, true),
        by: NONE_ALLOWS,
    },
    Case {
        name: "a namespace, denied",
        policies: &[policy(
            "p",
            "action: DENY, rules: [{from: [{source: {namespaces: [mesh]}}]}]",
        )],
        asked: who!(true, false),
        by: "policy shop/p, rules[0]",
    },
    Case {
        name: "a service account of the policy's namespace",
        policies: &[policy(
            "p",
            "rules: [{from: [{source: {serviceAccounts: [client]}}]}]",
        )],
        asked: who!(true, false),
        by: NONE_ALLOWS,
    },
    Case {
        name: "an address",
        policies: &[policy(
            "p",
            "rules: [{from: [{source: {ipBlocks: [GUEST_IP]}}]}]",
        )],
        asked: who!(false, true),
        by: NONE_ALLOWS,
    },
    Case {
        name: "the client's address, which it cannot make up",
        policies: &[policy(
            "p",
            "action: DENY, rules: [{from: [{source: {remoteIpBlocks: [CLIENT_IP/32]}}]}]",
        )],
        asked: &[
            (CLIENT, &[], false),
            (CLIENT, &["--header", "x-forwarded-for: 192.0.2.1"], false),
            (GUEST, &[], true),
        ],
        by: "policy shop/p, rules[0]",
    },
    Case {
        name: "a method",
        policies: &[policy(
            "p",
            "rules: [{to: [{operation: {methods: [GET]}}]}]",
        )],
        asked: &[
            (CLIENT, &[], true),
            (CLIENT, &["--body", "x"], false),
            (CLIENT, &["--method", "DELETE"], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "a method that it must not be",
        policies: &[policy(
            "p",
            "rules: [{to: [{operation: {notMethods: [POST]}}]}]",
        )],
        asked: &[(CLIENT, &[], true), (CLIENT, &["--body", "x"], false)],
        by: NONE_ALLOWS,
    },
    Case {
        name: "a path, exact",
        policies: &[policy("p", "rules: [{to: [{operation: {paths: [/a]}}]}]")],
        asked: &[
            (CLIENT, &["--path", "/a"], true),
            (CLIENT, &["--path", "/a?b=/c"], true),
            (CLIENT, &["--path", "/a/b"], false),
            (CLIENT, &["--path", "/A"], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "a path by prefix, whichever way it is written",
        policies: &[policy(
            "p",
            "action: DENY, rules: [{to: [{operation: {paths: [\"/admin/*\"]}}]}]",
        )],
        asked: &[
            (CLIENT, &["--path", "/"], true),
            (CLIENT, &["--path", "/public/admin/x"], true),
            // An empty segment is one, as in Istio's own normal form.
            (CLIENT, &["--path", "//admin/x"], true),
            (CLIENT, &["--path", "/admin/x"], false),
            (CLIENT, &["--path", "/public/../admin/x"], false),
            (CLIENT, &["--path", "/%61dmin/x"], false),
        ],
        by: "policy shop/p, rules[0]",
    },
    Case {
        name: "a path by suffix",
        policies: &[policy(
            "p",
            "rules: [{to: [{operation: {paths: [\"*.html\"]}}]}]",
        )],
        asked: &[
            (CLIENT, &["--path", "/x/y.html"], true),
            (CLIENT, &["--path", "/x/y.htm"], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "a path by template",
        policies: &[policy(
            "p",
            "rules: [{to: [{operation: {paths: [\"/users/{*}/mail\"]}}]}]",
        )],
        asked: &[
            (CLIENT, &["--path", "/users/ann/mail"], true),
            (CLIENT, &["--path", "/users/ann/bob/mail"], false),
            (CLIENT, &["--path", "/users/ann"], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "a path that it must not be",
        policies: &[policy(
            "p",
            "rules: [{to: [{operation: {notPaths: [\"/admin*\"]}}]}]",
        )],
        asked: &[
            (CLIENT, &["--path", "/shop"], true),
            (CLIENT, &["--path", "/admin"], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "a host, in any case",
        policies: &[policy(
            "p",
            "rules: [{to: [{operation: {hosts: [shop.example, \"*.web.example\"]}}]}]",
        )],
        asked: &[
            (CLIENT, &["--header", "host: shop.example"], true),
            (CLIENT, &["--header", "host: SHOP.example"], true),
            (CLIENT, &["--header", "host: a.web.example"], true),
            (CLIENT, &["--header", "host: other.example"], false),
            (CLIENT, &[], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "a header",
        policies: &[policy(
            "p",
            "rules: [{when: [{key: \"request.headers[X-Team]\", values: [blue, \"green-*\"]}]}]",
        )],
        asked: &[
            (CLIENT, &["--header", "x-team: blue"], true),
            (CLIENT, &["--header", "x-team: green-1"], true),
            (CLIENT, &["--header", "x-team: red"], false),
            (CLIENT, &[], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "a header that it must not have",
        policies: &[policy(
            "p",
            "rules: [{when: [{key: \"request.headers[x-debug]\", notValues: [\"*\"]}]}]",
        )],
        asked: &[
            (CLIENT, &[], true),
            (CLIENT, &["--header", "x-debug: 1"], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "conditions of one rule must all hold",
        policies: &[policy(
            "p",
            "rules: [{from: [{source: {principals: [\"*/ns/shop/sa/client\"]}}], \
             to: [{operation: {methods: [GET], paths: [/a]}}]}]",
        )],
        asked: &[
            (CLIENT, &["--path", "/a"], true),
            (CLIENT, &["--path", "/b"], false),
            (CLIENT, &["--path", "/a", "--body", "x"], false),
            (GUEST, &["--path", "/a"], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "any rule is enough",
        policies: &[policy(
            "p",
            "rules: [{to: [{operation: {paths: [/open]}}]}, \
             {from: [{source: {namespaces: [shop]}}]}]",
        )],
        asked: &[
            (GUEST, &["--path", "/open"], true),
            (CLIENT, &["--path", "/shut"], true),
            (GUEST, &["--path", "/shut"], false),
        ],
        by: NONE_ALLOWS,
    },
    Case {
        name: "what is denied is not allowed",
        policies: &[
            policy("a", "rules: [{}]"),
            policy(
                "z",
                "action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]",
            ),
        ],
        asked: &[
            (CLIENT, &["--path", "/yes"], true),
            (CLIENT, &["--path", "/no"], false),
        ],
        by: "policy shop/z, rules[0]",
    },
    Case {
        name: "a dry run beside one that is in earnest",
        policies: &[
            dry_run("a", "action: DENY, rules: [{}]"),
            policy(
                "d",
                "action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]",
            ),
        ],
        asked: &[
            (CLIENT, &["--path", "/yes"], true),
            (CLIENT, &["--path", "/no"], false),
        ],
        by: "policy shop/d, rules[0]",
    },
    Case {
        name: "a whole waypoint",
        policies: &[Written(
            "shop",
            "p",
            ON_WAYPOINT,
            "action: DENY, rules: [{from: [{source: {namespaces: [mesh]}}]}]",
            false,
        )],
        asked: who!(true, false),
        by: "policy shop/p, rules[0]",
    },
    Case {
        name: "all waypoints, from the root namespace",
        policies: &[Written(
            ROOT,
            "p",
            ON_CLASS,
            "action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]",
            false,
        )],
        asked: &[
            (CLIENT, &["--path", "/yes"], true),
            (CLIENT, &["--path", "/no"], false),
            (GUEST, &["--path", "/no"], false),
        ],
        by: "policy karst-system/p, rules[0]",
    },
    Case {
        name: "an unknown attribute opens nothing",
        policies: &[policy(
            "p",
            "rules: [{when: [{key: \"request.headers[x-a]\", values: [a]}, \
             {key: experimental.envoy.filters.a, values: [b]}]}, {to: [{operation: {paths: [/b]}}]}]",
        )],
        asked: &[
            (CLIENT, &["--header", "x-a: a"], false),
            (CLIENT, &["--path", "/b"], true),
        ],
        by: NONE_ALLOWS,
    },
];

#[test]
fn policies_do_what_istio_says() -> Result<()> {
    let shop = shop()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for case in CASES {
        run(shop, case).with_context(|| case.name)?;
    }
    Ok(())
}

fn run(shop: &Shop, case: &Case) -> Result<()> {
    let mut manifests = String::new();
    for policy in case.policies {
        manifests.push_str(&policy.manifest(shop)?);
    }
    with(shop, &manifests, || {
        until("policies are in force", IN_FORCE, || hold(shop, case))?;
        // Once more, now that they are.
        hold(shop, case)
    })
}

/// Applies policies, does something, removes them and waits until they are gone.
fn with(shop: &Shop, manifests: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    shop.world.lab.apply(manifests)?;
    let result = act();
    shop.world.lab.delete(manifests)?;
    let gone = until("policies are gone", IN_FORCE, || {
        for client in [CLIENT, GUEST] {
            for path in ["/", "/no", "/admin"] {
                let answer = ask(shop, client, &["--path", path])?;
                ensure!(answer["ok"] == true, "{client} {path}: {answer}");
            }
        }
        Ok(())
    });
    result.and(gone)
}

fn hold(shop: &Shop, case: &Case) -> Result<()> {
    for (client, args, passes) in case.asked {
        let answer = ask(shop, client, args)?;
        let what = || format!("{client} {args:?}, expected {passes}: {answer}");
        ensure!(answer["ok"] == *passes, what());
        if !passes {
            ensure!(answer["status"] == 403, what());
            let told = format!("RBAC: access denied ({})", case.by);
            ensure!(answer["page"] == told.as_str(), what());
        }
    }
    Ok(())
}

fn ask(shop: &Shop, client: &str, args: &[&str]) -> Result<Value> {
    shop.world.app(client, &[&["http", WEB], args].concat())
}

/// Records of the waypoint's access log that name this policy under that key.
fn records(shop: &Shop, key: &str, policy: &str) -> Result<Vec<Value>> {
    let log = shop.world.lab.logs(WAYPOINT)?;
    let records = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(records.filter(|record| record[key] == policy).collect())
}

/// How often the waypoint says that a policy has done that.
fn decisions(shop: &Shop, policy: &str, outcome: &str) -> Result<u64> {
    let args = ["http", "127.0.0.1:15020", "--path", "/metrics"];
    let metrics = shop.world.app_ok(WAYPOINT, &args)?;
    let metrics = metrics["page"].as_str().context("no text")?;
    let (policy, outcome) = (
        format!("policy=\"shop/{policy}\""),
        format!("outcome=\"{outcome}\""),
    );
    let line = metrics.lines().find(|line| {
        line.starts_with("karst_waypoint_policy_decisions_total{")
            && line.contains(&policy)
            && line.contains(&outcome)
    });
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.map_or(Ok(0), |value| Ok(value.parse()?))
}

#[test]
fn denials_and_audits_are_in_the_access_log() -> Result<()> {
    let shop = shop()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let policies = [
        policy(
            "logged",
            "action: DENY, rules: [{to: [{operation: {paths: [/other]}}]}, \
             {to: [{operation: {paths: [/logged]}}]}]",
        ),
        policy(
            "watched",
            "action: AUDIT, rules: [{to: [{operation: {paths: [/watched]}}]}]",
        ),
        dry_run(
            "tried",
            "action: DENY, rules: [{to: [{operation: {paths: [/tried]}}]}]",
        ),
    ];
    let mut manifests = String::new();
    for policy in &policies {
        manifests.push_str(&policy.manifest(shop)?);
    }
    with(shop, &manifests, || {
        until("policies are in force", IN_FORCE, || {
            let denied = ask(shop, CLIENT, &["--path", "/logged"])?;
            ensure!(denied["status"] == 403, "{denied}");
            for path in ["/watched", "/tried"] {
                let passed = ask(shop, CLIENT, &["--path", path])?;
                ensure!(passed["ok"] == true, "{passed}");
            }
            let audited = records(shop, "audit.policy.name", "shop/watched")?;
            ensure!(!audited.is_empty(), "the audit is not logged");
            for (policy, outcome) in [
                ("logged", "denied"),
                ("watched", "audited"),
                ("tried", "dry_run_denied"),
            ] {
                ensure!(decisions(shop, policy, outcome)? > 0, "{policy} {outcome}");
            }
            Ok(())
        })?;
        let record = until("the denial is logged", IN_FORCE, || {
            let records = records(shop, "policy.name", "shop/logged")?;
            records.into_iter().next().context("no record")
        })?;
        ensure!(record["reason"] == "policy_denied", "{record}");
        ensure!(record["policy.rule"] == 1, "{record}");
        ensure!(
            record["src.identity"] == "spiffe://cluster.local/ns/shop/sa/client",
            "{record}"
        );
        ensure!(decisions(shop, "tried", "denied")? == 0);
        Ok(())
    })
}

#[test]
fn a_grpc_client_is_told_in_its_own_way() -> Result<()> {
    let shop = shop()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let denied = policy(
        "grpc",
        "action: DENY, rules: [{to: [{operation: {paths: [/karst.test.Echo/Unary]}}]}]",
    );
    let call = |path: &str| {
        let args = [
            "http",
            "web.shop:9000",
            "--http2",
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
            "--body",
            "",
            "--path",
            path,
        ];
        shop.world.app(CLIENT, &args)
    };
    with(shop, &denied.manifest(shop)?, || {
        until("the policy is in force", IN_FORCE, || {
            let answer = call("/karst.test.Echo/Unary")?;
            ensure!(answer["status"] == 200, "{answer}");
            ensure!(answer["headers"]["grpc-status"] == "7", "{answer}");
            let message = &answer["headers"]["grpc-message"];
            let told = "RBAC: access denied (policy shop/grpc, rules[0])";
            ensure!(*message == told, "{answer}");
            Ok(())
        })?;
        let answer = call("/karst.test.Echo/Stream")?;
        ensure!(answer["headers"]["grpc-status"] != "7", "{answer}");
        Ok(())
    })?;
    let calls = shop.world.app_ok(CLIENT, &["grpc", "web.shop:9000"])?;
    ensure!(calls["unary"] == 1, "{calls}");
    Ok(())
}

#[test]
fn a_denial_cuts_what_goes_on_within_a_second() -> Result<()> {
    let shop = shop()?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // Two answers that take a minute; one of them is to be cut.
    let events = |path: &'static str| {
        let argv = ["karst-testapp", "events", WEB, "--path", path];
        shop.world.lab.spawn(CLIENT, &argv)
    };
    let cut = events("/events/30/60000")?;
    let kept = events("/events/4/4000")?;
    until("both are answered", IN_FORCE, || {
        let page = ask(shop, CLIENT, &["--path", "/"])?;
        ensure!(page["ok"] == true, "{page}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(2));
    let denied = policy(
        "cut",
        "action: DENY, rules: [{to: [{operation: {paths: [\"/events/30/*\"]}}]}]",
    );
    with(shop, &denied.manifest(shop)?, || {
        let started = Instant::now();
        let output = cut.finish()?;
        let took = started.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(text.lines().last().context("no report")?)?;
        ensure!(report["ok"] == false, "it came to its end: {report}");
        let record = until("the cut is logged", IN_FORCE, || {
            let records = records(shop, "policy.name", "shop/cut")?;
            records.into_iter().next().context("no record")
        })?;
        ensure!(record["reason"] == "policy_denied", "{record}");
        let output = kept.finish()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(text.lines().last().context("no report")?)?;
        ensure!(report["ok"] == true, "{report}");
        let arrivals = report["arrivals_ms"].as_array().context("no arrivals")?;
        ensure!(arrivals.len() == 4, "{report}");
        ensure!(took < Duration::from_secs(1), "cut after {took:?}");
        Ok(())
    })
}
