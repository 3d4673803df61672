//! Certificates for tests, and handshakes without sockets.

use std::sync::Arc;

use karst_api::waypoint as wire;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

/// An authority.
pub(in crate::config) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(in crate::config) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// A secret with a certificate for `names`; those with a colon are URIs.
    pub(in crate::config) fn secret(&self, name: &str, names: &[&str]) -> wire::TlsSecret {
        let mut params = CertificateParams::default();
        let san = |name: &&str| {
            let text = (*name).try_into().unwrap();
            if name.contains(':') {
                SanType::URI(text)
            } else {
                SanType::DnsName(text)
            }
        };
        params.subject_alt_names = names.iter().map(san).collect();
        let key = KeyPair::generate().unwrap();
        wire::TlsSecret {
            name: name.to_owned(),
            certificate_chain: params.signed_by(&key, &self.0).unwrap().pem(),
            private_key: key.serialize_pem().into_bytes(),
            authorities: String::new(),
        }
    }

    /// A secret with the authority.
    pub(in crate::config) fn bundle(&self, name: &str) -> wire::TlsSecret {
        wire::TlsSecret {
            name: name.to_owned(),
            authorities: self.0.pem(),
            ..Default::default()
        }
    }
}

/// Shakes hands; returns both ends, or the first error of either.
pub(in crate::config) fn handshake(
    client: &Arc<ClientConfig>,
    name: &str,
    server: &Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name)?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    // A handshake of either version takes fewer turns.
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}
