//! Used inside the pod of Envoy: gets the pod's certificate from the controller, as our waypoint does,
//! and becomes Envoy.

use std::{fs, os::unix::fs::OpenOptionsExt, os::unix::process::CommandExt, path::PathBuf};
use std::{io::Write, process::Command};

use anyhow::{Context, Result};
use karst_identity::{
    CertificateAuthority, CertificateRequest, GrpcCa, GrpcCaConfig, SignedChain, SpiffeId,
};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
    string::Ia5String,
};

use super::envoy::{CERTIFICATE, KEY, ROOTS};

/// Lifetime of the certificate, seconds: longer than any run.
const VALIDITY_SECONDS: i64 = 24 * 3600;

/// Arguments of `envoy`.
#[derive(clap::Args)]
pub struct Args {
    /// Envoy's program.
    #[arg(long)]
    program: PathBuf,
    /// Its configuration.
    #[arg(long)]
    config: PathBuf,
    /// Its threads.
    #[arg(long)]
    workers: u32,
    /// Whom the certificate is for.
    #[arg(long)]
    identity: String,
    /// `HOST:PORT` of the controller.
    #[arg(long)]
    controller: String,
    /// Name in the controller's certificate.
    #[arg(long)]
    controller_name: String,
    /// The mesh's root.
    #[arg(long)]
    root_cert: PathBuf,
    /// The pod's token.
    #[arg(long)]
    token: PathBuf,
}

/// Writes the certificate into the working directory, which is the pod's, and becomes Envoy.
pub fn run(args: &Args) -> Result<()> {
    let id = SpiffeId::parse(&args.identity).context("reading the identity")?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("making a key")?;
    let signed = signed(args, &id, &key)?;
    fs::write(CERTIFICATE, signed.chain_pem).context("writing the certificate")?;
    fs::write(ROOTS, signed.roots_pem).context("writing the roots")?;
    let mut file = fs::OpenOptions::new();
    file.create(true).truncate(true).write(true).mode(0o600);
    file.open(KEY)
        .and_then(|mut file| file.write_all(key.serialize_pem().as_bytes()))
        .context("writing the key")?;
    let error = Command::new(&args.program)
        .arg("--config-path")
        .arg(&args.config)
        .args(["--concurrency", &args.workers.to_string()])
        // What it shares with a successor is for the whole machine, where another Envoy may run.
        .args(["--disable-hot-restart", "--log-level", "warning"])
        .exec();
    Err(error).with_context(|| format!("starting {}", args.program.display()))
}

fn signed(args: &Args, id: &SpiffeId, key: &KeyPair) -> Result<SignedChain> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = Ia5String::try_from(id.as_str()).context("writing the identity")?;
    params.subject_alt_names = vec![SanType::URI(name)];
    let csr_pem = params
        .serialize_request(key)
        .and_then(|request| request.pem())
        .context("making a certificate request")?;
    let authority = GrpcCa::new(GrpcCaConfig {
        address: args.controller.clone(),
        server_name: args.controller_name.clone(),
        root_file: args.root_cert.clone(),
        token_file: args.token.clone(),
        cluster_id: "Kubernetes".to_owned(),
        validity_seconds: VALIDITY_SECONDS,
    });
    let request = CertificateRequest {
        id: id.clone(),
        csr_pem,
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?
        .block_on(authority.sign(request))
        .context("asking the controller for a certificate")
}
