use super::*;

fn run(per_second: f64, agents: &[f64]) -> Run {
    Run {
        per_second,
        cpu: Usage {
            agents_us: agents.to_vec(),
            client_us: 1.0,
            server_us: 2.0,
            peer_us: 0.0,
            softirq_us: 3.0,
        },
        latency: None,
    }
}

fn sample(direct: f64, karst: f64, agents: &[f64]) -> Sample {
    Sample {
        direct: run(direct, &[0.0, 0.0]),
        karst: run(karst, agents),
        peer: None,
        connections: Connections {
            opened: 10.0,
            bypassed: 4.0,
        },
    }
}

fn samples() -> Vec<Sample> {
    vec![
        sample(10.0, 4.0, &[1.0, 2.0]),
        sample(20.0, 6.0, &[3.0, 4.0]),
        sample(30.0, 5.0, &[5.0, 6.0]),
    ]
}

fn latencies(karst: f64) -> Ways<Latency> {
    let latency = |us: f64| Latency {
        p50_us: us,
        p90_us: us * 2.0,
        p99_us: us * 3.0,
        p999_us: us * 4.0,
        max_us: us * 5.0,
    };
    Ways {
        direct: latency(100.0),
        karst: latency(karst),
        peer: None,
    }
}

fn report(place: Place, samples: &[Sample]) -> Report {
    let rows = MEASURES
        .iter()
        .map(|measure| Row::new(measure, samples, place).unwrap());
    let fixed = FixedRate::new(500, 1, &[latencies(103.0), latencies(104.0)]).unwrap();
    let mut report = Report {
        rows: rows.collect(),
        memory: Memory {
            per_1000_connections_anon_bytes_by_agent: vec![4_000_000, 5_000_000],
            ..Memory::default()
        },
        fixed_rate: fixed.clone(),
        fixed_rates: vec![fixed],
        bypass_events: vec![("bypass_chosen".to_owned(), 4.0)],
        goals: Vec::new(),
        peer: Vec::new(),
        pin: Pin::None,
        rounds: 3,
        seconds: 3,
        place: Some(place),
    };
    report.judge();
    report
}

#[test]
fn the_median_is_the_middle() {
    assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
    assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
    assert_eq!(median(std::iter::empty()), None);
}

#[test]
fn a_row_has_the_promised_names() {
    let row = Row::new(&MEASURES[0], &samples(), Place::TwoNodes).unwrap();
    let row = serde_json::to_value(row).unwrap();
    assert_eq!(row["name"], "throughput_1");
    assert_eq!(row["unit"], "Gbit/s");
    assert_eq!(row["direct"], 20.0);
    assert_eq!(row["karst"], 5.0);
    assert_eq!(row["ratio"], 0.25);
    assert_eq!(row["agent_cpu_us_per_unit"], 7.0);
    assert_eq!(row["source_agent_cpu_us"], 3.0);
    assert_eq!(row["destination_agent_cpu_us"], 4.0);
    assert_eq!(row["stock_ztunnel_ratio"], 0.27);
    assert_eq!(row["ratios"].as_array().unwrap().len(), 3);
    assert_eq!(row["spread"]["karst"]["min"], 4.0);
    assert_eq!(row["spread"]["karst"]["max"], 6.0);
    assert_eq!(row["other_cpu"]["karst"]["softirq_us"], 3.0);
    assert_eq!(row["connections"]["bypassed"], 12.0);
    assert!(row.get("peer").is_none());
    assert!(Row::new(&MEASURES[0], &[], Place::TwoNodes).is_none());
}

#[test]
fn a_peer_has_a_column() {
    let mut samples = samples();
    for sample in &mut samples {
        let mut peer = run(sample.direct.per_second, &[0.0, 0.0]);
        peer.cpu.peer_us = 9.0;
        sample.peer = Some(peer);
    }
    let row = Row::new(&MEASURES[0], &samples, Place::TwoNodes).unwrap();
    assert_eq!(row.peer_ratio, Some(1.0));
    assert_eq!(row.peer_cpu_us_per_unit, Some(9.0));
    let report = report(Place::TwoNodes, &samples);
    assert!(report.chart("t").svg().contains(">peer</text>"));
}

