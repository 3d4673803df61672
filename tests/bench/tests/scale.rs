//! `karst-bench scale` measures what it says: with a small cluster, every change is counted for every subscriber.

use std::process::Command;

use serde_json::Value;

#[test]
fn every_change_of_a_small_cluster_is_told_to_every_subscriber() {
    let output = Command::new(env!("CARGO_BIN_EXE_karst-bench"))
        .args(["scale", "-j", "--nodes", "20", "--pods", "1000"])
        .args(["--services", "100", "--subscribers", "20"])
        .args(["--churn", "10", "--seconds", "3"])
        .output()
        .unwrap();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problem}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |path: &str| {
        let found = report.pointer(path).and_then(Value::as_f64);
        found.unwrap_or_else(|| panic!("no {path} in {report:#}"))
    };
    // Ten pods are replaced a second; each becomes ready, and another one drains and goes.
    let changes = number("/change_to_ack/changes");
    assert!((60.0..=120.0).contains(&changes), "{changes}");
    let expected = number("/change_to_ack/deliveries_expected");
    assert!((expected - 20.0 * changes).abs() < 0.5, "{expected}");
    let told = number("/change_to_ack/deliveries");
    assert!(
        told >= 0.99 * expected && told <= 1.01 * expected,
        "{told} of {expected}"
    );
    let (p50, p99) = (
        number("/change_to_ack/p50_ms"),
        number("/change_to_ack/p99_ms"),
    );
    assert!(p50 > 0.0 && p50 <= p99, "{p50} {p99}");
    assert!(number("/change_to_ack_by_controller/samples") > 0.0);
    assert!(number("/churn/controller_cores") > 0.0);
    assert!(number("/churn/resources_per_second") >= 20.0 * 15.0);
    // A workload has a name, an address, an identity and Services.
    assert!(number("/snapshot/bytes") > 1000.0 * 150.0);
    assert!(number("/agent/workloads") >= 1000.0);
    let (resident, anonymous) = (
        number("/agent/resident_bytes"),
        number("/agent/anonymous_bytes"),
    );
    assert!(anonymous > 1e6 && anonymous < resident);
    assert!(number("/controller_resident_bytes_max") > 1e7);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for wrong in [["--subscribers", "5000"], ["--pods", "1"], ["--churn", "0"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_karst-bench"))
            .arg("scale")
            .args(wrong)
            .output()
            .unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
    }
}
