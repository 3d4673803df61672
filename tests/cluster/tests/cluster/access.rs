//! Who may do what: Karst's accounts at the API server, and everybody at Karst's authority.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::EncodingKey;
use karst_cluster::Cluster;
use karst_identity::{
    CertificateAuthority, CertificateRequest, GrpcCa, GrpcCaConfig, IdentityError, SignedChain,
    SpiffeId,
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::mesh::{SYSTEM, enrolled_shop, pod, pods, shop, text, with_karst};
use crate::shared::shared;

/// What the documentation says of the accounts' rights.
const DOCUMENTATION: &str = include_str!("../../../../controller/deploy/README.md");

/// Kind of object, its name if the right is to one object only, and a verb.
type Right = (String, String, String);

/// The rights in the first table after `heading`.
fn documented(heading: &str) -> BTreeSet<Right> {
    let (_, after) = DOCUMENTATION.split_once(heading).unwrap();
    let table = after.lines().skip_while(|line| !line.starts_with('|'));
    let rows = table.skip(2).take_while(|line| line.starts_with('|'));
    let mut rights = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let (names, kinds): (Vec<(usize, &str)>, _) = cells[0]
            .split('`')
            .enumerate()
            .partition(|(at, _)| at % 2 == 1);
        let names: Vec<&str> = names.into_iter().map(|(_, name)| name).collect();
        let kinds: String = kinds.into_iter().map(|(_, text)| text).collect();
        let kinds = kinds
            .split([',', ' '])
            .filter(|kind| !kind.is_empty() && *kind != "named");
        for kind in kinds {
            let kind = if kind.ends_with('s') {
                kind.to_owned()
            } else {
                format!("{kind}s")
            };
            for name in if names.is_empty() { &[""][..] } else { &names } {
                for verb in cells[1].split(", ") {
                    rights.insert((kind.clone(), (*name).to_owned(), verb.to_owned()));
                }
            }
        }
    }
    assert!(rights.len() > 5, "{heading}: {rights:?}");
    rights
}

/// The rights of an account in a namespace, as the API server sees them.
fn granted(cluster: &Cluster, account: &str, namespace: &str) -> BTreeSet<Right> {
    let who = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
    let argv = [
        "auth",
        "can-i",
        "--list",
        "--no-headers",
        "-n",
        namespace,
        &who,
    ];
    let said = cluster.kubectl(&argv).unwrap();
    let mut rights = BTreeSet::new();
    for line in said.lines() {
        // RESOURCE [URL ...] [NAME ...] [VERB ...]; the resource is empty where there are URLs.
        let lists: Vec<&str> = line.split(['[', ']']).collect();
        // PLURAL[.GROUP][/SUBRESOURCE]; documented without the group.
        let resource = lists[0].trim();
        let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
        let plural = resource.split('.').next().unwrap();
        let kind = match part {
            "" => format!("{plural}{}", lists[1]),
            part => format!("{plural}/{part}"),
        };
        for verb in lists[5].split(' ') {
            for name in lists[3].split(' ') {
                rights.insert((kind.clone(), name.to_owned(), verb.to_owned()));
            }
        }
    }
    rights
}

#[test]
fn accounts_may_do_what_the_documentation_says_and_no_more() {
    let cluster = shared();
    with_karst(&cluster);
    let accounts = cluster.get(&["serviceaccounts", "-n", SYSTEM]).unwrap();
    let accounts = accounts["items"].as_array().unwrap().iter();
    let accounts: BTreeSet<&str> = accounts.map(|one| text(one, "/metadata/name")).collect();
    let expected = BTreeSet::from(["default", "karst-controller", "karst-node-agent"]);
    assert_eq!(accounts, expected);

    let everywhere = documented("**`karst-controller`**, in the whole cluster:");
    let at_home = documented("\nIn `karst-system`:");
    for namespace in [SYSTEM, "default"] {
        let of_all = granted(&cluster, "default", namespace);
        assert!(!of_all.is_empty());
        let agent = granted(&cluster, "karst-node-agent", namespace);
        assert_eq!(agent, of_all, "in {namespace}");
        let mut expected = everywhere.clone();
        if namespace == SYSTEM {
            expected.extend(at_home.iter().cloned());
        }
        let controller = granted(&cluster, "karst-controller", namespace);
        let own: BTreeSet<Right> = controller.difference(&of_all).cloned().collect();
        let missing: Vec<_> = expected.difference(&own).collect();
        let more: Vec<_> = own.difference(&expected).collect();
        assert!(
            missing.is_empty() && more.is_empty(),
            "in {namespace}, documented only: {missing:?}, granted only: {more:?}"
        );
    }
}

