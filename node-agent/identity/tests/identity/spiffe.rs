use karst_identity::{SpiffeId, TrustDomain};
use proptest::prelude::*;

#[test]
fn an_id_has_its_parts() {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
    assert_eq!(id.trust_domain(), "cluster.local");
    assert_eq!(id.namespace(), "shop");
    assert_eq!(id.service_account(), "cart");
    assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(id, SpiffeId::new("cluster.local", "shop", "cart").unwrap());
}

#[test]
fn anything_else_is_no_id() {
    let long = format!("spiffe://{}/ns/a/sa/b", "t".repeat(256));
    let wrong = [
        "",
        "spiffe://",
        "spiffe://td",
        "spiffe://td/ns/a",
        "spiffe://td/ns/a/sa",
        "spiffe://td/ns/a/sa/",
        "spiffe://td/ns//sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://td/ns/a/sa/b/",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/sa/b/ns/a",
        "Spiffe://td/ns/a/sa/b",
        "spiffe://TD/ns/a/sa/b",
        "spiffe://td:80/ns/a/sa/b",
        "spiffe://u@td/ns/a/sa/b",
        "spiffe://td/ns/a/sa/b?c",
        "spiffe://td/ns/a/sa/b#c",
        "spiffe://td/ns/../sa/b",
        "spiffe://td/ns/a/sa/.",
        "spiffe://td/ns/%61/sa/b",
        "spiffe://td/ns/a b/sa/b",
        "spiffe://td/ns/ä/sa/b",
        " spiffe://td/ns/a/sa/b",
        "https://td/ns/a/sa/b",
        &long,
    ];
    for text in wrong {
        let error = SpiffeId::parse(text).unwrap_err();
        assert_eq!(error.reason(), "identity_invalid", "{text}");
    }
    assert!(SpiffeId::new("td", "a/sa/x", "b").is_err());
    assert!(TrustDomain::new("cluster.local").is_ok());
    assert!(TrustDomain::new("Cluster.Local").is_err());
    assert!(TrustDomain::new("").is_err());
}

proptest! {
    #[test]
    fn parts_survive(td in "[a-z0-9._-]{1,60}", ns in "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", sa in "[a-z0-9]([a-z0-9.-]{0,30}[a-z0-9])?") {
        let id = SpiffeId::new(&td, &ns, &sa).unwrap();
        prop_assert_eq!(id.trust_domain(), &td);
        prop_assert_eq!(id.namespace(), &ns);
        prop_assert_eq!(id.service_account(), &sa);
        prop_assert_eq!(SpiffeId::parse(id.as_str()).unwrap(), id);
    }

    #[test]
    fn no_text_panics(text in ".{0,300}") {
        let _ = SpiffeId::parse(&text);
    }

    /// Only one spelling is accepted, so that comparing texts compares identities.
    #[test]
    fn what_parses_is_written_the_same(text in "spiffe://[a-zA-Z0-9._/-]{0,20}/ns/[a-zA-Z0-9._/%-]{0,10}/sa/[a-zA-Z0-9._/-]{0,10}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.as_str(), &text);
            prop_assert_eq!(SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account()).unwrap(), id);
        }
    }
}
