//! etcd, API server, controller manager and scheduler: with which flags, and when they are ready.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::files::{tail, write};
use karst_harness::{host, run_in, until};

use crate::kubectl;
use crate::lifecycle;
use crate::network::CONTROL;
use crate::paths::{API_SERVER, PODS, Paths, SERVICES};
use crate::state::State;

/// etcd's address for its clients; it is alone with the control plane in its network namespace.
pub const ETCD: &str = "http://127.0.0.1:2379";

/// etcd's address for other members, of which there are none.
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// The record's name of the API server's process.
pub const APISERVER: &str = "kube-apiserver";

/// The API server needs 5 s to 10 s on two free cores; more when others build on them.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// Go's garbage collector runs earlier than it would by itself: several clusters have to fit
/// beside a build.
const GO_ENVIRONMENT: (&str, &str) = ("GOGC", "60");

/// Starts all of it and waits until the API server is ready.
pub fn start(paths: &Paths) -> Result<()> {
    start_etcd(paths)?;
    start_apiserver(paths)?;
    let pki = paths.pki();
    let file = |name: &str| pki.join(name).display().to_string();
    run(
        paths,
        "kube-controller-manager",
        &[
            ("kubeconfig", conf(paths, "controller-manager")),
            ("leader-elect", "false".into()),
            ("use-service-account-credentials", "true".into()),
            ("root-ca-file", file("cluster-ca.crt")),
            ("service-account-private-key-file", file("sa.key")),
            ("cluster-signing-cert-file", file("cluster-ca.crt")),
            ("cluster-signing-key-file", file("cluster-ca.key")),
            ("cluster-cidr", PODS.into()),
            ("service-cluster-ip-range", SERVICES.into()),
            ("bind-address", "127.0.0.1".into()),
            ("profiling", "false".into()),
        ],
    )?;
    run(
        paths,
        "kube-scheduler",
        &[
            ("kubeconfig", conf(paths, "scheduler")),
            ("leader-elect", "false".into()),
            ("bind-address", "127.0.0.1".into()),
            ("profiling", "false".into()),
        ],
    )
}

/// Starts etcd, on the data it left if it ran before.
pub fn start_etcd(paths: &Paths) -> Result<()> {
    run(
        paths,
        "etcd",
        &[
            ("name", "karst".into()),
            ("data-dir", paths.etcd().display().to_string()),
            // Nothing in a test cluster outlives a crash of the machine.
            ("unsafe-no-fsync", "true".into()),
            ("listen-client-urls", ETCD.into()),
            ("advertise-client-urls", ETCD.into()),
            ("listen-peer-urls", ETCD_PEERS.into()),
            ("initial-advertise-peer-urls", ETCD_PEERS.into()),
            ("initial-cluster", format!("karst={ETCD_PEERS}")),
            ("log-level", "warn".into()),
        ],
    )
}

/// Starts the API server and waits until it is ready.
pub fn start_apiserver(paths: &Paths) -> Result<()> {
    let pki = paths.pki();
    let file = |name: &str| pki.join(name).display().to_string();
    let mut flags = vec![
        ("etcd-servers", ETCD.to_owned()),
        ("advertise-address", API_SERVER.to_string()),
        ("secure-port", "6443".into()),
        ("service-cluster-ip-range", SERVICES.into()),
        ("tls-cert-file", file("apiserver.crt")),
        ("tls-private-key-file", file("apiserver.key")),
        ("client-ca-file", file("cluster-ca.crt")),
        ("kubelet-client-certificate", file("apiserver-kubelet.crt")),
        ("kubelet-client-key", file("apiserver-kubelet.key")),
        ("kubelet-certificate-authority", file("cluster-ca.crt")),
        ("kubelet-preferred-address-types", "InternalIP".into()),
        (
            "service-account-issuer",
            "https://kubernetes.default.svc.cluster.local".into(),
        ),
        ("service-account-signing-key-file", file("sa.key")),
        ("service-account-key-file", file("sa.pub")),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", "NodeRestriction".into()),
        ("allow-privileged", "true".into()),
        ("requestheader-client-ca-file", file("front-proxy-ca.crt")),
        ("requestheader-allowed-names", "front-proxy-client".into()),
        (
            "requestheader-extra-headers-prefix",
            "X-Remote-Extra-".into(),
        ),
        ("requestheader-group-headers", "X-Remote-Group".into()),
        ("requestheader-username-headers", "X-Remote-User".into()),
        ("proxy-client-cert-file", file("front-proxy.crt")),
        ("proxy-client-key-file", file("front-proxy.key")),
        // Webhooks are called at their pods: there is no kube-proxy beside the API server.
        ("enable-aggregator-routing", "true".into()),
        ("profiling", "false".into()),
    ];
    let state = State::load(paths)?.context("the cluster has no record")?;
    if state.audit {
        let policy = paths.dir().join("audit.json");
        write(
            &policy,
            r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],"rules":[{"level":"Metadata"}]}"#,
        )?;
        flags.push(("audit-policy-file", policy.display().to_string()));
        flags.push(("audit-log-path", paths.log("audit").display().to_string()));
    }
    run(paths, APISERVER, &flags)?;
    wait_apiserver(paths)
}

/// Waits until the API server says that it is ready.
pub fn wait_apiserver(paths: &Paths) -> Result<()> {
    until("the API server to be ready", READY_LIMIT, || {
        let state = State::load(paths)?.context("the cluster has no record")?;
        if state.running(APISERVER).is_none() {
            // Nothing to wait for: the log says why.
            return Ok(());
        }
        // A connection costs less than the kubectl that fails without one.
        run_in(&paths.netns(CONTROL), || {
            std::net::TcpStream::connect((API_SERVER, 6443)).context("connecting")
        })?;
        let said = host::run(kubectl::command(paths)?.args(["get", "--raw", "/readyz"]))?;
        ensure!(said.trim() == "ok", "it says {said}");
        Ok(())
    })
    .with_context(|| log_of(paths, APISERVER))?;
    let state = State::load(paths)?.context("the cluster has no record")?;
    ensure!(
        state.running(APISERVER).is_some(),
        "the API server ended. {}",
        log_of(paths, APISERVER)
    );
    Ok(())
}

fn log_of(paths: &Paths, program: &str) -> String {
    let log = paths.log(program);
    format!("The end of {}:\n{}", log.display(), tail(&log))
}

fn conf(paths: &Paths, user: &str) -> String {
    paths.kubeconfig(user).display().to_string()
}

/// Starts one of the programs of the multi-call binary in the control plane's network namespace.
fn run(paths: &Paths, program: &str, flags: &[(&str, String)]) -> Result<()> {
    fs::create_dir_all(paths.etcd())?;
    let binary = paths.bin().join("kubernetes").display().to_string();
    let (key, value) = GO_ENVIRONMENT;
    let flags: Vec<String> = flags
        .iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect();
    let mut argv = vec![binary.as_str(), program];
    argv.extend(flags.iter().map(String::as_str));
    let mut command = lifecycle::inside(paths, CONTROL, Some(program), &argv)?;
    lifecycle::record(paths, program, command.env(key, value))
}
