//! Whether an authority may follow the one that the mesh trusts.
//!
//! Agents learn the roots with their certificates and renew those at half of their life. So a root
//! has to be published before anything is signed under it, and stay published until nothing that
//! was signed under it is left. The controller holds the operator to the order; the waits between
//! the steps are the operator's, as only they know that every controller was restarted.

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use x509_parser::{certificate::X509Certificate, error::X509Error, pem::Pem};

use super::authority::{Material, pem_certificates};
use crate::cluster::roots::{Bundle, NAME};

/// Certificates between the signing one and its root.
const MAX_DEPTH: usize = 8;

/// What to do, whichever step was left out.
const STEPS: &str = "change the root in three steps, with all controllers restarted and the longest \
    certificate lifetime waited for after each: the new root added to root-cert.pem and the old key \
    kept, then the new key, then the old root removed; controller/deploy/README.md says more under \
    'Certificates'";

/// Whether there is a root in a bundle.
pub fn has_roots(bundle: &Bundle) -> bool {
    !pem_certificates(&bundle.roots).is_empty()
}

/// Checks that an authority can be used where this is published.
///
/// # Errors
/// When certificates would be signed under a root that is not published, or one is no longer
/// published that certificates may still be signed under.
pub fn check(published: &Bundle, material: &Material) -> anyhow::Result<()> {
    if !has_roots(published) {
        return Ok(());
    }
    let known = anchors(&published.roots)?;
    let signing = signing_root(material)?;
    ensure!(
        known.contains(&signing),
        "the authority signs under a root that is not in the ConfigMap {NAME}, so nobody would \
         trust what it signs: {STEPS}"
    );
    let kept = anchors(&material.roots).context("root-cert.pem")?;
    let keeps_all = known.iter().all(|anchor| kept.contains(anchor));
    ensure!(
        keeps_all || published.signed_under.as_deref() == Some(&signing),
        "root-cert.pem lacks a root that the ConfigMap {NAME} has, and the mesh's certificates were \
         not signed under the other one so far: {STEPS}"
    );
    Ok(())
}

/// What stands for the root that an authority signs under. The same key under the same name is the
/// same root: its certificate may be renewed at any time.
///
/// # Errors
/// When the signing certificate does not lead to any of the roots.
pub fn signing_root(material: &Material) -> anyhow::Result<String> {
    let certificates = pem_certificates(&material.certificates);
    let roots = pem_certificates(&material.roots);
    let anchors = anchors(&material.roots).context("root-cert.pem")?;
    let mut current = certificates
        .first()
        .context("no signing certificate was found")?;
    for _ in 0..=MAX_DEPTH {
        let found = anchor(current)?;
        if anchors.contains(&found) {
            return Ok(found);
        }
        let issuer = roots.iter().chain(&certificates);
        let mut issuer = issuer.filter(|other| other.contents != current.contents);
        current = match issuer.find(|issuer| has_issued(issuer, current)) {
            Some(issuer) => issuer,
            None => break,
        };
    }
    anyhow::bail!(
        "the signing certificate was not issued by a root in root-cert.pem, nor under one by those \
         in cert-chain.pem: add what is missing"
    )
}

fn has_issued(issuer: &Pem, certificate: &Pem) -> bool {
    let (Ok(issuer), Ok(certificate)) = (issuer.parse_x509(), certificate.parse_x509()) else {
        return false;
    };
    issuer.subject() == certificate.issuer()
        && match certificate.verify_signature(Some(issuer.public_key())) {
            Ok(()) => true,
            // Agents may know an algorithm that this library does not; the names have to do.
            Err(error) => error == X509Error::SignatureUnsupportedAlgorithm,
        }
}

fn anchors(roots: &str) -> anyhow::Result<Vec<String>> {
    pem_certificates(roots).iter().map(anchor).collect()
}

/// Stands for a root: its name and its key, which is all that is looked at in it.
fn anchor(certificate: &Pem) -> anyhow::Result<String> {
    let parsed: X509Certificate<'_> = certificate
        .parse_x509()
        .context("a certificate cannot be read")?;
    let mut hash = Sha256::new();
    for part in [parsed.subject().as_raw(), parsed.public_key().raw] {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    let bytes = hash.finalize();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::authority::{MadeRoot, make_root};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    fn root() -> MadeRoot {
        // All of one name, as the controller's own are.
        make_root("t").unwrap()
    }

    /// An authority that signs under the first of its roots.
    fn material(roots: &[&MadeRoot]) -> Material {
        Material {
            key: roots[0].key.clone(),
            certificates: roots[0].certificate.clone(),
            roots: bundle(roots, None).roots,
        }
    }

    fn bundle(roots: &[&MadeRoot], signed_under: Option<&MadeRoot>) -> Bundle {
        Bundle {
            roots: roots.iter().map(|root| root.certificate.as_str()).collect(),
            signed_under: signed_under.map(|root| signing_root(&material(&[root])).unwrap()),
        }
    }

    fn problem(published: &Bundle, material: &Material) -> String {
        check(published, material)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn a_root_is_changed_in_three_steps_and_in_no_other_way() {
        let (old, new) = (root(), root());
        let start = bundle(&[&old], Some(&old));
        let both = bundle(&[&old, &new], Some(&old));
        let signed = bundle(&[&new, &old], Some(&new));
        for (step, published, next) in [
            ("a restart", &start, material(&[&old])),
            ("both are published", &start, material(&[&old, &new])),
            ("never mind", &both, material(&[&old])),
            ("the new one signs", &both, material(&[&new, &old])),
            ("back", &signed, material(&[&old, &new])),
            ("the old one goes", &signed, material(&[&new])),
        ] {
            assert_eq!(problem(published, &next), "", "{step}");
        }
        for (step, published, next) in [
            ("another one", &start, material(&[&new])),
            (
                "both, and the new one signs",
                &start,
                material(&[&new, &old]),
            ),
        ] {
            let problem = problem(published, &next);
            assert!(
                problem.contains("not in the ConfigMap"),
                "{step}: {problem}"
            );
        }
        let unsaid = bundle(&[&old, &new], None);
        for (step, published, next) in [
            (
                "the new one signs and the old one goes",
                &both,
                material(&[&new]),
            ),
            ("back and the new one goes", &signed, material(&[&old])),
            ("nobody has said what signed", &unsaid, material(&[&new])),
        ] {
            let problem = problem(published, &next);
            assert!(problem.contains("lacks a root"), "{step}: {problem}");
        }
    }

    #[test]
    fn where_nothing_is_published_anything_is_right() {
        for nothing in ["", "garbage"] {
            let nothing = Bundle {
                roots: nothing.to_owned(),
                signed_under: None,
            };
            assert_eq!(problem(&nothing, &material(&[&root()])), "");
        }
    }

    #[test]
    fn an_intermediate_signs_under_its_own_root() {
        let (used, other) = (root(), root());
        let key = KeyPair::from_pem(&used.key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&used.certificate, key).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "intermediate");
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let mut plugged_in = Material {
            key: key.serialize_pem(),
            certificates: certificate.pem(),
            roots: bundle(&[&other, &used], None).roots,
        };
        assert_eq!(
            signing_root(&plugged_in).unwrap(),
            signing_root(&material(&[&used])).unwrap()
        );
        assert_eq!(problem(&bundle(&[&used], None), &plugged_in), "");
        plugged_in.roots = other.certificate;
        let problem = signing_root(&plugged_in).unwrap_err().to_string();
        assert!(problem.contains("root-cert.pem"), "{problem}");
    }
}
