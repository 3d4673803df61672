//! Certificates, keys and authorities.

use std::sync::{Arc, OnceLock};

use hashbrown::{HashMap, HashSet};
use karst_api::waypoint as wire;
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{ConfigError, at_most};
use crate::table::Hostname;

/// Certificates in one chain, or authorities in one bundle. Bundles of operating systems have about 150.
const MAX_CERTIFICATES: usize = 1024;

/// The one crypto provider. It is passed explicitly: an implicit default fails once a second one is linked in.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider()))
}

/// A secret, read and checked.
#[derive(Debug, Default)]
pub(super) struct Secret {
    pub(super) certificate: Option<Certificate>,
    pub(super) authorities: Vec<CertificateDer<'static>>,
}

/// A certificate with its key.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    /// DNS names it is for.
    pub(super) names: Vec<Hostname>,
}

impl Secret {
    pub(super) fn new(wire: &wire::TlsSecret) -> Result<Self, ConfigError> {
        let has_chain = !wire.certificate_chain.is_empty();
        let certificate = match (has_chain, !wire.private_key.is_empty()) {
            (true, true) => Some(Certificate::new(wire)?),
            (false, false) => None,
            (true, false) => return Err(ConfigError::new("private_key", "is missing")),
            (false, true) => return Err(ConfigError::new("certificate_chain", "is missing")),
        };
        let authorities = certificates("authorities", wire.authorities.as_bytes())?;
        if certificate.is_none() && authorities.is_empty() {
            let problem = "is empty, and so is certificate_chain";
            return Err(ConfigError::new("authorities", problem));
        }
        if !authorities.is_empty() && root_store(&authorities).is_empty() {
            let problem = "has no certificate that can be used";
            return Err(ConfigError::new("authorities", problem));
        }
        Ok(Self {
            certificate,
            authorities,
        })
    }
}

impl Certificate {
    fn new(wire: &wire::TlsSecret) -> Result<Self, ConfigError> {
        let chain = certificates("certificate_chain", wire.certificate_chain.as_bytes())?;
        let Some(leaf) = chain.first() else {
            let problem = "has no certificate in PEM form";
            return Err(ConfigError::new("certificate_chain", problem));
        };
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|error| {
            let problem = format!("begins with a certificate that cannot be read: {error}");
            ConfigError::new("certificate_chain", problem)
        })?;
        let names = leaf.valid_dns_names().map(Hostname::parse);
        let names = names.filter_map(Result::ok).collect();
        let bad_key = |problem: String| ConfigError::new("private_key", problem);
        let key = PrivateKeyDer::from_pem_slice(&wire.private_key)
            .map_err(|error| bad_key(format!("is no key in PEM form: {error}")))?;
        let key = CertifiedKey::from_der(chain, key, provider())
            .map_err(|error| bad_key(format!("does not fit the certificate: {error}")))?;
        let key = Arc::new(key);
        Ok(Self { key, names })
    }
}

fn certificates(field: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let list = CertificateDer::pem_slice_iter(pem).take(MAX_CERTIFICATES + 1);
    let list = list
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| ConfigError::new(field, format!("is not in PEM form: {error}")))?;
    at_most(field, list.len(), MAX_CERTIFICATES)?;
    Ok(list)
}

/// Authorities to verify with. Those that cannot be used are left out, as others do: bundles have oddities.
pub(super) fn root_store<'a>(
    authorities: impl IntoIterator<Item = &'a CertificateDer<'static>>,
) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.into_iter().cloned());
    roots
}

/// Secrets by name.
#[derive(Default)]
pub(super) struct Secrets {
    held: HashMap<String, Arc<Secret>>,
    /// Those no version of which was valid. Nothing waits for them.
    rejected: HashSet<String>,
}

/// What is known under a name.
pub(super) enum Lookup<T> {
    /// It is there.
    Found(T),
    /// It came, and it was invalid.
    Rejected,
    /// It has not come yet.
    Missing,
}

impl Secrets {
    /// Takes a secret over, or keeps the last good one of its name.
    pub(super) fn update(&mut self, wire: &wire::TlsSecret) -> Result<(), ConfigError> {
        match Secret::new(wire) {
            Ok(secret) => {
                self.rejected.remove(&wire.name);
                self.held.insert(wire.name.clone(), Arc::new(secret));
                Ok(())
            }
            Err(error) => {
                self.reject(&wire.name);
                Err(error)
            }
        }
    }

    /// Notes that a version of a secret cannot be used.
    pub(super) fn reject(&mut self, name: &str) {
        if !self.held.contains_key(name) {
            self.rejected.insert(name.to_owned());
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.held.remove(name);
        self.rejected.remove(name);
    }

    pub(super) fn get(&self, name: &str) -> Lookup<&Arc<Secret>> {
        match self.held.get(name) {
            Some(secret) => Lookup::Found(secret),
            None if self.rejected.contains(name) => Lookup::Rejected,
            None => Lookup::Missing,
        }
    }

    pub(super) fn is_missing(&self, name: &str) -> bool {
        matches!(self.get(name), Lookup::Missing)
    }
}
