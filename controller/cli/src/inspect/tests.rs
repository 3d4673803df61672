//! The whole of a command, as far as it needs no node.

use clap::Parser;

use super::object::OBJECTS;
use super::selector::Selector;
use super::{Outcome, outcome as printed, run, show};
use crate::args::{Cli, Command, Inspect};

pub fn args(words: &[&str]) -> Inspect {
    let words = ["karst", "inspect"].iter().chain(words);
    match Cli::try_parse_from(words).expect("parses").command {
        Command::Inspect(inspect) => inspect,
        other => panic!("not inspect: {other:?}"),
    }
}

fn outcome(words: &[&str]) -> (String, String, u8) {
    let Outcome { out, err, code } = run(&args(words));
    (out, err, code)
}

#[test]
fn help_is_for_people_only() {
    for words in [&[][..], &["help"], &["prog", "help"], &["map", "h"]] {
        let (out, err, code) = outcome(words);
        assert!(
            out.is_empty() && err.starts_with("Usage: karst inspect"),
            "{words:?}"
        );
        assert_eq!(code, 0);
        let json = [words, &["-j"]].concat();
        assert_eq!(outcome(&json), ("null\n".to_owned(), String::new(), 0));
    }
    let (_, err, _) = outcome(&["prog", "help"]);
    assert!(
        err.contains("PROG := { id N | tag TAG | name NAME | pinned FILE | NAME }"),
        "{err}"
    );
}

#[test]
fn errors_are_an_object_for_programs_and_a_line_for_people() {
    let wrong = &["prog", "show", "idd", "3"][..];
    let message = "expected 'id', 'tag', 'name' or 'pinned', got: 'idd'?";
    assert_eq!(
        outcome(wrong),
        (String::new(), format!("Error: {message}\n"), 2)
    );
    let (out, err, code) = outcome(&[wrong, &["-j"]].concat());
    let error: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(error["error"], message);
    assert_eq!((err.as_str(), code), ("", 2));
    let (out, ..) = outcome(&[wrong, &["-p"]].concat());
    assert!(out.starts_with("{\n"), "{out}");
}

#[test]
fn a_version_is_said() {
    assert!(outcome(&["version"]).0.starts_with("karst "));
    assert!(outcome(&["version", "-j"]).0.contains("\"version\":"));
}

#[test]
fn nobody_is_asked_for_what_it_does_not_have() {
    let (_, err, code) = outcome(&["route"]);
    assert!(
        err.contains("a node has no route") && err.contains("--pod"),
        "{err}"
    );
    assert_eq!(code, 8);
    let waypoint = ["prog", "--waypoint-address", "127.0.0.1:1"];
    let (_, err, code) = outcome(&waypoint);
    assert!(err.contains("a waypoint has no prog"), "{err}");
    assert_eq!(code, 8);
    let (_, err, code) = outcome(&["xds", "--waypoint-address", "127.0.0.1:1"]);
    assert!(err.contains("127.0.0.1:1"), "{err}");
    assert_eq!(code, 7);
    let (_, err, code) = outcome(&["xds", "--admin-socket", "/nonexistent"]);
    assert!(err.contains("/nonexistent"), "{err}");
    assert_eq!(code, 7);
}

#[test]
fn a_batch_stops_at_the_first_failure() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("b");
    let file = file.to_str().expect("text");
    std::fs::write(file, "version\nprog show id x\nversion\n").expect("written");
    let (out, err, code) = outcome(&["batch", "file", file]);
    assert!(
        out.starts_with("karst ") && out.lines().count() == 1,
        "{out}"
    );
    assert_eq!((err.as_str(), code), ("Error: can't parse x as ID\n", 2));
    let (out, _, code) = outcome(&["-j", "ba", "f", file]);
    let list: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(code, 2);
    assert_eq!(list.as_array().map(Vec::len), Some(2));
    assert_eq!(list[0]["command"], serde_json::json!(["version"]));
    assert_eq!(list[1]["output"]["error"], "can't parse x as ID");
    std::fs::write(file, "version\nversion # twice\n").expect("written");
    let (out, _, code) = outcome(&["batch", "file", file]);
    assert!(
        out.ends_with("processed 2 commands\n") && code == 0,
        "{out}"
    );
    std::fs::write(file, "batch file b\n").expect("written");
    assert_eq!(outcome(&["batch", "file", file]).2, 2);
    let (_, err, _) = outcome(&["batch", "file", "/nonexistent"]);
    assert_eq!(
        err,
        "Error: Can't open file (/nonexistent): No such file or directory\n"
    );
    assert_eq!(
        outcome(&["batch"]).1,
        "Error: too few parameters for batch\n"
    );
}

/// What is shown to people of the items in `testdata/inspect`; KARST_BLESS=1 writes it anew.
#[test]
fn text_is_as_people_know_it() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/inspect");
    let mut tried = 0;
    for object in OBJECTS {
        let items = folder.join(format!("{}.json", object.name));
        let items = std::fs::read_to_string(items).expect("a sample of each object");
        let items = serde_json::from_str(&items).expect("JSON");
        let output = args(&[]).output;
        let shown = printed(show(object, items, &Selector::All, output), output);
        let empty = printed(show(object, Vec::new(), &Selector::All, output), output);
        assert_eq!(empty.out, format!("{}\n", object.nothing));
        let text = format!("{}--\n{}", shown.out, shown.err);
        let golden = folder.join(format!("{}.txt", object.name));
        if std::env::var_os("KARST_BLESS").is_some() {
            std::fs::write(&golden, &text).expect("written");
        }
        let expected = std::fs::read_to_string(&golden).expect("a golden file");
        assert_eq!(text, expected, "{}", object.name);
        tried += 1;
    }
    assert_eq!(tried, 13);
}
