//! Maps, and every entry of one.

use serde_json::Value;

use crate::args::Inspect;
use crate::failure::Failure;
use crate::inspect::Answer;
use crate::inspect::object::Object;
use crate::inspect::place::Place;
use crate::inspect::selector::{Key, Selector};
use crate::kernel;
use crate::table::render;

/// See the module.
pub const OBJECT: Object = Object {
    name: "map",
    nothing: "no maps",
    columns: &[
        ("ID", "/id"),
        ("NAME", "/name"),
        ("TYPE", "/type"),
        ("KEY", "/bytes_key"),
        ("VALUE", "/bytes_value"),
        ("ENTRIES", "/entries"),
        ("MAX", "/max_entries"),
        ("FILL %", "/fill_percent"),
        ("MEMLOCK", "/bytes_memlock"),
        ("PINNED", "/pinned"),
    ],
    keys: &[Key::Id, Key::Name, Key::Pinned],
    list: |place, _| {
        let (root, node) = place.here()?.pins()?;
        Ok(kernel::list(kernel::maps(root, &node)?))
    },
    dump: Some(dump),
    notes,
    ..Object::PLAIN
};

fn dump(place: &Place, args: &Inspect, selector: &Selector) -> Result<Answer, Failure> {
    if *selector == Selector::All {
        return Err(Failure::usage(
            "map dump needs a map: { id N | name NAME | pinned FILE }; `karst inspect map` lists them",
        ));
    }
    let (root, node) = place.here()?.pins()?;
    let maps = kernel::list(kernel::maps(root, &node)?);
    let map = choose(maps, selector, &node)?;
    let entries = kernel::list(kernel::entries(root, &node, &map)?);
    if args.output.is_json() {
        return Ok(Answer::Json(Value::Array(entries)));
    }
    let table = render(&entries, &[("KEY", "/key"), ("VALUE", "/value")], "");
    let note = map.get("note").and_then(Value::as_str);
    let name = map.get("name").and_then(Value::as_str).unwrap_or_default();
    Ok(Answer::Text {
        text: format!("{}Found {} elements\n", table.trim_start(), entries.len()),
        notes: note.map_or_else(String::new, |note| format!("{name}: {note}\n")),
    })
}

/// The one map that is meant. Names of maps may be written in small letters.
fn choose(maps: Vec<Value>, selector: &Selector, node: &str) -> Result<Value, Failure> {
    let name = |map: &Value| map.get("name").and_then(Value::as_str).map(str::to_owned);
    let names: Vec<_> = maps.iter().filter_map(name).collect();
    let meant = match selector {
        Selector::Named(word) | Selector::By(Key::Name, word) => {
            let own = names.iter().find(|name| name.eq_ignore_ascii_case(word));
            own.map(|own| Selector::Named(own.clone()))
        }
        _ => None,
    };
    let meant = meant.as_ref().unwrap_or(selector);
    let mut found = meant.select(&OBJECT, maps).map_err(|failure| {
        let there = names.join(", ");
        Failure::not_found(format!("{} on {node}: there are {there}", failure.message))
    })?;
    // Programs' own memory has one name for all.
    if found.len() > 1 {
        return Err(Failure::usage(format!(
            "there are {} maps of that name: use id N",
            found.len()
        )));
    }
    found.pop().ok_or_else(|| selector.not_found("map"))
}

fn notes(items: &[Value]) -> String {
    let text = |item: &Value, field: &str| item.get(field)?.as_str().map(str::to_owned);
    let note = |item: &Value| {
        let (name, note) = (text(item, "name")?, text(item, "note")?);
        Some(format!("{name}: {note}\n"))
    };
    items.iter().filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{choose, notes};
    use crate::failure::Kind;
    use crate::inspect::selector::{Key, Selector};

    fn maps() -> Vec<Value> {
        vec![
            json!({"id": 1, "name": "PODS", "pinned": "/p/PODS", "note": null}),
            json!({"id": 2, "name": ".rodata", "pinned": null, "note": "n"}),
            json!({"id": 3, "name": ".rodata", "pinned": null, "note": null}),
        ]
    }

    #[test]
    fn one_map_is_chosen() {
        let id = |selector: Selector| {
            let chosen = choose(maps(), &selector, "n1");
            chosen.map(|map| map["id"].as_u64().expect("an id"))
        };
        assert_eq!(id(Selector::Named("pods".to_owned())), Ok(1));
        assert_eq!(id(Selector::By(Key::Pinned, "/p/PODS".to_owned())), Ok(1));
        assert_eq!(id(Selector::By(Key::Id, "3".to_owned())), Ok(3));
        let several = id(Selector::Named(".rodata".to_owned())).expect_err("refused");
        assert_eq!(several.kind, Kind::Usage);
        let none = id(Selector::Named("NOPE".to_owned())).expect_err("refused");
        assert_eq!(none.kind, Kind::NotFound);
        assert_eq!(
            none.message,
            "no map 'NOPE' on n1: there are PODS, .rodata, .rodata"
        );
    }

    #[test]
    fn what_is_special_is_said() {
        assert_eq!(notes(&maps()), ".rodata: n\n");
    }
}
