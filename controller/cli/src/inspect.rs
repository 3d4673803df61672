//! `karst inspect`: gets a list, picks from it, prints it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::admin;
use crate::args::Inspect;
use crate::diff;
use crate::failure::Failure;
use crate::inspect_conn;
use crate::kernel;
use crate::table::{Column, render};
use crate::words::{Object, Verb, object, verb};

const HELP: &str = "\
Usage: karst inspect OBJECT [COMMAND [NAME]] [-j] [-p] [--node NODE]

OBJECT := { pod | prog | link | map | cert | workload | service | policy | connection | tunnel }
COMMAND := { show | list | dump NAME | help }
`karst inspect --help` says more.
";

/// Runs the command; returns what to print.
///
/// # Errors
/// See [`Failure`].
pub fn run(args: &Inspect) -> Result<String, Failure> {
    let Some(word) = &args.object else {
        return Err(Failure::usage("no object named; try `karst inspect help`"));
    };
    if word == "help" {
        return Ok(help(args));
    }
    if diff::is_meant(word) {
        return diff::run(args);
    }
    let object = object(word)?;
    match args.verb.as_deref().map_or(Ok(Verb::Show), verb)? {
        Verb::Help => Ok(help(args)),
        Verb::Show => {
            let items = select(object, list(object, args)?, args.name.as_deref())?;
            print(args, &items, columns(object), nothing(object))
        }
        Verb::Dump => dump(object, args),
    }
}

/// In JSON mode help is `null`, as in bpftool, so that a program sees no prose.
fn help(args: &Inspect) -> String {
    if args.output.is_json() {
        "null\n".to_owned()
    } else {
        HELP.to_owned()
    }
}

fn dump(object: Object, args: &Inspect) -> Result<String, Failure> {
    if object != Object::Map {
        // The whole of an object is what JSON shows.
        let items = select(object, list(object, args)?, args.name.as_deref())?;
        return Ok(format!("{:#}\n", Value::Array(items)));
    }
    let Some(name) = &args.name else {
        return Err(Failure::usage(
            "map dump needs the name of a map; `karst inspect map` lists them",
        ));
    };
    let node = kernel::node(&args.bpffs_root, args.node.as_deref())?;
    let entries = kernel::entries(&args.bpffs_root, &node, name)?;
    let items = entries.as_array().cloned().unwrap_or_default();
    let text = print(args, &items, &[("KEY", "/key"), ("VALUE", "/value")], "")?;
    if args.output.is_json() {
        return Ok(text);
    }
    Ok(format!(
        "{}Found {} elements\n",
        text.trim_start(),
        items.len()
    ))
}

fn print(
    args: &Inspect,
    items: &[Value],
    columns: &[Column],
    nothing: &str,
) -> Result<String, Failure> {
    let whole = || Value::Array(items.to_vec());
    if args.output.pretty {
        return Ok(format!("{:#}\n", whole()));
    }
    if args.output.json {
        return Ok(format!("{}\n", whole()));
    }
    Ok(render(items, columns, nothing))
}

fn list(object: Object, args: &Inspect) -> Result<Vec<Value>, Failure> {
    let root = &args.bpffs_root;
    let node = || kernel::node(root, args.node.as_deref());
    let value = match object {
        Object::Prog => kernel::programs(root, &node()?)?,
        Object::Link => kernel::links(root, &node()?)?,
        Object::Map => kernel::maps(root, &node()?)?,
        Object::Pod => return pods(root, &node()?, args),
        Object::Cert => admin::get(&socket(args)?, "/v1/certificates")?,
        Object::Workload => admin::get(&socket(args)?, "/v1/workloads")?,
        Object::Service => {
            let mut services = admin::get(&socket(args)?, "/v1/services")?;
            services
                .as_array_mut()
                .into_iter()
                .flatten()
                .for_each(summarise_ports);
            services
        }
        Object::Policy => admin::get(&socket(args)?, "/v1/policies")?,
        Object::Connection => {
            let socket = socket(args)?;
            return inspect_conn::list(&|path| admin::get(&socket, path));
        }
        Object::Tunnel => admin::get(&socket(args)?, "/v1/tunnels")?,
    };
    Ok(value.as_array().cloned().unwrap_or_default())
}

