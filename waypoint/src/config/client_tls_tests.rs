//! Backends, with real handshakes.

use rustls::ServerConfig;

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
        secrets.update(&authority.bundle("ca")).unwrap();
        secrets
            .update(&Authority::new("other").bundle("other-ca"))
            .unwrap();
        secrets
            .update(&authority.secret("own", &["proxy"]))
            .unwrap();
        Self { authority, secrets }
    }

    fn client(&self, wire: &wire::BackendTls) -> Result<Arc<ClientConfig>, ConfigError> {
        let name = ServerName::try_from(wire.hostname.clone()).unwrap();
        client_config(wire, &name, &self.secrets).map(Arc::new)
    }

    /// An application with a certificate for `names`.
    fn server(&self, names: &[&str]) -> Arc<ServerConfig> {
        let secret = Secret::new(&self.authority.secret("s", names)).unwrap();
        let key = SingleCertAndKey::from(secret.certificate.unwrap().key);
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_no_client_auth();
        Arc::new(builder.with_cert_resolver(Arc::new(key)))
    }
}

fn policy(names: &[&str], authorities: &[&str]) -> wire::BackendTls {
    let name = |name: &&str| {
        let text = (*name).to_owned();
        let kind = if name.contains(':') {
            wire::subject_alt_name::Kind::Uri(text)
        } else {
            wire::subject_alt_name::Kind::Hostname(text)
        };
        wire::SubjectAltName { kind: Some(kind) }
    };
    wire::BackendTls {
        hostname: "app.shop.example".to_owned(),
        subject_alt_names: names.iter().map(name).collect(),
        authorities: authorities.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

#[test]
fn the_certificate_must_carry_one_of_the_names() {
    let fixture = Fixture::new();
    let uri = "spiffe://cluster.local/ns/shop/sa/app";
    for (wanted, carried, expected) in [
        // Without names it is the host name.
        (&[][..], &["app.shop.example"][..], true),
        (&[], &["*.shop.example"], true),
        (&[], &["other.shop.example"], false),
        // With names it is not.
        (&["alt.shop.example"], &["app.shop.example"], false),
        (&["alt.shop.example"], &["alt.shop.example"], true),
        (&["alt.shop.example"], &["*.shop.example"], true),
        (
            &["no.shop.example", "alt.shop.example"],
            &["alt.shop.example"],
            true,
        ),
        (&["*.shop.example"], &["*.shop.example"], true),
        (&["*.shop.example"], &["some.shop.example"], true),
        (&["*.shop.example"], &["some.other"], false),
        (&[uri], &[uri], true),
        (
            &[uri],
            &["app.shop.example", "spiffe://cluster.local/ns/shop/sa/app2"],
            false,
        ),
        (&[uri, "alt.shop.example"], &["alt.shop.example"], true),
        (&[uri], &["app.shop.example"], false),
    ] {
        let client = fixture.client(&policy(wanted, &["ca"])).unwrap();
        let server = fixture.server(carried);
        let agreed = handshake(&client, "app.shop.example", &server);
        assert_eq!(agreed.is_ok(), expected, "{wanted:?} {carried:?}");
        if let Ok((_, server)) = agreed {
            assert_eq!(server.server_name(), Some("app.shop.example"));
        }
    }
}

#[test]
fn the_certificate_must_be_of_an_authority() {
    let fixture = Fixture::new();
    let server = fixture.server(&["app.shop.example"]);
    for (authorities, expected) in [
        (&["other-ca"][..], false),
        (&["other-ca", "ca"], true),
        (&["missing", "ca"], true),
    ] {
        let client = fixture.client(&policy(&[], authorities)).unwrap();
        assert_eq!(
            handshake(&client, "app.shop.example", &server).is_ok(),
            expected,
            "{authorities:?}"
        );
    }
    let error = fixture.client(&policy(&[], &["missing"])).err().unwrap();
    assert_eq!(error.field, "authorities");
}

#[test]
fn our_own_certificate_is_shown() {
    let fixture = Fixture::new();
    let roots = match fixture.secrets.get("ca") {
        Lookup::Found(secret) => root_store(&secret.authorities),
        Lookup::Rejected | Lookup::Missing => unreachable!(),
    };
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(provider()),
    );
    let secret = Secret::new(&fixture.authority.secret("s", &["app.shop.example"])).unwrap();
    let key = SingleCertAndKey::from(secret.certificate.unwrap().key);
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_client_cert_verifier(verifier.build().unwrap());
    let server = Arc::new(builder.with_cert_resolver(Arc::new(key)));
    let with = |name: &str| wire::BackendTls {
        client_certificate: name.to_owned(),
        ..policy(&[], &["ca"])
    };
    let client = fixture.client(&with("own")).unwrap();
    assert!(handshake(&client, "app.shop.example", &server).is_ok());
    let client = fixture.client(&with("")).unwrap();
    assert!(handshake(&client, "app.shop.example", &server).is_err());
    for bad in ["missing", "ca"] {
        assert_eq!(
            fixture.client(&with(bad)).err().unwrap().field,
            "client_certificate"
        );
    }
}

#[test]
fn bad_names_are_refused() {
    let fixture = Fixture::new();
    for (bad, field) in [("a b", "hostname"), ("*.", "hostname"), ("", "hostname")] {
        let error = fixture
            .client(&policy(&["ok.shop.example", bad], &["ca"]))
            .err()
            .unwrap();
        assert_eq!(
            error.field,
            format!("subject_alt_names[1].{field}"),
            "{bad}"
        );
    }
    let unknown = wire::BackendTls {
        subject_alt_names: vec![wire::SubjectAltName { kind: None }],
        ..policy(&[], &["ca"])
    };
    assert_eq!(
        fixture.client(&unknown).err().unwrap().field,
        "subject_alt_names[0].kind"
    );
    let nameless = wire::BackendTls {
        hostname: "a b".to_owned(),
        ..policy(&[], &["ca"])
    };
    assert_eq!(
        build(&nameless, &fixture.secrets, None)
            .err()
            .unwrap()
            .field,
        "hostname"
    );
}
