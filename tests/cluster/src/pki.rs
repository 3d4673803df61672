//! The cluster's keys and certificates, and the configurations by which programs and people reach
//! the API server. All of it is made anew for each cluster and goes with it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use karst_harness::files::write;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use crate::paths::{API_SERVER, FIRST_SERVICE, Paths, node_address, node_name};

/// Clocks of one machine agree; a day covers a clock that is set back.
const BACKDATE: Duration = Duration::days(1);

/// Longer than any test cluster lives: nothing in it renews certificates.
const LIFETIME: Duration = Duration::days(365);

/// The names by which pods and programs call the API server.
const API_NAMES: &[&str] = &[
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
];

/// Who logs in to the API server with a certificate: file name, common name, organization.
const USERS: &[(&str, &str, &str)] = &[
    ("admin", "kubernetes-admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];

/// A certificate authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one called `name` and writes its certificate and key.
    fn create(dir: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = subject(name, "")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let pem = params.self_signed(&key)?.pem();
        write(&dir.join(format!("{name}.crt")), &pem)?;
        write_key(&dir.join(format!("{name}.key")), &key.serialize_pem())?;
        let issuer = Issuer::new(params, key);
        Ok(Self { pem, issuer })
    }

    /// Issues a certificate for both sides of a connection: certificate and key, in PEM.
    fn issue(&self, mut params: CertificateParams) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn issue_to(&self, dir: &Path, name: &str, params: CertificateParams) -> Result<()> {
        let (certificate, key) = self.issue(params)?;
        write(&dir.join(format!("{name}.crt")), certificate)?;
        write_key(&dir.join(format!("{name}.key")), &key)
    }
}

fn subject(name: &str, organization: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if !organization.is_empty() {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + LIFETIME;
    Ok(params)
}

fn server(
    name: &str,
    organization: &str,
    names: &[&str],
    addresses: &[Ipv4Addr],
) -> Result<CertificateParams> {
    let mut params = subject(name, organization)?;
    for name in names {
        params
            .subject_alt_names
            .push(rcgen::SanType::DnsName((*name).try_into()?));
    }
    for address in addresses {
        params
            .subject_alt_names
            .push(rcgen::SanType::IpAddress(IpAddr::V4(*address)));
    }
    Ok(params)
}

/// Makes all of a cluster's keys, certificates and configurations.
pub fn create(paths: &Paths, nodes: u8) -> Result<()> {
    let dir = paths.pki();
    let cluster = Authority::create(&dir, "cluster-ca")?;
    let front = Authority::create(&dir, "front-proxy-ca")?;
    front.issue_to(&dir, "front-proxy", subject("front-proxy-client", "")?)?;
    let addresses = [API_SERVER, FIRST_SERVICE, Ipv4Addr::LOCALHOST];
    let server_params = server("kube-apiserver", "", API_NAMES, &addresses)?;
    cluster.issue_to(&dir, "apiserver", server_params)?;
    let client = subject("kube-apiserver-kubelet-client", "system:masters")?;
    cluster.issue_to(&dir, "apiserver-kubelet", client)?;
    for (file, name, organization) in USERS {
        let user = cluster.issue(subject(name, organization)?)?;
        write_kubeconfig(paths, file, &cluster.pem, &user)?;
    }
    for number in 1..=nodes {
        let node = node_name(number);
        let params = server(
            &format!("system:node:{node}"),
            "system:nodes",
            &[&node],
            &[node_address(number)],
        )?;
        let user = cluster.issue(params)?;
        write(&dir.join(format!("{node}.crt")), &user.0)?;
        write_key(&dir.join(format!("{node}.key")), &user.1)?;
        write_kubeconfig(paths, &node, &cluster.pem, &user)?;
    }
    // Service account tokens.
    let key = KeyPair::generate()?;
    write_key(&dir.join("sa.key"), &key.serialize_pem())?;
    write(&dir.join("sa.pub"), key.public_key_pem())
}

fn write_kubeconfig(
    paths: &Paths,
    file: &str,
    authority: &str,
    (certificate, key): &(String, String),
) -> Result<()> {
    let data = |pem: &str| BASE64_STANDARD.encode(pem);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "karst", "cluster": {
            "server": format!("https://{API_SERVER}:6443"),
            "certificate-authority-data": data(authority),
        }}],
        "users": [{"name": file, "user": {
            "client-certificate-data": data(certificate),
            "client-key-data": data(key),
        }}],
        "contexts": [{"name": "karst", "context": {"cluster": "karst", "user": file}}],
        "current-context": "karst",
    });
    write_key(
        &paths.kubeconfig(file),
        &serde_json::to_string_pretty(&config)?,
    )
}

/// Writes what only root may read.
fn write_key(path: &Path, text: &str) -> Result<()> {
    write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", path.display()))
}
