use clap::Parser;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde_json::json;

use super::{Answer, Output, answer, code, is_waypoint};
use crate::args::{Cli, Command, Inspect};
use crate::failure::Kind;

fn args(words: &[&str]) -> Inspect {
    let words = ["karst", "inspect"].iter().chain(words);
    match Cli::try_parse_from(words).expect("parses").command {
        Command::Inspect(inspect) => inspect,
        other => panic!("not inspect: {other:?}"),
    }
}

fn output(out: &str, err: &str, code: u8) -> Output {
    Output {
        out: out.to_owned(),
        err: err.to_owned(),
        code,
    }
}

#[test]
fn exit_codes_come_in_the_status() {
    let of = |status| {
        let status: Status = serde_json::from_value(status).expect("a status");
        code(&status)
    };
    assert_eq!(of(json!({"status": "Success"})), Ok(0));
    let failed = json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "exit status 3",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
    assert_eq!(of(failed), Ok(3));
    let absent = json!({"status": "Failure", "message": "no such file: /karst"});
    assert_eq!(of(absent), Err("no such file: /karst".to_owned()));
}

#[test]
fn what_the_node_says_is_passed_on() {
    let json = args(&["pod", "-j"]);
    assert_eq!(
        answer(output("[]\n", "", 0), &json),
        Ok(Answer::Json(json!([])))
    );
    let failure = answer(
        output(
            "{\"error\":\"no pod 'x'\",\"reason\":\"not_found\"}\n",
            "",
            3,
        ),
        &json,
    );
    let failure = failure.expect_err("a failure");
    assert_eq!(failure.kind, Kind::NotFound);
    assert_eq!(
        (failure.reason.as_str(), failure.message.as_str()),
        ("not_found", "no pod 'x'")
    );
    let text = args(&["pod"]);
    assert_eq!(
        answer(output("a\n", "note\n", 0), &text),
        Ok(Answer::Text {
            text: "a\n".to_owned(),
            notes: "note\n".to_owned()
        })
    );
    let failure = answer(output("", "Error: no agent\n", 7), &text).expect_err("a failure");
    assert_eq!(failure.kind.exit_code(), 7);
    assert_eq!(failure.message, "no agent");
    // An older or a broken command there.
    let failure = answer(output("", "Usage: karst\n", 2), &json).expect_err("a failure");
    assert!(failure.message.contains("Usage: karst"), "{failure:?}");
}

#[test]
fn only_our_own_proxies_are_waypoints() {
    let of = |labels| {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"labels": labels}})).expect("a pod");
        is_waypoint(&pod)
    };
    let gateway = "gateway.networking.k8s.io/gateway-name";
    assert!(of(
        json!({gateway: "w", "app.kubernetes.io/managed-by": "karst-controller"})
    ));
    assert!(!of(json!({gateway: "w"})));
    assert!(!of(json!({"app": "web"})));
}