/// What the authority says when it does not sign: gRPC's name of the status, and its message.
#[derive(Debug)]
struct Refused {
    code: String,
    message: String,
}

const DENIED: &str = "PermissionDenied";
const UNAUTHENTICATED: &str = "Unauthenticated";

/// One replica of the controller, asked for certificates from a node.
struct Authority<'a> {
    cluster: &'a Cluster,
    pod: String,
    address: String,
    folder: tempfile::TempDir,
}

impl<'a> Authority<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let replica = pods(cluster, SYSTEM)
            .into_iter()
            .find(|pod| text(pod, "/metadata/name").starts_with("karst-controller-"))
            .unwrap();
        let roots = cluster
            .get(&["configmap", "karst-ca-root-cert", "-n", SYSTEM])
            .unwrap();
        let folder = tempfile::TempDir::new().unwrap();
        let roots = roots["data"]["root-cert.pem"].as_str().unwrap();
        fs::write(folder.path().join("root.pem"), roots).unwrap();
        Self {
            cluster,
            pod: text(&replica, "/metadata/name").to_owned(),
            address: format!("{}:15012", text(&replica, "/status/podIP")),
            folder,
        }
    }

    /// Asks with a token for a certificate of an identity.
    fn ask(&self, token: &str, identity: &str) -> Result<SignedChain, Refused> {
        let token_file = self.folder.path().join("token");
        fs::write(&token_file, token).unwrap();
        let authority = GrpcCa::new(GrpcCaConfig {
            address: self.address.clone(),
            server_name: format!("karst-controller.{SYSTEM}.svc"),
            root_file: self.folder.path().join("root.pem"),
            token_file,
            cluster_id: "Kubernetes".to_owned(),
            validity_seconds: 3600,
        });
        let key = KeyPair::generate().unwrap();
        let names = CertificateParams::new(Vec::new()).unwrap();
        let request = CertificateRequest {
            id: SpiffeId::parse(identity).unwrap(),
            csr_pem: names.serialize_request(&key).unwrap().pem().unwrap(),
        };
        // The controller is reached from the cluster's own network namespaces only.
        let asked = karst_harness::run_in(&self.cluster.control_netns(), || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(authority.sign(request)))
        });
        asked.unwrap().map_err(|error| match error {
            IdentityError::AuthorityRefused { code, message } => Refused { code, message },
            error => panic!("not an answer of the authority: {error}"),
        })
    }

    fn metric(&self, family: &str, reason: &str) -> u64 {
        let path = format!(
            "/api/v1/namespaces/{SYSTEM}/pods/{}:15014/proxy/metrics",
            self.pod
        );
        let text = self.cluster.kubectl(&["get", "--raw", &path]).unwrap();
        let name = format!("{family}{{reason=\"{reason}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Asks what must be refused for that reason, and counted.
    fn refuses(&self, what: &str, token: &str, identity: &str, code: &str, reason: &str) {
        let family = match reason.split('_').next() {
            Some("ca") => "karst_controller_ca_refused_total",
            _ => "karst_controller_auth_refused_total",
        };
        let before = self.metric(family, reason);
        let Err(refused) = self.ask(token, identity) else {
            panic!("{what}: a certificate was given");
        };
        assert_eq!(refused.code, code, "{what}: {refused:?}");
        let said = refused.message;
        assert!(said.starts_with(&format!("{reason}:")), "{what}: {said}");
        assert_eq!(self.metric(family, reason), before + 1, "{what}");
    }
}

/// A token as the API server gives it; bound to a pod if one is named.
fn token(cluster: &Cluster, account: (&str, &str), audience: &str, pod: Option<&str>) -> String {
    let (namespace, name) = account;
    let mut argv = vec![
        "create",
        "token",
        name,
        "-n",
        namespace,
        "--audience",
        audience,
    ];
    if let Some(pod) = pod {
        argv.extend(["--bound-object-kind", "Pod", "--bound-object-name", pod]);
    }
    cluster.kubectl(&argv).unwrap().trim().to_owned()
}

/// A good token's claims, changed and signed anew with a key.
fn changed(token: &str, key: &Path, change: impl FnOnce(&mut Value)) -> String {
    let mut claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(token).unwrap();
    change(&mut claims);
    let header = jsonwebtoken::decode_header(token).unwrap();
    let key = EncodingKey::from_ec_pem(&fs::read(key).unwrap()).unwrap();
    jsonwebtoken::encode(&header, &claims, &key).unwrap()
}

#[test]
fn tokens_and_identities_of_others_are_refused_and_counted() {
    let cluster = shared();
    with_karst(&cluster);
    let namespace = "mesh-tokens";
    let outside = "mesh-outside";
    shop(&cluster, outside);
    enrolled_shop(&cluster, namespace);

    let agents: BTreeMap<String, String> = pods(&cluster, SYSTEM)
        .iter()
        .filter(|pod| text(pod, "/metadata/name").starts_with("karst-node-agent-"))
        .map(|pod| {
            let (node, name) = (text(pod, "/spec/nodeName"), text(pod, "/metadata/name"));
            (node.to_owned(), name.to_owned())
        })
        .collect();
    let agent = agents["node1"].as_str();
    let account = (SYSTEM, "karst-node-agent");
    let authority = Authority::new(&cluster);
    let identity =
        |namespace: &str, name: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{name}");
    let own = identity(namespace, "client");
    let good = token(&cluster, account, "karst-ca", Some(agent));
    assert!(
        authority
            .ask(&good, &own)
            .unwrap()
            .chain_pem
            .contains("CERTIFICATE")
    );

    // Tokens that prove nothing to the authority.
    let unauthenticated = |what: &str, token: &str, reason: &str| {
        authority.refuses(what, token, &own, UNAUTHENTICATED, reason);
    };
    let other = token(
        &cluster,
        account,
        "https://kubernetes.default.svc",
        Some(agent),
    );
    unauthenticated("another audience", &other, "auth_wrong_audience");
    let unbound = token(&cluster, account, "karst-ca", None);
    unauthenticated("bound to no pod", &unbound, "auth_missing_claim");
    let key = cluster.dir().join("pki/sa.key");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let expired = changed(&good, &key, |claims| claims["exp"] = json!(now - 60));
    unauthenticated("expired", &expired, "auth_expired");
    // Kubernetes itself takes tokens of its key, so that the next ones show who does not.
    let signed_again = changed(&good, &key, |_| {});
    authority.ask(&signed_again, &own).unwrap();
    let foreign = authority.folder.path().join("foreign.key");
    fs::write(&foreign, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let forged = changed(&good, &foreign, |_| {});
    unauthenticated("signed by somebody else", &forged, "auth_token_rejected");
    let moved = changed(&good, &key, |claims| {
        claims["kubernetes.io"]["pod"]["uid"] = json!("00000000-0000-0000-0000-000000000000");
    });
    let refused = authority.ask(&moved, &own).unwrap_err();
    assert_eq!(refused.code, UNAUTHENTICATED, "{refused:?}");

    // A pod of the mesh that plays the agent.
    let client = pod(&cluster, namespace, "client");
    let client = text(&client, "/metadata/name");
    let pretender = token(&cluster, (namespace, "client"), "karst-ca", Some(client));
    let refused = authority.ask(&pretender, &own).unwrap_err();
    assert!(
        [DENIED, UNAUTHENTICATED].contains(&refused.code.as_str()),
        "{refused:?}"
    );

    // Identities that are not this agent's to ask for.
    let denied = |identity: &str, reason: &str| {
        authority.refuses(identity, &good, identity, DENIED, reason);
    };
    denied(&identity(namespace, "server"), "ca_identity_not_on_node");
    denied(&identity(outside, "client"), "ca_identity_not_in_mesh");
    denied(
        &own.replace("cluster.local", "other.example"),
        "ca_wrong_trust_domain",
    );
    let of_node2 = token(&cluster, account, "karst-ca", Some(&agents["node2"]));
    let reason = "ca_identity_not_on_node";
    authority.refuses("node2 asks", &of_node2, &own, DENIED, reason);
}
