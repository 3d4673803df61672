//! `karst explain` and `karst analyze` as people run them: output and exit codes.
//!
//! What they print is held to files in `testdata`; `KARST_UPDATE=1` writes those anew.

#![expect(clippy::expect_used, reason = "it is a test")]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn data(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name)
        .display()
        .to_string()
}

fn karst(args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_karst"))
        .args(args)
        .env("NO_COLOR", "1")
        .env_remove("KUBECONFIG")
        .output()
        .expect("starts");
    (
        status.code().expect("exits"),
        String::from_utf8(stdout).expect("text"),
        String::from_utf8(stderr).expect("text"),
    )
}

/// Holds what was printed to a file, with the folder of the tests' data left out.
fn golden(name: &str, got: &str) {
    let got = got.replace(&data(""), "");
    let file = data(name);
    if std::env::var_os("KARST_UPDATE").is_some() {
        std::fs::write(&file, &got).expect("writes");
    }
    let wanted = std::fs::read_to_string(&file).expect("reads");
    assert_eq!(got, wanted, "{name}");
}

#[test]
fn explanations_are_as_they_were() {
    let shop = data("shop.yaml");
    for (name, code, args) in [
        (
            "explain-allowed.txt",
            0,
            &["shop/cart", "svc/web.shop:80", "--path", "/api/items"][..],
        ),
        (
            "explain-denied.txt",
            5,
            &[
                "shop/cart",
                "svc/web.shop:80",
                "--method",
                "POST",
                "--path",
                "/api/items",
            ],
        ),
        ("explain-plain.txt", 5, &["plain/batch", "shop/db:5432"]),
        (
            "explain-denied.json",
            5,
            &["shop/cart", "shop/db:5433", "-p"],
        ),
    ] {
        let all: Vec<&str> = ["explain", "-f", &shop]
            .iter()
            .chain(args)
            .copied()
            .collect();
        let (got, out, err) = karst(&all);
        assert_eq!((got, err.as_str()), (code, ""), "{name}: {out}");
        golden(name, &out);
    }
}

#[test]
fn findings_are_as_they_were() {
    let (shop, mistakes) = (data("shop.yaml"), data("mistakes.yaml"));
    let (code, out, err) = karst(&["analyze", "-f", &shop, "-f", &mistakes]);
    assert_eq!((code, err.as_str()), (79, ""));
    golden("analyze.txt", &out);
    let args = ["analyze", "-p", "-n", "plain", "-f", &shop, "-f", &mistakes];
    let (code, out, _) = karst(&args);
    assert_eq!(code, 79);
    golden("analyze.json", &out);
    let value: Value = serde_json::from_str(&out).expect("json");
    let findings = value["findings"].as_array().expect("list");
    assert!(
        !findings.is_empty()
            && findings
                .iter()
                .all(|one| one["object"]["namespace"] == "plain")
    );
}

#[test]
fn explain_ends_with_a_code_for_each_answer() {
    let shop = data("shop.yaml");
    for (code, args) in [
        (0, &["shop/cart", "shop/db:5432", "-f", &shop][..]),
        (0, &["10.1.0.1", "10.1.0.3:5432", "-f", &shop]),
        (
            0,
            &["shop/cart", "db.shop.svc.cluster.local:5432", "-f", &shop],
        ),
        (0, &["shop/cart", "plain/batch:80", "-f", &shop]),
        (0, &["outside", "plain/batch:80", "-f", &shop]),
        (5, &["outside", "shop/db:5432", "-f", &shop]),
        (5, &["shop/web", "shop/db:5432", "-f", &shop]),
        (5, &["shop/cart", "svc/web.shop:81", "-f", &shop]),
        (5, &["plain/batch", "svc/web.shop:80", "-f", &shop]),
        (3, &["shop/nobody", "shop/db:5432", "-f", &shop]),
        (3, &["shop/cart", "svc/nobody.shop:80", "-f", &shop]),
        (2, &["shop/cart", "shop/db", "-f", &shop]),
        (2, &["shop/cart", "svc/db:80", "-f", &shop]),
        (2, &["cart", "shop/db:80", "-f", &shop]),
        (
            2,
            &["shop/cart", "svc/web.shop:80", "--path", "api", "-f", &shop],
        ),
        (
            2,
            &["shop/cart", "svc/web.shop:80", "--header", "x", "-f", &shop],
        ),
        (2, &["shop/cart"]),
        (1, &["shop/cart", "shop/db:80", "-f", "/nowhere.yaml"]),
        (1, &["shop/cart", "shop/db:80", "--kubeconfig", "/nowhere"]),
    ] {
        let all: Vec<&str> = std::iter::once("explain")
            .chain(args.iter().copied())
            .collect();
        let (got, out, err) = karst(&all);
        assert_eq!(got, code, "{args:?}\n{out}{err}");
    }
}

#[test]
fn analyze_ends_with_a_code_for_each_answer() {
    let (shop, mistakes) = (data("shop.yaml"), data("mistakes.yaml"));
    let folder = tempfile::tempdir().expect("folder");
    let broken = folder.path().join("broken.yaml");
    std::fs::write(&broken, "kind: [").expect("writes");
    let broken = broken.display().to_string();
    let all = [shop.as_str(), mistakes.as_str()];
    for (code, args) in [
        (0, &["-f", shop.as_str()][..]),
        (79, &["-f", all[0], "-f", all[1]]),
        (79, &["-f", all[0], "--failure-threshold", "info"]),
        (0, &["-f", all[0], "--failure-threshold", "warning"]),
        (0, &["-f", all[0], "-f", all[1], "-n", "karst-system"]),
        (65, &["-f", &broken]),
        (65, &["-f", "/nowhere.yaml"]),
        (65, &["--source", "/nowhere"]),
        (65, &["-f", all[0], "--metrics", "/nowhere"]),
        (64, &["--failure-threshold", "some"]),
        (64, &["-f", all[0], "--source", "/x"]),
        (64, &["-A", "-n", "shop", "-f", all[0]]),
        (1, &["--kubeconfig", "/nowhere"]),
        (0, &["--list"]),
        (0, &["--help"]),
    ] {
        let args: Vec<&str> = std::iter::once("analyze")
            .chain(args.iter().copied())
            .collect();
        let (got, out, err) = karst(&args);
        assert_eq!(got, code, "{args:?}\n{out}{err}");
    }
    let (code, out, _) = karst(&["analyze", "-j", "-f", &broken]);
    let value: Value = serde_json::from_str(&out).expect("json");
    assert_eq!(
        (code, value["reason"].as_str()),
        (65, Some("input_unreadable"))
    );
    assert_eq!(
        karst(&[
            "analyze",
            "--output-threshold",
            "error",
            "-f",
            all[0],
            "-f",
            all[1]
        ])
        .1
        .matches("Warning [")
        .count(),
        0
    );
}