#[test]
fn one_node_is_held_to_a_direct_connection() {
    let one_agent: Vec<Sample> = [(100.0, 97.0), (100.0, 98.0), (100.0, 96.0)]
        .into_iter()
        .map(|(direct, karst)| sample(direct, karst, &[1.0]))
        .collect();
    let report = report(Place::OneNode, &one_agent);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        json["rows"][0]["stock_ztunnel_ratio"],
        serde_json::Value::Null
    );
    assert_eq!(
        json["rows"][0]["destination_agent_cpu_us"],
        serde_json::Value::Null
    );
    for row in &report.rows {
        let goal = report.goals.iter().find(|goal| goal.row == row.name);
        assert!(goal.unwrap().holds, "{}", row.name);
    }
    let text = report.tables();
    assert!(text.contains("Of 180 connections of the meshed client 72 bypassed its agent."));
    assert!(text.contains("bypass_chosen 4"), "{text}");
    // 1.035 of direct's p99 holds, 5,000 bytes of a connection do not.
    assert!(
        text.contains("500 requests/s over 1: p99 to direct's at most 1.050: holds"),
        "{text}"
    );
    assert!(text.contains("1 of 9 goals do NOT hold."), "{text}");
}

#[test]
fn two_nodes_are_held_to_a_stock_ztunnel() {
    let report = report(Place::TwoNodes, &samples());
    let holds = |row: &str, name: &str| {
        let mut goals = report.goals.iter();
        let goal = goals.find(|goal| goal.row == row && goal.name.contains(name));
        goal.unwrap_or_else(|| panic!("no goal {name} of {row}"))
            .holds
    };
    // The median of the ratios is 0.3 where 0.351 and 0.286 are asked for, 0.3375 and 0.21 of connections.
    assert!(!holds("throughput_1", "ratio") && holds("throughput_8", "ratio"));
    assert!(holds("connections_c1", "ratio") && !holds("connections_c16", "ratio"));
    assert!(holds("throughput_1", "CPU") && holds("connections_c16", "CPU"));
    assert!(holds("client's agent", "bytes") && !holds("server's agent", "bytes"));
}

#[test]
fn added_latency_is_of_the_requests_that_a_ztunnel_was_measured_with() {
    let mut samples = samples();
    for sample in &mut samples {
        let latency = latencies(308.0);
        sample.direct.latency = Some(latency.direct);
        sample.karst.latency = Some(latency.karst);
    }
    let report = report(Place::TwoNodes, &samples);
    let goals: Vec<_> = report
        .goals
        .iter()
        .filter(|goal| goal.name.contains("added"))
        .map(|goal| (goal.row.as_str(), goal.name.split(' ').next(), goal.holds))
        .collect();
    assert_eq!(
        goals,
        [
            ("http_c1", Some("p50"), true),
            ("http_c1", Some("p99"), false),
            ("http_c32", Some("p50"), true),
            ("http_c32", Some("p99"), false),
        ]
    );
}

#[test]
fn latencies_have_spread() {
    let rounds = [latencies(110.0), latencies(130.0), latencies(120.0)];
    let fixed = FixedRate::new(2000, 8, &rounds).unwrap();
    let json = serde_json::to_value(&fixed).unwrap();
    assert_eq!(json["karst"]["p50_us"], 120.0);
    assert_eq!(json["karst"]["p999_us"], 480.0);
    assert_eq!(json["p99_us_spread"]["karst"]["max"], 390.0);
    assert_eq!(json["p50_ratio"], 1.2);
    assert!(json.get("peer").is_none());
    assert!(FixedRate::new(2000, 8, &[]).is_none());
}

#[test]
fn rows_have_the_promised_names_in_order() {
    let names = MEASURES.map(|measure| measure.name);
    assert_eq!(
        names,
        [
            "throughput_1",
            "throughput_8",
            "http_c1",
            "http_c32",
            "connections_c1",
            "connections_c16"
        ]
    );
}
