//! The waypoint does not pretend to work.

use std::process::Command;

#[test]
fn says_that_it_is_not_built_and_fails() {
    let output = Command::new(env!("CARGO_BIN_EXE_karst-waypoint"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("not built yet"), "{said}");
    assert!(output.stdout.is_empty());
}
