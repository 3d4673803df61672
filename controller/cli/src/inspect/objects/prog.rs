//! BPF programs that a node's links run.

use std::time::Duration;

use serde_json::{Value, json};

use crate::args::Inspect;
use crate::failure::Failure;
use crate::inspect::object::Object;
use crate::inspect::place::Place;
use crate::inspect::selector::Key;
use crate::kernel;

/// See the module.
pub const OBJECT: Object = Object {
    name: "prog",
    nothing: "no programs",
    columns: &[
        ("ID", "/id"),
        ("NAME", "/name"),
        ("TYPE", "/type"),
        ("TAG", "/tag"),
        ("RUNS", "/run_cnt"),
        ("TIME NS", "/run_time_ns"),
        ("XLATED", "/bytes_xlated"),
        ("JITED", "/bytes_jited"),
        ("MEMLOCK", "/bytes_memlock"),
        ("MAPS", "/map_ids"),
        ("LINKS", "/links"),
    ],
    keys: &[Key::Id, Key::Tag, Key::Name, Key::Pinned],
    list,
    notes,
    ..Object::PLAIN
};

fn list(place: &Place, args: &Inspect) -> Result<Vec<Value>, Failure> {
    let (root, node) = place.here()?.pins()?;
    let programs =
        || -> Result<Vec<Value>, Failure> { Ok(kernel::list(kernel::programs(root, &node)?)) };
    let mut items = match args.stats {
        None => programs()?,
        Some(seconds) => {
            let counting = kernel::count_runs()?;
            let before = programs()?;
            std::thread::sleep(Duration::from_secs(seconds));
            let mut after = programs()?;
            drop(counting);
            for program in &mut after {
                counted(program, &before, seconds);
            }
            after
        }
    };
    pins(&mut items, kernel::list(kernel::links(root, &node)?));
    Ok(items)
}

/// Adds `stats`: what was counted in these seconds. A program that was not there before has run for the first
/// time in them.
fn counted(program: &mut Value, before: &[Value], seconds: u64) {
    let id = program.get("id").cloned();
    let former = before.iter().find(|other| other.get("id") == id.as_ref());
    let number = |item: Option<&Value>, field: &str| {
        let value = item.and_then(|item| item.get(field));
        value.and_then(Value::as_u64).unwrap_or(0)
    };
    let more = |field: &str| number(Some(program), field).saturating_sub(number(former, field));
    let (runs, time) = (more("run_cnt"), more("run_time_ns"));
    if let Some(fields) = program.as_object_mut() {
        let stats = json!({"seconds": seconds, "run_cnt": runs, "run_time_ns": time});
        fields.insert("stats".to_owned(), stats);
    }
}

/// Adds `pinned`: the pins of the links that run a program, as it has none of its own.
fn pins(programs: &mut [Value], links: Vec<Value>) {
    for program in programs {
        let id = program.get("id").cloned();
        let of = links
            .iter()
            .filter(|link| link.get("prog_id") == id.as_ref());
        let pinned = of.filter_map(|link| link.get("pinned").cloned()).collect();
        if let Some(fields) = program.as_object_mut() {
            fields.insert("pinned".to_owned(), Value::Array(pinned));
        }
    }
}

fn notes(items: &[Value]) -> String {
    let mut notes = String::new();
    for item in items {
        if let Some(stats) = item.get("stats") {
            let name = item.get("name").and_then(Value::as_str).unwrap_or("?");
            let of = |field| stats.get(field).and_then(Value::as_u64).unwrap_or(0);
            let (runs, time) = (of("run_cnt"), of("run_time_ns"));
            let each = time.checked_div(runs).unwrap_or(0);
            let seconds = of("seconds");
            notes += &format!("{name}: {runs} runs in {seconds} s, {each} ns each\n");
        }
    }
    let off = |item: &Value| item.get("bpf_stats_enabled") == Some(&Value::Bool(false));
    if notes.is_empty() && items.iter().any(off) {
        notes = "runs and their time are counted only while kernel.bpf_stats_enabled is on, and it is off; \
                 --stats SECONDS turns it on for so long\n"
            .to_owned();
    }
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{counted, notes, pins};

    #[test]
    fn what_was_counted_is_the_difference() {
        let before = [json!({"id": 1, "run_cnt": 10, "run_time_ns": 1000})];
        let mut old = json!({"id": 1, "name": "a", "run_cnt": 14, "run_time_ns": 1400});
        counted(&mut old, &before, 5);
        assert_eq!(
            old["stats"],
            json!({"seconds": 5, "run_cnt": 4, "run_time_ns": 400})
        );
        assert_eq!(notes(&[old]), "a: 4 runs in 5 s, 100 ns each\n");
        let mut new = json!({"id": 2, "run_cnt": 1, "run_time_ns": 9});
        counted(&mut new, &before, 5);
        assert_eq!(new["stats"]["run_cnt"], 1);
    }

    #[test]
    fn that_nothing_is_counted_is_said() {
        let item = |on: bool| [json!({"bpf_stats_enabled": on})];
        assert!(notes(&item(false)).contains("--stats"));
        assert_eq!(notes(&item(true)), "");
    }

    #[test]
    fn programs_have_the_pins_of_their_links() {
        let mut programs = [json!({"id": 1}), json!({"id": 2})];
        pins(&mut programs, vec![json!({"prog_id": 1, "pinned": "/l"})]);
        assert_eq!(programs[0]["pinned"], json!(["/l"]));
        assert_eq!(programs[1]["pinned"], json!([]));
    }
}
