//! Reads and adds up what Rust's test programs print.

/// The results of all test programs so far.
#[derive(Default, Debug)]
pub struct Tally {
    passed: u64,
    failed: u64,
    complaints: Vec<String>,
    current: Option<Current>,
}

/// What the running test program has printed.
#[derive(Debug)]
struct Current {
    name: String,
    /// A program of cargo's (documentation examples) prints one result for each crate.
    results: u64,
    failed: u64,
}

/// The numbers of one `test result:` line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// A test program starts.
    pub fn begin(&mut self, name: &str) {
        self.current = Some(Current {
            name: name.to_owned(),
            results: 0,
            failed: 0,
        });
    }

    /// The running program has printed `line`.
    pub fn line(&mut self, line: &str) {
        let Some(current) = &mut self.current else {
            return;
        };
        if let Some(counts) = counts(line) {
            current.results += 1;
            current.failed += counts.failed;
            self.passed += counts.passed;
            self.failed += counts.failed + counts.ignored;
            if counts.ignored > 0 {
                self.complaints.push(format!(
                    "IGNORED {}: {} tests were not run",
                    current.name, counts.ignored
                ));
            }
        } else if let Some(test) = failed_test(line) {
            self.complaints
                .push(format!("FAILED {}: {test}", current.name));
        }
    }

    /// The running program has ended, well if `success`.
    pub fn end(&mut self, success: bool) {
        let Some(current) = self.current.take() else {
            return;
        };
        // A program that exits badly because a test failed is already counted.
        if current.results == 0 {
            self.failed += 1;
            self.complaints.push(format!(
                "FAILED {}: it ended without a result",
                current.name
            ));
        } else if !success && current.failed == 0 {
            self.failed += 1;
            self.complaints.push(format!(
                "FAILED {}: it reported no failure but ended with one",
                current.name
            ));
        }
    }

    /// No more programs follow. A filter that matches nothing tested nothing.
    pub fn close(&mut self, filtered: bool) {
        if self.passed == 0 && self.failed == 0 {
            self.failed = 1;
            let why = if filtered {
                "no test has a name like the filter"
            } else {
                "no test was run"
            };
            self.complaints.push(format!("FAILED: {why}"));
        }
    }

    /// One line for each thing that went wrong.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Whether something ran and nothing failed.
    pub fn is_good(&self) -> bool {
        self.passed > 0 && self.failed == 0
    }

    /// The closing line.
    pub fn summary(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failed)
    }
}

/// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; ...`.
fn counts(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        numbers
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what))
            .and_then(|number| number.trim().parse().ok())
    };
    Some(Counts {
        passed: number(" passed")?,
        failed: number(" failed")?,
        ignored: number(" ignored")?,
    })
}

/// The name in `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str], success: bool) -> Tally {
        let mut tally = Tally::default();
        tally.begin("suite");
        for line in lines {
            tally.line(line);
        }
        tally.end(success);
        tally
    }

    const GOOD: &str = "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.01s";

    #[test]
    fn adds_up_several_results() {
        let tally = after(&["running 5 tests", GOOD, GOOD], true);
        assert_eq!(tally.summary(), "10 passed, 0 failed");
        assert!(tally.is_good());
        assert!(tally.complaints().is_empty());
    }

    #[test]
    fn names_the_failed_test_and_counts_it_once() {
        let tally = after(
            &[
                "test relay::half_close ... FAILED",
                "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            ],
            false,
        );
        assert_eq!(tally.summary(), "2 passed, 1 failed");
        assert_eq!(tally.complaints(), ["FAILED suite: relay::half_close"]);
    }

    #[test]
    fn an_ignored_test_is_a_failure() {
        let tally = after(
            &["test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out"],
            true,
        );
        assert!(!tally.is_good());
        assert_eq!(tally.summary(), "1 passed, 1 failed");
    }

    #[test]
    fn a_crash_before_the_result_is_a_failure() {
        assert_eq!(
            after(&["running 5 tests"], false).summary(),
            "0 passed, 1 failed"
        );
    }

    #[test]
    fn nothing_run_is_not_good() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out";
        let mut tally = after(&[none], true);
        tally.close(true);
        assert!(!tally.is_good());
        assert_eq!(tally.summary(), "0 passed, 1 failed");
    }

    #[test]
    fn other_lines_are_not_results() {
        assert_eq!(counts("test results: 5 passed; 0 failed; 0 ignored"), None);
        assert_eq!(counts("test result: ok"), None);
        assert_eq!(failed_test("test a ... ok"), None);
    }
}
