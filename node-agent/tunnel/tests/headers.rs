//! The CONNECT headers: what is written is read back, and nothing a peer sends breaks a parser.

use http::HeaderMap;
use karst_tunnel::TunnelError;
use karst_tunnel::headers::{
    Authority, Baggage, Forwarded, MAX_BAGGAGE_BYTES, MAX_HEADER_BYTES, SourceHeaders, TraceParent,
    WorkloadKind,
};
use proptest::prelude::*;

#[test]
fn authorities() {
    let parse = |text| Authority::parse(text).map(|authority| authority.to_string());
    for good in [
        "10.0.0.1:80",
        "[fd00::1]:8080",
        "web.shop.svc.cluster.local:65535",
    ] {
        assert_eq!(parse(good).unwrap(), good);
    }
    assert_eq!(parse("Web.Shop:80").unwrap(), "web.shop:80");
    assert_eq!(Authority::parse("[::1]:7").unwrap().port(), 7);
    let bad = [
        "",
        ":",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:+80",
        "10.0.0.1:8 0",
        "10.0.0.300:80",
        "1.2.3:80",
        "fd00::1:80",
        "[fd00::1:80",
        "[fd00::1]",
        "[10.0.0.1]:80",
        "a b:80",
        "user@host:80",
        "host/path:80",
        "[::1%eth0]:80",
    ];
    for text in bad {
        assert!(
            matches!(Authority::parse(text), Err(TunnelError::BadAuthority)),
            "{text}"
        );
    }
}

#[test]
fn baggage_is_that_of_a_ztunnel() {
    let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,\
                service.name=cart,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
    let baggage = Baggage::parse(text.as_bytes());
    let expected = Baggage {
        cluster: "Kubernetes".into(),
        namespace: "shop".into(),
        workload_kind: WorkloadKind::Deployment,
        workload_name: "cart".into(),
        service_name: "cart".into(),
        service_version: "v1".into(),
        region: "r1".into(),
        zone: "z1".into(),
    };
    assert_eq!(baggage, expected);
    assert_eq!(baggage.to_value().unwrap(), text);
    assert_eq!(Baggage::default().to_value(), None);
}

#[test]
fn odd_baggage_is_read_as_far_as_it_makes_sense() {
    let text = b" k8s.namespace.name = a ;prop=1, junk,=x,k8s.namespace.name=b,service.name=,\
                 k8s.job.name=j,other=1,cloud.region=\xff,service.version=v=1";
    let baggage = Baggage::parse(text);
    assert_eq!(baggage.namespace, "a");
    assert_eq!(
        (baggage.workload_kind, &*baggage.workload_name),
        (WorkloadKind::Job, "j")
    );
    assert_eq!(
        (
            &*baggage.service_name,
            &*baggage.region,
            &*baggage.service_version
        ),
        ("", "", "")
    );
    // A value that would break out of its place is not written.
    let spoiled = Baggage {
        cluster: "a,k8s.namespace.name=kube-system".into(),
        namespace: "shop".into(),
        ..Baggage::default()
    };
    assert_eq!(spoiled.to_value().unwrap(), "k8s.namespace.name=shop");
}

#[test]
fn forwarded() {
    let parse = |text: &str| Forwarded::parse(text.as_bytes());
    let v4 = parse("for=\"10.0.0.1:4711\"").unwrap();
    assert_eq!(
        (v4.client.to_string(), &*v4.host),
        ("10.0.0.1:4711".into(), "")
    );
    assert_eq!(v4.to_value().unwrap(), "for=\"10.0.0.1:4711\"");
    let v6 = parse("For=\"[fd00::1]:80\";host=web.shop.svc.cluster.local;proto=x").unwrap();
    assert_eq!(
        v6.to_value().unwrap(),
        "for=\"[fd00::1]:80\";host=web.shop.svc.cluster.local"
    );
    // The first element is the closest to the application.
    assert_eq!(
        parse("for=\"10.0.0.1:1\", for=\"10.0.0.2:2\"")
            .unwrap()
            .client
            .port(),
        1
    );
    for bad in [
        "",
        "for=",
        "for=\"10.0.0.1\"",
        "for=unknown",
        "host=x",
        "for=\"10.0.0.1:80",
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn traceparent() {
    let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let parsed = TraceParent::parse(text.as_bytes()).unwrap();
    assert_eq!(parsed.to_value().unwrap(), text);
    let child = parsed.child();
    assert_eq!(child.trace_id(), parsed.trace_id());
    assert_ne!(child, parsed);
    assert_ne!(TraceParent::new(), TraceParent::new());
    let bad = [
        "",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ];
    for text in bad {
        assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn limits() {
    let parse = |name: &'static str, size: usize| {
        let mut headers = HeaderMap::new();
        headers.insert(name, "x".repeat(size).parse().unwrap());
        SourceHeaders::parse(&headers, MAX_HEADER_BYTES).map_err(|error| error.reason())
    };
    assert_eq!(
        parse("x-other", MAX_HEADER_BYTES - 7),
        Ok(SourceHeaders::default())
    );
    let too_large = Err("connect_headers_too_large");
    assert_eq!(parse("x-other", MAX_HEADER_BYTES), too_large);
    assert_eq!(parse("forwarded", 1025), too_large);
    assert_eq!(parse("baggage", MAX_BAGGAGE_BYTES + 1), too_large);
    assert!(parse("baggage", MAX_BAGGAGE_BYTES).is_ok());
    // A member too many is not looked at.
    let many = format!("{}k8s.namespace.name=shop", "a=b,".repeat(64));
    assert_eq!(Baggage::parse(many.as_bytes()).namespace, "");
    let long = format!("k8s.namespace.name={}", "n".repeat(254));
    assert_eq!(Baggage::parse(long.as_bytes()).namespace, "");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Baggage::parse(&bytes);
        let _ = Forwarded::parse(&bytes);
        let _ = TraceParent::parse(&bytes);
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let _ = Authority::parse(text);
        }
    }

    #[test]
    fn nearly_right_text_does_not_panic(text in "(for|host|k8s.namespace.name|00)?[-=;,:\"\\[\\]0-9a-f.]{0,80}") {
        let _ = Baggage::parse(text.as_bytes());
        let _ = Forwarded::parse(text.as_bytes());
        let _ = TraceParent::parse(text.as_bytes());
        if let Ok(authority) = Authority::parse(&text) {
            prop_assert!(authority.port() > 0);
            prop_assert_eq!(Authority::parse(&authority.to_string()).unwrap(), authority);
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        cluster in "[ -~]{0,40}", namespace in "[ -~]{0,40}", name in "[ -~]{0,40}",
        client in any::<std::net::SocketAddr>(), host in "[ -~]{0,40}",
    ) {
        let source = SourceHeaders {
            baggage: Some(Baggage { cluster, namespace, workload_name: name, ..Baggage::default() }),
            forwarded: Some(Forwarded { client, host }),
            traceparent: Some(TraceParent::new()),
        };
        let mut headers = HeaderMap::new();
        source.write(&mut headers);
        let read = SourceHeaders::parse(&headers, MAX_HEADER_BYTES).unwrap();
        prop_assert_eq!(read.traceparent, source.traceparent);
        prop_assert_eq!(read.forwarded.as_ref().unwrap().client.port(), client.port());
        // Writing again gives the same: what cannot be carried was left out the first time.
        let mut again = HeaderMap::new();
        read.write(&mut again);
        prop_assert_eq!(again, headers);
    }
}
