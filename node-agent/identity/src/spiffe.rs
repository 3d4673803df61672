//! SPIFFE ids of workloads, in the one form a mesh of Kubernetes workloads uses.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use crate::IdentityError;

/// Longest accepted id in bytes. The SPIFFE ID specification (section 2.3) sets it.
const MAX_ID_BYTES: usize = 2048;
/// Longest accepted trust domain in bytes (SPIFFE ID specification, section 2.3).
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// Longest namespace or service account name in bytes: a DNS-1123 subdomain of Kubernetes.
const MAX_NAME_BYTES: usize = 253;

const SCHEME: &str = "spiffe://";
const NAMESPACE_LABEL: &str = "/ns/";
const ACCOUNT_LABEL: &str = "/sa/";

/// A trust domain: the name of the authority whose root vouches for a set of identities.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks a name: 1 to 255 bytes of lower-case letters, digits, `.`, `-` and `_`.
    ///
    /// # Errors
    /// [`IdentityError::InvalidSpiffeId`] when it is empty, too long or holds another byte.
    pub fn new(name: &str) -> Result<Self, IdentityError> {
        check_trust_domain(name, name)?;
        Ok(Self(name.into()))
    }

    /// The name, e.g. `cluster.local`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cloning copies a pointer. Equality, order and hash are those of the text, which is unique
/// for an id because parsing accepts one spelling only.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_end: u16,
    namespace_end: u16,
}

impl SpiffeId {
    /// Builds an id from its parts.
    ///
    /// # Errors
    /// [`IdentityError::InvalidSpiffeId`] when a part is empty, too long or holds a byte that
    /// may not stand in an id.
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        Self::parse(&format!(
            "{SCHEME}{trust_domain}{NAMESPACE_LABEL}{namespace}{ACCOUNT_LABEL}{service_account}"
        ))
    }

    /// Parses the exact form `spiffe://<td>/ns/<ns>/sa/<sa>`; nothing is normalised.
    ///
    /// # Errors
    /// [`IdentityError::InvalidSpiffeId`] for anything else, with what is wrong.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_ID_BYTES {
            return Err(invalid(text, "longer than 2048 bytes"));
        }
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| invalid(text, "does not start with spiffe://"))?;
        let mut segments = rest.split('/');
        let mut next = || segments.next();
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (next(), next(), next(), next(), next(), next())
        else {
            return Err(invalid(text, "is not of the form spiffe://TD/ns/NS/sa/SA"));
        };
        check_trust_domain(text, trust_domain)?;
        check_name(text, namespace)?;
        check_name(text, account)?;
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + NAMESPACE_LABEL.len() + namespace.len();
        let too_long = |_| invalid(text, "longer than 2048 bytes");
        Ok(Self {
            text: text.into(),
            trust_domain_end: u16::try_from(trust_domain_end).map_err(too_long)?,
            namespace_end: u16::try_from(namespace_end).map_err(too_long)?,
        })
    }

    /// The whole id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The id without its scheme, as authorization policies write it: `<td>/ns/<ns>/sa/<sa>`.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.part(SCHEME.len(), self.text.len())
    }

    /// The trust domain, e.g. `cluster.local`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.part(SCHEME.len(), usize::from(self.trust_domain_end))
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let start = usize::from(self.trust_domain_end) + NAMESPACE_LABEL.len();
        self.part(start, usize::from(self.namespace_end))
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        let start = usize::from(self.namespace_end) + ACCOUNT_LABEL.len();
        self.part(start, self.text.len())
    }

    fn part(&self, start: usize, end: usize) -> &str {
        self.text.get(start..end).unwrap_or_default()
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::parse(text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl serde::Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

fn invalid(value: &str, problem: &'static str) -> IdentityError {
    // The value may come from a peer; what we keep for the log is bounded.
    let value = value.chars().take(128).collect();
    IdentityError::InvalidSpiffeId { value, problem }
}

fn check_trust_domain(whole: &str, name: &str) -> Result<(), IdentityError> {
    if name.is_empty() || name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(invalid(whole, "trust domain must be of 1 to 255 bytes"));
    }
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if !name.bytes().all(allowed) {
        return Err(invalid(whole, "trust domain holds a byte it may not hold"));
    }
    Ok(())
}

fn check_name(whole: &str, name: &str) -> Result<(), IdentityError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(invalid(whole, "path segment must be of 1 to 253 bytes"));
    }
    if matches!(name, "." | "..") {
        return Err(invalid(whole, "path segment is relative"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if !name.bytes().all(allowed) {
        return Err(invalid(whole, "path segment holds a byte it may not hold"));
    }
    Ok(())
}
