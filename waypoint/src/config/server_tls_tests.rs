//! Listeners, with real handshakes.

use rustls::client::WebPkiServerVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ProtocolVersion};

use super::*;
use crate::config::tests::testing::{Authority, handshake};

struct Fixture {
    authority: Authority,
    secrets: Secrets,
}

impl Fixture {
    fn new() -> Self {
        let authority = Authority::new("ca");
        let mut secrets = Secrets::default();
        for (name, names) in [
            ("first", &["first.example"][..]),
            ("wild", &["*.w.example"]),
            ("exact", &["a.example", "b.example"]),
        ] {
            secrets.update(&authority.secret(name, names)).unwrap();
        }
        secrets.update(&authority.bundle("ca")).unwrap();
        secrets
            .update(&Authority::new("other").bundle("other-ca"))
            .unwrap();
        Self { authority, secrets }
    }

    fn build(&self, listener: &wire::GatewayListener) -> Result<Arc<ServerConfig>, ConfigError> {
        let tls = ServerTls::new(listener, Alpn::Http)?;
        tls.build(&self.secrets, None).map(|built| built.config)
    }

    /// A client that trusts the authority, and shows a certificate of another one if it is told to.
    fn client(&self, show: Option<&Authority>) -> Arc<ClientConfig> {
        self.client_of(rustls::ALL_VERSIONS, show)
    }

    fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        show: Option<&Authority>,
    ) -> Arc<ClientConfig> {
        let bundle = Secret::new(&self.authority.bundle("ca")).unwrap();
        let roots = Arc::new(root_store(&bundle.authorities));
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider()));
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_webpki_verifier(verifier.build().unwrap());
        let mut config = match show {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let secret = Secret::new(&authority.secret("client", &["client"])).unwrap();
                let key = secret.certificate.unwrap().key;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

fn listener(certificates: &[&str]) -> wire::GatewayListener {
    wire::GatewayListener {
        certificates: certificates.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

fn validating(authorities: &[&str], allow_insecure_fallback: bool) -> wire::GatewayListener {
    wire::GatewayListener {
        client_validation: Some(wire::ClientValidation {
            authorities: authorities.iter().map(|name| (*name).to_owned()).collect(),
            allow_insecure_fallback,
        }),
        ..listener(&["exact"])
    }
}

#[test]
fn the_certificate_that_fits_best_is_shown() {
    let fixture = Fixture::new();
    let certificates: Vec<_> = ["first", "wild", "exact"]
        .map(|name| match fixture.secrets.get(name) {
            Lookup::Found(secret) => Arc::clone(secret),
            Lookup::Rejected | Lookup::Missing => unreachable!(),
        })
        .into();
    let resolver = Resolver::new(&certificates);
    let ecdsa = [SignatureScheme::ECDSA_NISTP256_SHA256];
    for (name, expected) in [
        (Some("a.example"), 2),
        (Some("b.example"), 2),
        (Some("first.example"), 0),
        (Some("c.w.example"), 1),
        // Here a wildcard is one label.
        (Some("x.c.w.example"), 0),
        (Some("other"), 0),
        (None, 0),
    ] {
        let key = resolver.choose(name, &ecdsa).unwrap();
        let certificate = certificates[expected].certificate.as_ref().unwrap();
        assert!(Arc::ptr_eq(key, &certificate.key), "{name:?}");
    }
    // One that the client cannot verify is better than none: the client knows what to say about it.
    assert!(
        resolver
            .choose(Some("a.example"), &[SignatureScheme::ED25519])
            .is_some()
    );
}

#[test]
fn http2_is_agreed_on_and_the_name_is_verified() {
    let fixture = Fixture::new();
    let server = fixture
        .build(&listener(&["first", "missing", "exact"]))
        .unwrap();
    let (client, server) = handshake(&fixture.client(None), "A.example", &server).unwrap();
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(server.server_name(), Some("a.example"));
    let wild_only = fixture.build(&listener(&["wild"])).unwrap();
    assert!(handshake(&fixture.client(None), "x.a.w.example", &wild_only).is_err());
}

#[test]
fn versions_are_kept_to() {
    let fixture = Fixture::new();
    let (auto, v12, v13) = (0, 1, 2);
    let (only12, only13) = (
        &[&rustls::version::TLS12][..],
        &[&rustls::version::TLS13][..],
    );
    for (min, max, client, expected) in [
        (auto, auto, only12, Some(ProtocolVersion::TLSv1_2)),
        (
            auto,
            auto,
            rustls::ALL_VERSIONS,
            Some(ProtocolVersion::TLSv1_3),
        ),
        (v12, v13, only12, Some(ProtocolVersion::TLSv1_2)),
        (
            auto,
            v12,
            rustls::ALL_VERSIONS,
            Some(ProtocolVersion::TLSv1_2),
        ),
        (v13, auto, only12, None),
        (v13, v13, only13, Some(ProtocolVersion::TLSv1_3)),
        (v12, v12, only13, None),
    ] {
        let listener = wire::GatewayListener {
            tls_min: min,
            tls_max: max,
            ..listener(&["exact"])
        };
        let server = fixture.build(&listener).unwrap();
        let client = fixture.client_of(client, None);
        let agreed = handshake(&client, "a.example", &server);
        let agreed = agreed
            .ok()
            .map(|(client, _)| client.protocol_version().unwrap());
        assert_eq!(agreed, expected, "{min} {max}");
    }
    for (min, max, field) in [(v13, v12, "tls_max"), (9, 0, "tls_min"), (0, 9, "tls_max")] {
        let listener = wire::GatewayListener {
            tls_min: min,
            tls_max: max,
            ..listener(&["exact"])
        };
        assert_eq!(fixture.build(&listener).err().unwrap().field, field);
    }
}

#[test]
fn clients_are_verified() {
    let fixture = Fixture::new();
    let server = fixture
        .build(&validating(&["ca", "missing"], false))
        .unwrap();
    let ours = fixture.client(Some(&fixture.authority));
    let (_, ends) = handshake(&ours, "a.example", &server).unwrap();
    assert_eq!(ends.peer_certificates().unwrap().len(), 1);
    let stranger = Authority::new("stranger");
    for client in [fixture.client(None), fixture.client(Some(&stranger))] {
        assert!(handshake(&client, "a.example", &server).is_err());
    }
    // A session is not resumed, so that its client is verified each time.
    let (_, again) = handshake(&ours, "a.example", &server).unwrap();
    assert_eq!(again.handshake_kind(), Some(rustls::HandshakeKind::Full));
    let both = fixture
        .build(&validating(&["other-ca", "ca"], false))
        .unwrap();
    assert!(handshake(&ours, "a.example", &both).is_ok());
    let other = fixture.build(&validating(&["other-ca"], false)).unwrap();
    assert!(handshake(&ours, "a.example", &other).is_err());
}

#[test]
fn with_fallback_every_client_is_let_in() {
    let fixture = Fixture::new();
    let server = fixture.build(&validating(&["ca"], true)).unwrap();
    let stranger = Authority::new("stranger");
    for (show, certificates) in [
        (None, None),
        (Some(&stranger), Some(1)),
        (Some(&fixture.authority), Some(1)),
    ] {
        for versions in [
            &[&rustls::version::TLS12][..],
            &[&rustls::version::TLS13][..],
        ] {
            let client = fixture.client_of(versions, show);
            let (_, server) = handshake(&client, "a.example", &server).unwrap();
            assert_eq!(server.peer_certificates().map(<[_]>::len), certificates);
        }
    }
}

#[test]
fn nobody_is_let_in_who_should_have_been_verified() {
    let fixture = Fixture::new();
    for fallback in [false, true] {
        let error = fixture
            .build(&validating(&["missing"], fallback))
            .err()
            .unwrap();
        assert_eq!(error.field, "client_validation.authorities");
    }
    let error = fixture.build(&listener(&["missing", "ca"])).err().unwrap();
    assert_eq!(error.field, "certificates");
}

#[test]
fn secrets_are_checked() {
    let authority = Authority::new("ca");
    let good = authority.secret("s", &["a.example"]);
    let bundle = authority.bundle("b");
    let field = |wire: wire::TlsSecret| Secret::new(&wire).err().unwrap().field;
    let with_chain = |chain: &str| wire::TlsSecret {
        certificate_chain: chain.to_owned(),
        ..good.clone()
    };
    let with_authorities = |authorities: &str| wire::TlsSecret {
        authorities: authorities.to_owned(),
        ..bundle.clone()
    };
    let with_key = |key: &[u8]| wire::TlsSecret {
        private_key: key.to_vec(),
        ..good.clone()
    };
    let no_certificate = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    for (wire, expected) in [
        (wire::TlsSecret::default(), "authorities"),
        (with_chain(""), "certificate_chain"),
        (with_chain("text"), "certificate_chain"),
        (with_chain(no_certificate), "certificate_chain"),
        (with_key(b""), "private_key"),
        (with_key(b"text"), "private_key"),
        (
            with_key(&authority.secret("x", &["x"]).private_key),
            "private_key",
        ),
        (with_authorities("text"), "authorities"),
        (with_authorities(no_certificate), "authorities"),
    ] {
        assert_eq!(field(wire), expected);
    }
    // Oddities in a bundle do no harm.
    let odd = format!("{no_certificate}{}", bundle.authorities);
    assert!(Secret::new(&with_authorities(&odd)).is_ok());
}
