use proptest::prelude::*;
use serde_json::json;

use super::{Dropped, Key, MAX_ROWS, Model, Picture, SILENT, Shown};
use crate::tap::event::Event;

fn connection(event: &str, port: u16, bytes: u64) -> Event {
    Event {
        event: event.to_owned(),
        verdict: "allowed".to_owned(),
        direction: "outbound".to_owned(),
        src_addr: format!("10.0.0.1:{port}"),
        src_workload: "client".to_owned(),
        src_namespace: "shop".to_owned(),
        dst_addr: "10.0.0.2:15008".to_owned(),
        dst_hbone_addr: "10.0.0.2:8080".to_owned(),
        dst_service: "web.shop.svc.cluster.local".to_owned(),
        dst_service_port: Some(80),
        bytes_sent: bytes,
        duration_ms: 30,
        ..Event::default()
    }
}

fn request(status: u16, duration_ms: u64) -> Event {
    Event {
        event: "request".to_owned(),
        verdict: "allowed".to_owned(),
        reporter: "waypoint".to_owned(),
        src_workload: "client".to_owned(),
        src_namespace: "shop".to_owned(),
        dst_service: "web.shop.svc.cluster.local".to_owned(),
        dst_service_port: Some(80),
        method: "GET".to_owned(),
        route: "HTTPRoute/shop/web".to_owned(),
        status: Some(status),
        bytes_sent: 100,
        duration_ms,
        ..Event::default()
    }
}

fn only(picture: &Picture) -> &Shown {
    assert_eq!(picture.rows.len(), 1, "{picture:?}");
    &picture.rows[0]
}

#[test]
fn requests_have_rates_success_and_latency() {
    let mut model = Model::default();
    for second in 0..10 {
        for number in 1..=10 {
            model.event(
                0,
                &request(if number == 10 { 503 } else { 200 }, number),
                second,
            );
        }
    }
    let denied = Event {
        verdict: "denied".to_owned(),
        ..request(403, 1)
    };
    model.event(0, &denied, 9);
    let picture = model.picture(9);
    let row = only(&picture);
    assert_eq!(row.key.destination, "web.shop:80");
    assert_eq!(
        (&*row.key.method, &*row.key.route),
        ("GET", "HTTPRoute/shop/web")
    );
    assert!((row.rate - 10.1).abs() < 1e-9, "{row:?}");
    assert!(
        (row.success.expect("ended") - 90.0 * 100.0 / 101.0).abs() < 1e-9,
        "{row:?}"
    );
    assert!((row.denied - 0.1).abs() < 1e-9, "{row:?}");
    assert_eq!((row.p50, row.p95, row.p99), (Some(5), Some(10), Some(10)));
    assert!((row.bytes - 1010.0).abs() < 1e-9, "{row:?}");
    // What is older than the window does not count, and a silent row goes.
    let later = model.picture(9 + 9);
    assert!(only(&later).rate < 1.2, "{later:?}");
    assert_eq!(only(&model.picture(9 + SILENT - 1)).success, None);
    assert_eq!(model.picture(9 + SILENT).rows, []);
}

#[test]
fn bytes_of_a_connection_are_counted_once() {
    let mut model = Model::default();
    let list = |bytes: u64| {
        json!([{
            "direction": "outbound",
            "src": {"addr": "10.0.0.1:7", "workload": "client", "namespace": "shop", "identity": null},
            "dst": {"addr": "10.0.0.2:8080", "workload": null, "namespace": null, "identity": null},
            "service": "web.shop.svc.cluster.local",
            "service_port": 80,
            "bytes_sent": bytes,
            "bytes_recv": 0,
        }])
    };
    model.event(0, &connection("connection_opened", 7, 0), 0);
    assert_eq!(only(&model.picture(0)).live, 1);
    model.connections(0, &list(300), 1);
    model.connections(0, &list(700), 2);
    model.event(0, &connection("connection_closed", 7, 1000), 9);
    model.connections(0, &json!([]), 9);
    let picture = model.picture(9);
    let row = only(&picture);
    assert!((row.bytes - 100.0).abs() < 1e-9, "{row:?}");
    assert_eq!((row.live, row.p50, row.success), (0, Some(30), Some(100.0)));
    // A list that is older than the end does not bring it back with its bytes.
    model.connections(0, &list(900), 9);
    assert!((only(&model.picture(9)).bytes - 100.0).abs() < 1e-9);
}