/// Pods as the kernel has them. Names are the agent's: without it there are none.
fn pods(root: &Path, node: &str, args: &Inspect) -> Result<Vec<Value>, Failure> {
    let mut pods = kernel::pods(root, node)?
        .as_array()
        .cloned()
        .unwrap_or_default();
    let known = socket(args).and_then(|socket| admin::get(&socket, "/v1/pods"));
    let known = known
        .ok()
        .and_then(|list| list.as_array().cloned())
        .unwrap_or_default();
    for pod in &mut pods {
        let agent = known.iter().find(|k| k.get("uid") == pod.get("uid"));
        if let (Some(object), Some(agent)) = (pod.as_object_mut(), agent) {
            for field in ["namespace", "name", "identity", "egress", "connections"] {
                let value = agent.get(field).cloned().unwrap_or_default();
                object.insert(field.to_owned(), value);
            }
        }
    }
    Ok(pods)
}

/// Adds `port_summary`, e.g. `80->2` for two endpoints behind port 80.
fn summarise_ports(service: &mut Value) {
    let Some(ports) = service.get("ports").and_then(Value::as_array) else {
        return;
    };
    let one = |port: &Value| {
        let endpoints = port
            .get("endpoints")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        Value::from(format!(
            "{}->{endpoints}",
            port.get("port").unwrap_or(&Value::Null)
        ))
    };
    let summary = Value::Array(ports.iter().map(one).collect());
    if let Some(object) = service.as_object_mut() {
        object.insert("port_summary".to_owned(), summary);
    }
}

fn socket(args: &Inspect) -> Result<PathBuf, Failure> {
    if let Some(socket) = &args.admin_socket {
        return Ok(socket.clone());
    }
    let node = kernel::node(&args.bpffs_root, args.node.as_deref())?;
    Ok(Path::new("/run/karst")
        .join(node)
        .join("admin")
        .join("agent.sock"))
}

/// Keeps the items that `name` names; all without one.
fn select(object: Object, items: Vec<Value>, name: Option<&str>) -> Result<Vec<Value>, Failure> {
    let Some(name) = name else { return Ok(items) };
    let found: Vec<_> = items
        .into_iter()
        .filter(|item| is_named(item, name))
        .collect();
    if found.is_empty() {
        return Err(Failure::not_found(
            format!("no {object:?} '{name}'").to_lowercase(),
        ));
    }
    Ok(found)
}

fn is_named(item: &Value, name: &str) -> bool {
    let text = |key: &str| item.get(key).and_then(Value::as_str);
    let by_field = [
        "name",
        "uid",
        "key",
        "hostname",
        "id",
        "pod",
        "pod_uid",
        "destination_uid",
    ]
    .iter()
    .any(|key| text(key) == Some(name));
    let by_number = item
        .get("id")
        .and_then(Value::as_u64)
        .is_some_and(|id| id.to_string() == name);
    let full = match (text("namespace"), text("name")) {
        (Some(namespace), Some(own)) => name.split_once('/') == Some((namespace, own)),
        _ => false,
    };
    by_field || by_number || full
}

fn nothing(object: Object) -> &'static str {
    match object {
        Object::Pod => "no enrolled pods",
        Object::Prog => "no programs",
        Object::Link => "no links",
        Object::Map => "no maps",
        Object::Cert => "no certificates",
        Object::Workload => "no workloads",
        Object::Service => "no services",
        Object::Policy => "no policies",
        Object::Connection => "no connections",
        Object::Tunnel => "no tunnels",
    }
}

