//! The service-account tokens a kubelet would fetch, signed by a key of the lab, and the key
//! set by which the controller checks them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde::Serialize;
use serde_json::{Value, json};

use crate::paths::Paths;
use crate::state::PodRecord;

/// Who signs the lab's tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Whom they are for.
pub const AUDIENCE: &str = "karst-ca";
/// The namespace of Karst's own workloads.
pub const SYSTEM_NAMESPACE: &str = "karst-system";
/// The node agents' service account.
pub const AGENT_ACCOUNT: &str = "karst-node-agent";
/// Longer than any lab lives, since nobody renews them.
const LIFETIME_SECONDS: u64 = 7 * 24 * 3600;
/// The key's name in the key set.
const KEY_ID: &str = "lab";

/// The lab's signing key.
pub struct TokenKey {
    encoding: EncodingKey,
    public: Vec<u8>,
}

/// What a token says of its bearer.
#[derive(Clone, Debug)]
pub struct Claims {
    /// The bearer's namespace.
    pub namespace: String,
    /// The bearer's service account.
    pub account: String,
    /// The bearer's pod and that pod's uid.
    pub pod: (String, String),
    /// The bearer's node and that node's uid.
    pub node: (String, String),
    /// The audience.
    pub audience: String,
    /// Seconds from now until it ends; may be negative.
    pub seconds_left: i64,
}

impl Claims {
    /// Those of a node's agent.
    pub fn agent(node: &str, node_uid: &str) -> Self {
        Self {
            namespace: SYSTEM_NAMESPACE.to_owned(),
            account: AGENT_ACCOUNT.to_owned(),
            pod: (
                format!("{AGENT_ACCOUNT}-{node}"),
                format!("{AGENT_ACCOUNT}-{node_uid}"),
            ),
            node: (node.to_owned(), node_uid.to_owned()),
            audience: AUDIENCE.to_owned(),
            seconds_left: LIFETIME_SECONDS as i64,
        }
    }
}

impl TokenKey {
    /// The lab's key, made at the first call.
    pub fn load(paths: &Paths) -> Result<Self> {
        let file = paths.control_dir().join("token-key.pem");
        let pem = match fs::read_to_string(&file) {
            Ok(pem) => pem,
            Err(_) => {
                let pem = KeyPair::generate()?.serialize_pem();
                write_secret(&file, &pem)?;
                pem
            }
        };
        let pair = KeyPair::from_pem(&pem).context("reading the token key")?;
        let public = pair.public_key_raw().to_vec();
        ensure!(
            public.len() == 65 && public[0] == 4,
            "the token key is no P-256 key"
        );
        Ok(Self {
            encoding: EncodingKey::from_ec_pem(pem.as_bytes())?,
            public,
        })
    }

    /// The key set that checks its tokens.
    pub fn key_set(&self) -> Value {
        let coordinate = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY_ID,
            "x": coordinate(&self.public[1..33]), "y": coordinate(&self.public[33..]),
        }]})
    }

    /// Signs a token.
    pub fn sign(&self, claims: &Claims) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let header = Header {
            kid: Some(KEY_ID.to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        let Claims {
            namespace,
            account,
            pod,
            node,
            audience,
            seconds_left,
        } = claims;
        let body = Body {
            iss: ISSUER,
            aud: [audience],
            sub: format!("system:serviceaccount:{namespace}:{account}"),
            iat: now.saturating_sub(60),
            nbf: now.saturating_sub(60),
            exp: now.saturating_add_signed(*seconds_left),
            kubernetes: json!({
                "namespace": namespace,
                "serviceaccount": {"name": account, "uid": format!("{namespace}-{account}")},
                "pod": {"name": pod.0, "uid": pod.1},
                "node": {"name": node.0, "uid": node.1},
            }),
        };
        Ok(jsonwebtoken::encode(&header, &body, &self.encoding)?)
    }
}

#[derive(Serialize)]
struct Body<'a> {
    iss: &'a str,
    aud: [&'a str; 1],
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Value,
}

/// Writes the token of a node's agent where the agent reads it.
pub fn write_agent_token(paths: &Paths, node: &str, node_uid: &str) -> Result<PathBuf> {
    let file = paths.node_dir(node).join("token");
    write_secret(
        &file,
        &TokenKey::load(paths)?.sign(&Claims::agent(node, node_uid))?,
    )?;
    Ok(file)
}

/// Writes the token of a pod's service account, as a projected volume would hold it.
pub fn write_pod_token(
    paths: &Paths,
    pod: &PodRecord,
    account: &str,
    node_uid: &str,
) -> Result<()> {
    let claims = Claims {
        namespace: pod.namespace.clone(),
        account: account.to_owned(),
        pod: (pod.name.clone(), pod.uid.clone()),
        ..Claims::agent(&pod.node, node_uid)
    };
    write_secret(
        &paths.pod_token(&pod.uid),
        &TokenKey::load(paths)?.sign(&claims)?,
    )
}

fn write_secret(path: &Path, content: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(content.as_bytes())?;
    Ok(())
}