#[test]
fn what_was_there_before_does_not_count_as_moved_now() {
    let mut model = Model::default();
    model.event(0, &connection("connection_live", 7, 5_000_000), 0);
    model.event(0, &connection("connection_closed", 7, 5_000_010), 1);
    let old = Event {
        duration_ms: 60_000,
        ..connection("connection_closed", 8, 5_000_000)
    };
    model.event(0, &old, 1);
    let picture = model.picture(1);
    assert!((only(&picture).bytes - 5.0).abs() < 1e-9, "{picture:?}");
}

#[test]
fn lists_of_one_agent_leave_those_of_others() {
    let mut model = Model::default();
    model.event(0, &connection("connection_opened", 7, 0), 0);
    model.event(1, &connection("connection_opened", 7, 0), 0);
    model.connections(1, &json!([]), 1);
    model.event(0, &connection("connection_closed", 7, 40), 1);
    assert!((only(&model.picture(1)).bytes - 20.0).abs() < 1e-9);
}

#[test]
fn rows_have_an_end_and_drops_are_summed() {
    let mut model = Model::default();
    for number in 0..MAX_ROWS + 5 {
        let event = Event {
            method: format!("M{number}"),
            ..request(200, 1)
        };
        model.event(0, &event, 0);
    }
    let picture = model.picture(0);
    assert_eq!(picture.rows.len(), MAX_ROWS + 1);
    let others = |row: &&Shown| row.key.source == "(others)";
    let others = picture
        .rows
        .iter()
        .find(others)
        .expect("a row for the rest");
    assert!((others.rate - 5.0).abs() < 1e-9);
    model.dropped(
        0,
        Dropped {
            queue_full: 1,
            rate_limit: 2,
        },
    );
    model.dropped(
        1,
        Dropped {
            queue_full: 4,
            rate_limit: 0,
        },
    );
    model.dropped(
        0,
        Dropped {
            queue_full: 2,
            rate_limit: 2,
        },
    );
    assert_eq!(model.picture(0).dropped, 8);
}

proptest! {
    /// Whatever comes in whatever order: nothing panics, and no rate or share leaves its range.
    #[test]
    fn anything_can_come(steps in proptest::collection::vec((0..6_u8, 0..3_u16, 0..2000_u64, 0..4_u64), 0..120)) {
        let mut model = Model::default();
        let (mut now, mut begun, mut at_start) = (0, 0, std::collections::BTreeMap::new());
        for (kind, port, number, wait) in steps {
            now += wait;
            let event = match kind {
                0 => connection("connection_opened", port, 0),
                1 => connection("connection_closed", port, number),
                2 => connection("connection_refused", port, 0),
                3 => connection("connection_live", port, number),
                4 => request(200 + u16::try_from(number / 4).unwrap_or(0), number),
                _ => {
                    model.connections(0, &json!([{"direction": "outbound", "bytes_sent": number}]), now);
                    continue;
                }
            };
            let starts = matches!(kind, 0 | 2 | 4);
            *at_start.entry(now).or_insert(0) += u64::from(starts);
            begun += u64::from(starts);
            model.event(0, &event, now);
        }
        let picture = model.picture(now);
        for row in &picture.rows {
            prop_assert!(row.success.is_none_or(|share| (0.0..=100.0).contains(&share)));
            prop_assert!(row.p50 <= row.p95 && row.p95 <= row.p99);
        }
        let recent: u64 = at_start.iter().filter(|(at, _)| **at + 10 > now).map(|(_, count)| count).sum();
        let seconds = (now + 1).min(10) as f64;
        let rate: f64 = picture.rows.iter().map(|row| row.rate).sum();
        prop_assert!((rate * seconds - recent as f64).abs() < 1e-6, "{rate} {recent} of {begun}");
    }
}

#[test]
fn keys_are_for_people() {
    let key = super::key(&connection("connection_opened", 1, 0));
    let expected = Key {
        side: "out",
        source: "shop/client".to_owned(),
        destination: "web.shop:80".to_owned(),
        ..Key::default()
    };
    assert_eq!(key, expected);
}