fn columns(object: Object) -> &'static [Column] {
    match object {
        Object::Pod => &[
            ("NAMESPACE", "/namespace"),
            ("NAME", "/name"),
            ("ADDRESSES", "/addresses"),
            ("NETNS", "/netns_ino"),
            ("LISTENING", "/listening"),
            ("IDENTITY", "/identity"),
            ("EGRESS", "/egress"),
            ("UID", "/uid"),
        ],
        Object::Prog => &[
            ("ID", "/id"),
            ("NAME", "/name"),
            ("TYPE", "/kind"),
            ("TAG", "/tag"),
            ("INSNS", "/verified_instructions"),
            ("JITED", "/jited_bytes"),
            ("LINKS", "/links"),
        ],
        Object::Link => &[
            ("ID", "/id"),
            ("NAME", "/name"),
            ("KIND", "/kind"),
            ("ATTACH TYPE", "/attach_type"),
            ("PROG", "/program_id"),
            ("CGROUP", "/cgroup_id"),
            ("NETNS", "/netns_ino"),
        ],
        Object::Map => &[
            ("ID", "/id"),
            ("NAME", "/name"),
            ("TYPE", "/kind"),
            ("KEY", "/key_size"),
            ("VALUE", "/value_size"),
            ("ENTRIES", "/entries"),
            ("MAX", "/max_entries"),
        ],
        Object::Cert => &[
            ("IDENTITY", "/id"),
            ("STATE", "/state"),
            ("SERIAL", "/serial"),
            ("NOT BEFORE", "/not_before"),
            ("NOT AFTER", "/not_after"),
            ("PROBLEM", "/message"),
        ],
        Object::Workload => &[
            ("NAMESPACE", "/namespace"),
            ("NAME", "/name"),
            ("ADDRESSES", "/addresses"),
            ("NODE", "/locality/node"),
            ("PROTOCOL", "/protocol"),
            ("HEALTH", "/health"),
            ("IDENTITY", "/identity"),
        ],
        Object::Service => &[
            ("NAMESPACE", "/namespace"),
            ("NAME", "/name"),
            ("VIPS", "/vips"),
            ("PORTS->ENDPOINTS", "/port_summary"),
            ("MODE", "/mode"),
        ],
        Object::Policy => &[
            ("NAME", "/name"),
            ("SCOPE", "/scope"),
            ("ACTION", "/action"),
            ("RULES", "/rules"),
            ("DRY RUN", "/dry_run"),
            ("USABLE", "/usable"),
        ],
        Object::Connection => inspect_conn::COLUMNS,
        Object::Tunnel => &[
            ("POD", "/pod"),
            ("PEER", "/address"),
            ("PEER IDENTITY", "/destination"),
            ("STREAMS", "/streams"),
            ("TOTAL", "/streams_total"),
            ("DRAINING", "/draining"),
            ("CIPHER", "/tls/cipher"),
            ("KEY EXCHANGE", "/tls/key_exchange"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{is_named, select, summarise_ports};
    use crate::failure::Kind;
    use crate::words::Object;

    #[test]
    fn items_are_named_in_several_ways() {
        let item = json!({"namespace": "ns", "name": "web", "uid": "u-1", "id": 17});
        for name in ["web", "ns/web", "u-1", "17"] {
            assert!(is_named(&item, name), "{name}");
        }
        for name in ["we", "other/web", "ns", "1"] {
            assert!(!is_named(&item, name), "{name}");
        }
    }

    #[test]
    fn naming_what_is_not_there_is_not_found() {
        let error =
            select(Object::Pod, vec![json!({"name": "a"})], Some("b")).expect_err("refused");
        assert_eq!(error.kind, Kind::NotFound);
        assert_eq!(error.message, "no pod 'b'");
        assert_eq!(select(Object::Pod, Vec::new(), None), Ok(Vec::new()));
    }

    #[test]
    fn ports_are_summed_up() {
        let mut service =
            json!({"ports": [{"port": 80, "endpoints": [{}, {}]}, {"port": 81, "endpoints": []}]});
        summarise_ports(&mut service);
        assert_eq!(service["port_summary"], json!(["80->2", "81->0"]));
    }
}
