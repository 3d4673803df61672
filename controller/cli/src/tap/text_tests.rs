use super::{Width, bytes, line, millis};
use crate::tap::event::{Event, printable};

/// The line without colours.
fn plain(event: &Event, width: Width) -> String {
    anstream::adapter::strip_str(&line(event, width)).to_string()
}

fn refused() -> Event {
    Event {
        time: "2026-01-31T23:59:59.123Z".to_owned(),
        event: "connection_refused".to_owned(),
        verdict: "denied".to_owned(),
        node: "a".to_owned(),
        direction: "inbound".to_owned(),
        src_addr: "10.0.0.1:4000".to_owned(),
        src_identity: "spiffe://cluster.local/ns/shop/sa/client".to_owned(),
        dst_addr: "10.0.0.2:15008".to_owned(),
        dst_hbone_addr: "10.0.0.2:8080".to_owned(),
        dst_workload: "web-0".to_owned(),
        dst_namespace: "shop".to_owned(),
        connection_security_policy: "mutual_tls".to_owned(),
        reason: "policy_denied".to_owned(),
        policy_name: "shop/nobody".to_owned(),
        policy_rule: Some(0),
        error: "shop/nobody, rule 0".to_owned(),
        ..Event::default()
    }
}

fn request() -> Event {
    Event {
        time: "2026-01-31T23:59:59.123Z".to_owned(),
        event: "request".to_owned(),
        verdict: "allowed".to_owned(),
        reporter: "waypoint".to_owned(),
        src_workload: "client".to_owned(),
        src_namespace: "shop".to_owned(),
        dst_service: "web.shop.svc.cluster.local".to_owned(),
        dst_service_port: Some(80),
        dst_workload: "Kubernetes//Pod/shop/web-0".to_owned(),
        method: "GET".to_owned(),
        authority: "web".to_owned(),
        path: "/a".to_owned(),
        status: Some(503),
        bytes_sent: 20_480,
        bytes_recv: 3,
        duration_ms: 12,
        route: "HTTPRoute/shop/web".to_owned(),
        ..Event::default()
    }
}

#[test]
fn events_are_lines() {
    assert_eq!(
        plain(&refused(), Width::Normal),
        "23:59:59.123 DENIED  in  refuse shop/sa:client -> shop/web-0 mtls reason=policy_denied \
         policy=shop/nobody#0 \"shop/nobody, rule 0\"\n"
    );
    assert_eq!(
        plain(&request(), Width::Normal),
        "23:59:59.123 ALLOWED wp  GET    shop/client -> web.shop:80 (shop/web-0) web/a 503 12ms \
         sent=20K recv=3B route=HTTPRoute/shop/web\n"
    );
    let wide = plain(&refused(), Width::Wide);
    for part in ["src=10.0.0.1:4000", "inside=10.0.0.2:8080", "node=a"] {
        assert!(wide.contains(part), "{wide}");
    }
}

#[test]
fn colours_say_what_is_bad() {
    let red = crate::style::BAD.to_string();
    assert!(line(&refused(), Width::Normal).contains(&format!("{red}DENIED")));
    assert!(line(&request(), Width::Normal).contains(&format!("{red}503")));
}

#[test]
fn what_peers_choose_does_not_reach_the_terminal_as_commands() {
    let evil = Event {
        path: "/\u{1b}]0;x\u{7}\u{202e}\nALLOWED".to_owned(),
        method: "G\u{1b}[2J".to_owned(),
        src_workload: "\u{9b}31m".to_owned(),
        ..request()
    };
    let text = plain(&evil, Width::Wide);
    assert!(
        text.contains("/\\u{1b}]0;x\\u{7}\\u{202e}\\u{a}ALLOWED"),
        "{text}"
    );
    let controls = text.trim_end().chars().filter(|c| c.is_control());
    assert_eq!(controls.count(), 0, "{text:?}");
    assert_eq!(printable("größe"), "größe");
}

#[test]
fn numbers_are_short() {
    for (number, text) in [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (10_239, "9.9K"),
        (10_240, "10K"),
        (u64::MAX, "16383P"),
    ] {
        assert_eq!(bytes(number), text);
    }
    for (number, text) in [
        (0, "0ms"),
        (9999, "9999ms"),
        (10_000, "10s"),
        (600_000, "10m"),
        (36_000_000, "10h"),
    ] {
        assert_eq!(millis(number), text);
    }
}
