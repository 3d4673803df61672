//! One certificate epoch of a workload.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::peer::{uri_identity, validity};
use crate::{IdentityError, SpiffeId, tls};

/// Client configurations kept per epoch, one for each expected peer identity. One holds some
/// 200 bytes and its sessions; beyond this the cache starts afresh.
const MAX_CLIENT_CONFIGS: usize = 1024;

/// Longest chain we accept from a certificate authority, leaf included. TLS stacks refuse
/// chains far shorter than what fits in a message; 8 leaves room for any real hierarchy.
const MAX_CHAIN: usize = 8;

/// Number of a certificate epoch, unique in this process. Connections made under an older
/// epoch of the same identity are drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct CertificateEpoch(u64);

impl CertificateEpoch {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number; the first epoch of a process is 1.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for CertificateEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A workload's certificate and key, and the TLS configurations built from them once.
///
/// The key cannot be read back; [`fmt::Debug`] shows neither key nor certificate bytes.
pub struct WorkloadCertificate {
    id: SpiffeId,
    epoch: CertificateEpoch,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    chain_length: usize,
    chain_pem: String,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
    clients: Mutex<HashMap<SpiffeId, Arc<ClientConfig>>>,
}

impl WorkloadCertificate {
    /// Builds an epoch from PEM texts: the chain leaf first, a PKCS#8, SEC1 or PKCS#1 key, and
    /// the roots.
    ///
    /// # Errors
    /// [`IdentityError::UnusableCertificate`] when a text does not parse, the leaf's identity is
    /// not `id`, the key does not belong to the leaf, or there is no root.
    pub fn from_pem(
        id: SpiffeId,
        chain_pem: &str,
        key_pem: &str,
        roots_pem: &str,
    ) -> Result<Self, IdentityError> {
        let unusable = |problem: String| IdentityError::UnusableCertificate {
            id: id.clone(),
            problem,
        };
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| unusable(format!("private key: {error}")))?;
        let chain = certificates(chain_pem).map_err(|error| unusable(format!("chain: {error}")))?;
        let roots = certificates(roots_pem).map_err(|error| unusable(format!("roots: {error}")))?;
        Self::new(id.clone(), chain, &key, roots, chain_pem.to_owned())
    }

    pub(crate) fn new(
        id: SpiffeId,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
        chain_pem: String,
    ) -> Result<Self, IdentityError> {
        let unusable = |problem: String| IdentityError::UnusableCertificate {
            id: id.clone(),
            problem,
        };
        let leaf = chain
            .first()
            .ok_or_else(|| unusable("the chain is empty".to_owned()))?;
        if chain.len() > MAX_CHAIN {
            return Err(unusable(format!(
                "the chain has more than {MAX_CHAIN} certificates"
            )));
        }
        let actual = uri_identity(leaf).map_err(|error| unusable(error.to_string()))?;
        if actual != id {
            return Err(unusable(format!("it is for {actual}")));
        }
        let (not_before, not_after, serial) =
            validity(leaf).map_err(|error| unusable(error.to_string()))?;
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(roots);
        if added == 0 {
            return Err(unusable("there is no usable root certificate".to_owned()));
        }
        let roots = Arc::new(store);
        let chain_length = chain.len();
        let signing_key = tls::provider()
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|error| unusable(format!("private key: {error}")))?;
        let key = CertifiedKey::new(chain, signing_key);
        key.keys_match()
            .map_err(|error| unusable(format!("the key is not the certificate's: {error}")))?;
        let key = Arc::new(key);
        let server = tls::server_config(&key, &roots, id.trust_domain())
            .map_err(|error| unusable(format!("server configuration: {error}")))?;
        Ok(Self {
            id,
            epoch: CertificateEpoch::next(),
            serial,
            not_before,
            not_after,
            chain_length,
            chain_pem,
            key,
            roots,
            server: Arc::new(server),
            clients: Mutex::new(HashMap::new()),
        })
    }

    /// Whose certificate this is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Serial number of the leaf, lower-case hex.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Start of the leaf's validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the leaf's validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the leaf is within its validity at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Number of this epoch.
    #[must_use]
    pub fn epoch(&self) -> CertificateEpoch {
        self.epoch
    }

    /// Certificates in the chain that is sent, the leaf included.
    #[must_use]
    pub fn chain_length(&self) -> usize {
        self.chain_length
    }

    /// The chain in PEM, for display.
    #[must_use]
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The TLS server configuration of this epoch, built once.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// The TLS client configuration of this epoch for one expected peer, built once for each.
    ///
    /// # Errors
    /// [`IdentityError::UnusableCertificate`] when the TLS library refuses the material.
    pub fn client_config(&self, expected: &SpiffeId) -> Result<Arc<ClientConfig>, IdentityError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(expected) {
            return Ok(Arc::clone(config));
        }
        let config = tls::client_config(&self.key, &self.roots, expected).map_err(|error| {
            IdentityError::UnusableCertificate {
                id: self.id.clone(),
                problem: format!("client configuration: {error}"),
            }
        })?;
        if clients.len() >= MAX_CLIENT_CONFIGS {
            clients.clear();
        }
        let config = Arc::new(config);
        clients.insert(expected.clone(), Arc::clone(&config));
        Ok(config)
    }
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("id", &self.id)
            .field("epoch", &self.epoch)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// All certificates of a PEM text, in order.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())
}
