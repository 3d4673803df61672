// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What a decision costs: `cargo xtask bench policy`. `tests/bench/README.md` says what the rows are.
//!
//! It is here and not in `karst-bench` because it needs nothing of the mesh, and because it counts
//! allocations, for which a program must have an allocator of its own. [`cases`] has the policies.

#![expect(unsafe_code, reason = "an allocator is unsafe by its interface")]

mod cases;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use karst_bpf_common::policy::{PolicySet, Verdict};

use cases::{Case, Connection};

/// Rounds without `--rounds`; medians are over them.
const ROUNDS: usize = 11;

/// How long a round measures at least.
const ROUND: Duration = Duration::from_millis(40);

/// The system's allocator, counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Medians over the rounds.
struct Row {
    case: &'static str,
    policies: usize,
    /// Of the connections, those that a policy decided.
    hits_percent: f64,
    ns: f64,
    least_ns: f64,
    most_ns: f64,
    allocations: f64,
    compile_us: f64,
}

fn main() -> ExitCode {
    let (mut json, mut rounds) = (false, ROUNDS);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-j" | "--json" => json = true,
            // Cargo's own.
            "--bench" => {}
            "--rounds" => match arguments.next().and_then(|text| text.parse().ok()) {
                Some(number) if number > 0 => rounds = number,
                _ => return usage(),
            },
            _ => return usage(),
        }
    }
    let rows: Option<Vec<Row>> = cases::all()
        .iter()
        .map(|case| measure(case, rounds))
        .collect();
    let Some(rows) = rows else {
        eprintln!("the policies of a case cannot be compiled");
        return ExitCode::FAILURE;
    };
    print!(
        "{}",
        if json {
            as_json(&rows, rounds)
        } else {
            as_table(&rows, rounds)
        }
    );
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: cargo xtask bench policy [-j] [--rounds NUMBER]");
    ExitCode::from(2)
}

/// Compiles and decides, once to get warm and then in rounds; `None` when it cannot be compiled.
fn measure(case: &Case, rounds: usize) -> Option<Row> {
    let begin = Instant::now();
    let set = PolicySet::compile(&case.policies).ok()?;
    let compile_us = begin.elapsed().as_secs_f64() * 1e6;
    let hits = case.connections.iter().filter(|connection| {
        let verdict = set.decide(&connection.attributes());
        matches!(
            verdict,
            Verdict::Allow { by: Some(_) } | Verdict::Deny { by: Some(_) }
        )
    });
    let hits = hits.count();
    pass(&set, &case.connections);
    let (mut ns, mut allocations) = (Vec::with_capacity(rounds), 0);
    let mut decisions = 0;
    for _ in 0..rounds {
        let (mut passes, before) = (0, ALLOCATIONS.load(Ordering::Relaxed));
        let begin = Instant::now();
        while begin.elapsed() < ROUND {
            pass(&set, &case.connections);
            passes += 1;
        }
        let took = begin.elapsed().as_secs_f64() * 1e9;
        allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
        let round = passes * case.connections.len();
        decisions += round;
        ns.push(took / round as f64);
    }
    ns.sort_by(f64::total_cmp);
    Some(Row {
        case: case.name,
        policies: case.policies.len(),
        hits_percent: hits as f64 * 100.0 / case.connections.len() as f64,
        ns: *ns.get(ns.len() / 2)?,
        least_ns: *ns.first()?,
        most_ns: *ns.last()?,
        allocations: allocations as f64 / decisions as f64,
        compile_us,
    })
}

#[inline(never)]
fn pass(set: &PolicySet, connections: &[Connection]) {
    for connection in connections {
        black_box(set.decide(black_box(&connection.attributes())));
    }
}

fn as_json(rows: &[Row], rounds: usize) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            format!(
                "{{\"case\": \"{}\", \"policies\": {}, \"ns_per_decision\": {:.1}, \
                 \"allocations_per_decision\": {}, \"hits_percent\": {:.1}, \
                 \"ns_least\": {:.1}, \"ns_most\": {:.1}, \"compile_us\": {:.0}}}",
                row.case,
                row.policies,
                row.ns,
                row.allocations,
                row.hits_percent,
                row.least_ns,
                row.most_ns,
                row.compile_us
            )
        })
        .collect();
    let rows = rows.join(",\n  ");
    format!("{{\"rows\": [\n  {rows}\n ],\n \"rounds\": {rounds}}}\n")
}

fn as_table(rows: &[Row], rounds: usize) -> String {
    let mut text = format!(
        "{:<12} {:>8} {:>7} {:>12} {:>21} {:>22} {:>10}\n",
        "case",
        "policies",
        "hits",
        "ns/decision",
        "[least..most]",
        "allocations/decision",
        "compile us"
    );
    for row in rows {
        let range = format!("[{:.1}..{:.1}]", row.least_ns, row.most_ns);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<12} {:>8} {:>6.1}% {:>12.1} {range:>21} {:>22} {:>10.0}",
            row.case, row.policies, row.hits_percent, row.ns, row.allocations, row.compile_us
        );
    }
    let _ = writeln!(text, "medians of {rounds} rounds on one thread");
    text
}
