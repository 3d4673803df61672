//! The certificate the controller serves with: from its own authority, renewed while it runs.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{error, info};

use crate::ca::authority::Authority;

/// Wait before a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// The serving certificate; new connections use the latest one.
pub struct ServingCertificate {
    authority: Arc<Authority>,
    names: Vec<String>,
    current: ArcSwap<CertifiedKey>,
}

impl std::fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingCertificate")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl ServingCertificate {
    /// Makes the first certificate. Returns it with the time to renew it.
    ///
    /// # Errors
    /// When a name is not usable.
    pub fn new(
        authority: Arc<Authority>,
        names: Vec<String>,
    ) -> anyhow::Result<(Arc<Self>, Instant)> {
        let (first, renew_at) = make(&authority, &names)?;
        let certificate = Self {
            authority,
            names,
            current: ArcSwap::from_pointee(first),
        };
        Ok((Arc::new(certificate), renew_at))
    }

    /// Renews at half of the lifetime, for ever.
    pub async fn renew(self: Arc<Self>, mut renew_at: Instant) {
        loop {
            tokio::time::sleep_until(renew_at).await;
            renew_at = match make(&self.authority, &self.names) {
                Ok((renewed, next)) => {
                    self.current.store(Arc::new(renewed));
                    info!("serving certificate renewed");
                    next
                }
                Err(problem) => {
                    error!(
                        reason = "serving_certificate_not_renewed",
                        problem = format!("{problem:#}"),
                        "serving certificate not renewed"
                    );
                    Instant::now() + RETRY
                }
            };
        }
    }

    /// TLS 1.2 or 1.3, HTTP/2. Callers authenticate by token, so no client certificate is asked for.
    ///
    /// # Errors
    /// When the crypto provider lacks something, which it does not.
    pub fn server_config(self: Arc<Self>) -> anyhow::Result<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .context("choosing TLS versions")?
            .with_no_client_auth()
            .with_cert_resolver(self);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn make(authority: &Authority, names: &[String]) -> anyhow::Result<(CertifiedKey, Instant)> {
    let (chain, key, not_after) = authority
        .serving(names)
        .context("making the serving certificate")?;
    let key = aws_lc_rs::sign::any_supported_type(&key).context("reading the serving key")?;
    let lifetime = not_after - OffsetDateTime::now_utc();
    let half = Duration::try_from(lifetime / 2).unwrap_or_default();
    Ok((
        CertifiedKey::new(chain, key),
        Instant::now() + half.max(RETRY),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::authority::AuthoritySource;

    #[tokio::test]
    async fn a_renewed_certificate_takes_over_without_a_restart() {
        let folder = tempfile::TempDir::new().unwrap();
        let source = AuthoritySource::SelfMade {
            state: folder.path().to_owned(),
        };
        let day = time::Duration::DAY;
        let authority = Authority::open(&source, "cluster.local", day, day).unwrap();
        let names = vec!["controller.test".to_owned(), "192.0.2.1".to_owned()];
        let (certificate, renew_at) = ServingCertificate::new(Arc::new(authority), names).unwrap();
        let hours = renew_at.duration_since(Instant::now()).as_secs() / 3600;
        assert!((11..=12).contains(&hours), "half of a day, not {hours} h");

        let before = certificate.current.load_full();
        let renewal = tokio::spawn(certificate.clone().renew(Instant::now()));
        let replaced = async {
            while Arc::ptr_eq(&before, &certificate.current.load()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), replaced)
            .await
            .unwrap();
        renewal.abort();
        let after = certificate.current.load_full();
        assert_ne!(
            after.end_entity_cert().unwrap(),
            before.end_entity_cert().unwrap()
        );
    }
}
