//! A certificate authority of one's own that will soon have ended.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// How long ago its certificates began.
const BEGAN: Duration = Duration::from_secs(3600);

/// The files of such an authority, as a controller takes them.
pub struct EndingAuthority {
    folder: PathBuf,
}

impl EndingAuthority {
    /// Writes into `folder` the files of one whose signing certificate ends in `left`.
    pub fn write(folder: &Path, left: Duration) -> Result<Self> {
        let now = SystemTime::now();
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.not_before = (now - BEGAN).into();
            params
        };
        let root = CertifiedIssuer::self_signed(params("root"), KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let mut signer = params("signer");
        signer.not_after = (now + left).into();
        let signer = signer.signed_by(&key, &root)?;
        let this = Self {
            folder: folder.to_owned(),
        };
        fs::write(this.file("cert"), signer.pem())?;
        fs::write(this.file("root"), root.pem())?;
        fs::write(this.file("key"), key.serialize_pem())?;
        fs::set_permissions(this.file("key"), fs::Permissions::from_mode(0o600))?;
        Ok(this)
    }

    fn file(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{what}.pem"))
    }

    /// Arguments for the controller.
    pub fn controller_args(&self) -> Vec<String> {
        ["cert", "key", "root"]
            .map(|what| format!("--ca-{what}={}", self.file(what).display()))
            .to_vec()
    }
}
