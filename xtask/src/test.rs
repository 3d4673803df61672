//! `cargo xtask test`: builds everything and runs every test, the privileged ones among them.
//!
//! All test programs come from one cargo build. They are then run one after the other, cheap and
//! unprivileged ones first, and their results are added up. The last line is always
//! `N passed, M failed`. A test that is ignored and a program that ends without a result count as
//! failures: nothing here may look tested that was not. Start with [`run`]; [`results`] reads what
//! the test programs print, [`suites`] finds and orders them.

mod results;
mod suites;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use self::{results::Tally, suites::Suite};
use crate::image;
use crate::setup::{self, Need};
use crate::workspace::{Workspace, require_root, say};

/// A test program that runs longer than this hangs. The slowest one, the lab's, needs a few minutes.
const LONGEST_SUITE: Duration = Duration::from_secs(30 * 60);

/// Arguments of `test`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Run only the tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Run only the test programs of these packages (may be repeated).
    #[arg(long, value_name = "NAME")]
    package: Vec<String>,
}

/// Runs the tests; fails when any test fails, is ignored or could not be run.
pub fn run(args: &Args) -> Result<()> {
    require_root(
        "cargo xtask test",
        "makes network namespaces and loads eBPF programs",
    )?;
    let workspace = Workspace::locate()?;
    // The tests on a real cluster; the programs it is made of are built by its first test.
    setup::ensure(&workspace, &[Need::Cluster, Need::Helm, Need::Prometheus])?;
    workspace.build_all()?;
    let binaries = workspace.release()?;
    let suites: Vec<Suite> = suites::build(&workspace)?
        .into_iter()
        .filter(|suite| args.package.is_empty() || args.package.contains(&suite.package))
        .collect();
    if suites.is_empty() {
        bail!("no test program to run");
    }
    // What the tests on the cluster are run on and what they install, before any time limit counts.
    karst_cluster::Binaries::ensure(&say)?;
    let images = image::pack(&workspace, &image::Args::default(), &binaries)?;
    let mut tally = Tally::default();
    for (number, suite) in suites.iter().enumerate() {
        say(&format!(
            "[{}/{}] {}",
            number + 1,
            suites.len(),
            suite.name()
        ));
        run_suite(
            suite
                .command(&binaries, args.filter.as_deref())
                .env("KARST_IMAGE_DIR", &images),
            &suite.name(),
            LONGEST_SUITE,
            &mut tally,
        )?;
    }
    if args.package.is_empty() {
        let mut doc = workspace.cargo();
        doc.args(["test", "--release", "--quiet", "--doc"]);
        if let Some(filter) = &args.filter {
            doc.args(["--", filter]);
        }
        say("documentation examples");
        run_suite(
            &mut doc,
            "documentation examples",
            LONGEST_SUITE,
            &mut tally,
        )?;
    }
    tally.close(args.filter.is_some());
    for line in tally.complaints() {
        println!("{line}");
    }
    println!("{}", tally.summary());
    if tally.is_good() {
        return Ok(());
    }
    bail!("the tests did not all pass")
}

/// Runs one test program, passing its output on while reading the results out of it.
fn run_suite(
    command: &mut Command,
    name: &str,
    longest: Duration,
    tally: &mut Tally,
) -> Result<()> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let lines = read_lines(&mut child)?;
    tally.begin(name);
    let hung = loop {
        match lines.recv_timeout(longest.saturating_sub(started.elapsed())) {
            Ok(line) => {
                println!("{line}");
                tally.line(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if hung {
        child.kill().with_context(|| format!("ending {name}"))?;
        println!(
            "{name} still ran after {} s and was ended",
            longest.as_secs()
        );
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for {name}"))?;
    tally.end(status.success());
    Ok(())
}

/// The lines that `child` prints, read on a thread of their own so that waiting for them can end.
fn read_lines(child: &mut Child) -> Result<mpsc::Receiver<String>> {
    let stdout = child
        .stdout
        .take()
        .context("the program has no output to read")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        // Bytes and not `lines()`: a test may print what is not UTF-8.
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    std::io::stdout().flush().context("writing progress")?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn tally_of(script: &str, longest: Duration) -> Tally {
        let mut tally = Tally::default();
        run_suite(&mut shell(script), "suite", longest, &mut tally).unwrap();
        tally
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_that_reports_is_counted() {
        let tally = tally_of(
            "echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'",
            MINUTE,
        );
        assert_eq!(tally.summary(), "3 passed, 0 failed");
        assert!(tally.is_good());
    }

    #[test]
    fn a_program_that_dies_silently_is_a_failure() {
        let tally = tally_of("exit 0", MINUTE);
        assert_eq!(tally.summary(), "0 passed, 1 failed");
        assert!(!tally.is_good());
    }

    #[test]
    fn a_bad_exit_after_a_good_result_is_a_failure() {
        let tally = tally_of(
            "echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'; exit 3",
            MINUTE,
        );
        assert_eq!(tally.summary(), "1 passed, 1 failed");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let tally = tally_of("exec sleep 600", Duration::from_millis(50));
        assert!(!tally.is_good());
    }
}
