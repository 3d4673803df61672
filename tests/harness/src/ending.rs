//! A certificate authority of one's own that will soon have ended.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair};

/// How long ago its certificates began.
const BEGAN: Duration = Duration::from_secs(3600);

/// Such an authority: PEM texts, as a controller takes them.
pub struct EndingAuthority {
    /// The signing certificate, which ends soon.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The root that signed it, which does not.
    pub root: String,
}

impl EndingAuthority {
    /// One with a root of its own, whose signing certificate ends in `left`.
    pub fn new(left: Duration) -> Result<Self> {
        let root = CertifiedIssuer::self_signed(params("root"), KeyPair::generate()?)?;
        Self::signed_by(&root, root.pem(), left)
    }

    /// One below a root that is trusted already, of which both the certificate and the key are given.
    pub fn under(root: &str, key: &str, left: Duration) -> Result<Self> {
        let issuer = Issuer::from_ca_cert_pem(root, KeyPair::from_pem(key)?)?;
        Self::signed_by(&issuer, root.to_owned(), left)
    }

    fn signed_by(issuer: &Issuer<'_, KeyPair>, root: String, left: Duration) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut signer = params("signer");
        signer.not_after = (SystemTime::now() + left).into();
        Ok(Self {
            certificate: signer.signed_by(&key, issuer)?.pem(),
            key: key.serialize_pem(),
            root,
        })
    }

    /// A certificate with which to serve under `name`, and its key: PEM texts, the certificate with the signing one
    /// behind it.
    pub fn serving(&self, name: &str) -> Result<(String, String)> {
        let signer = KeyPair::from_pem(&self.key)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, signer)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new([name.to_owned()])?.signed_by(&key, &issuer)?;
        Ok((leaf.pem() + &self.certificate, key.serialize_pem()))
    }

    /// Writes it into `folder`; gives the arguments with which a controller takes it from there.
    pub fn controller_args(&self, folder: &Path) -> Result<Vec<String>> {
        let mut args = Vec::new();
        for (what, text) in [
            ("cert", &self.certificate),
            ("key", &self.key),
            ("root", &self.root),
        ] {
            let file = folder.join(format!("{what}.pem"));
            fs::write(&file, text)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
            args.push(format!("--ca-{what}={}", file.display()));
        }
        Ok(args)
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = (SystemTime::now() - BEGAN).into();
    params
}
