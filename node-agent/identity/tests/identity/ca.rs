//! A certificate authority for tests, of this crate and of those that build on it.

use karst_identity::{SpiffeId, WorkloadCertificate};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use time::{Duration, OffsetDateTime};

pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What to put into a leaf.
pub struct Leaf {
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

impl Leaf {
    pub fn of(id: &SpiffeId) -> Self {
        Self {
            uris: vec![id.to_string()],
            dns: Vec::new(),
            not_before: OffsetDateTime::now_utc() - Duration::minutes(5),
            not_after: OffsetDateTime::now_utc() + Duration::hours(1),
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = self
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        let dns = self.dns.iter();
        params
            .subject_alt_names
            .extend(dns.map(|name| SanType::DnsName(name.as_str().try_into().unwrap())));
        params.not_before = self.not_before;
        params.not_after = self.not_after;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params
    }
}

pub fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/test/sa/{text}")).unwrap()
}

impl TestCa {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    /// Chain and key in PEM.
    pub fn sign(&self, leaf: &Leaf) -> (String, String) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let signed = leaf.params().signed_by(&key, &self.issuer).unwrap();
        (signed.pem(), key.serialize_pem())
    }

    /// A chain for a key that made a certificate request, and what it asked for.
    pub fn sign_request(&self, csr_pem: &str, leaf: &Leaf) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        request.params = leaf.params();
        request.signed_by(&self.issuer).unwrap().pem()
    }

    pub fn issue(&self, id: &SpiffeId) -> WorkloadCertificate {
        self.issue_trusting(id, self, &Leaf::of(id))
    }

    /// A certificate of this authority whose owner trusts `roots`.
    pub fn issue_trusting(&self, id: &SpiffeId, roots: &Self, leaf: &Leaf) -> WorkloadCertificate {
        let (chain, key) = self.sign(leaf);
        WorkloadCertificate::from_pem(id.clone(), &chain, &key, &roots.root_pem()).unwrap()
    }
}
