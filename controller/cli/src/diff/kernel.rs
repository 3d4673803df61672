//! Agent and kernel: the maps' entries, the links and the programs that they run. Where the agent is gone, intent
//! takes its place, and what the kernel says of itself must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use karst_datapath::inspect::{self, LinkInfo, PodEntry};
use serde_json::Value;

use super::agent::{addresses, list};
use super::codes::{
    ADDRESS_ENTRY_WRONG, CONFIG_WRONG, LINK_DETACHED, LINK_ELSEWHERE, LINK_MISSING, LINK_UNKNOWN,
    LISTENER_UNREGISTERED, MAP_FULL, MAP_NEARLY_FULL, NOTHING_PINNED, POD_ENTRY_WRONG,
    POD_NOT_IN_KERNEL, POD_ONLY_IN_KERNEL, PROGRAM_OLD,
};
use super::layers::{Kernel, Layers};
use super::report::{Found, add};

/// From this part of its room on a map is said to be nearly full, percent.
const NEARLY_FULL: u64 = 90;

/// Compares.
pub fn compare(layers: &Layers, found: &mut Found) {
    let between = (above(layers), "kernel");
    let kernel = match &layers.kernel {
        Ok(kernel) => kernel,
        Err(why) => {
            let object = format!("pins of {}", layers.node);
            let expected = "programs and maps of the node";
            return add(found, NOTHING_PINNED, between, object, (expected, why));
        }
    };
    pods(layers, kernel, found);
    entries(layers, kernel, found);
    node_links(layers, kernel, found);
    pod_links(layers, kernel, found);
    config(layers, kernel, found);
    maps(kernel, found);
}

/// The layer that says what should be in the kernel.
fn above(layers: &Layers) -> &'static str {
    match (&layers.agent, &layers.intent) {
        (Ok(_), _) => "agent",
        (Err(_), Ok(_)) => "intent",
        (Err(_), Err(_)) => "kernel",
    }
}

/// Pods that should be captured, with their addresses; `None`: nobody knows.
fn expected(layers: &Layers) -> Option<BTreeMap<&String, Vec<IpAddr>>> {
    if let Ok(agent) = &layers.agent {
        let enrolled = |pod: &Value| pod.get("enrolled") == Some(&Value::Bool(true));
        let pods = agent.pods.iter().filter(|(_, pod)| enrolled(pod));
        return Some(pods.map(|(uid, pod)| (uid, addresses(pod))).collect());
    }
    let intent = layers.intent.as_ref().ok()?;
    let pods = intent.pods.iter().filter(|(_, pod)| pod.in_mesh);
    Some(
        pods.map(|(uid, pod)| (uid, pod.addresses.clone()))
            .collect(),
    )
}

fn pods(layers: &Layers, kernel: &Kernel, found: &mut Found) {
    let Some(expected) = expected(layers) else {
        return;
    };
    let between = (above(layers), "kernel");
    for (uid, addresses) in &expected {
        let entries: Vec<&PodEntry> = kernel.pods.iter().filter(|pod| pod.uid == **uid).collect();
        if entries.is_empty() {
            add(
                found,
                POD_NOT_IN_KERNEL,
                between,
                layers.pod(uid),
                ("an entry of PODS", "none"),
            );
        }
        for entry in entries {
            if list(&entry.addresses) != list(addresses) {
                let expected = format!("PODS has its addresses {}", list(addresses));
                add(
                    found,
                    POD_ENTRY_WRONG,
                    between,
                    layers.pod(uid),
                    (expected, list(&entry.addresses)),
                );
            }
        }
    }
    for entry in &kernel.pods {
        if !expected.contains_key(&entry.uid) {
            let instead = format!("PODS[{}]: {}", entry.netns_cookie, entry.uid);
            add(
                found,
                POD_ONLY_IN_KERNEL,
                between,
                layers.pod(&entry.uid),
                ("no entry of PODS", instead),
            );
        }
    }
}

/// What the maps say of each other and of the namespaces that there are.
fn entries(layers: &Layers, kernel: &Kernel, found: &mut Found) {
    for entry in &kernel.pods {
        let object = layers.pod(&entry.uid);
        let netns = layers.sockets.get(&entry.uid).and_then(|pod| pod.netns);
        if let Some((cookie, _)) = netns
            && cookie != entry.netns_cookie
        {
            let expected = format!("PODS has it by the cookie {cookie} of its network namespace");
            let instead = entry.netns_cookie.to_string();
            add(
                found,
                POD_ENTRY_WRONG,
                ("sockets", "kernel"),
                object.clone(),
                (expected, instead),
            );
        }
        for address in &entry.addresses {
            let held = kernel.addresses.get(address);
            if held != Some(&entry.netns_cookie) {
                let expected = format!("POD_ADDRESSES[{address}] is {}", entry.netns_cookie);
                let instead = held.map_or_else(|| "no entry".to_owned(), u64::to_string);
                add(
                    found,
                    ADDRESS_ENTRY_WRONG,
                    ("kernel", "kernel"),
                    object.clone(),
                    (expected, instead),
                );
            }
            if !entry.listening.contains(address) {
                let expected = format!("LISTENERS[{address}] is a listener of the agent's");
                add(
                    found,
                    LISTENER_UNREGISTERED,
                    ("kernel", "sockets"),
                    object.clone(),
                    (expected, "no entry"),
                );
            }
        }
    }
    for (address, cookie) in &kernel.addresses {
        let owner = kernel.pods.iter().find(|pod| pod.netns_cookie == *cookie);
        if !owner.is_some_and(|pod| pod.addresses.contains(address)) {
            let instead = match owner {
                Some(pod) => format!("{cookie}: {}, which has another", layers.pod(&pod.uid).text),
                None => format!("{cookie}, which is no pod's"),
            };
            add(
                found,
                ADDRESS_ENTRY_WRONG,
                ("kernel", "kernel"),
                format!("POD_ADDRESSES[{address}]"),
                ("no entry", instead),
            );
        }
    }
}

/// What a number of the agent's page on its datapath is.
fn number(layers: &Layers, key: &str) -> Option<u64> {
    let agent = layers.agent.as_ref().ok()?;
    agent.datapath.as_ref()?.get(key)?.as_u64()
}

/// Id of the program that the agent loaded for a link.
fn loaded(layers: &Layers, link: &str) -> Option<u32> {
    let agent = layers.agent.as_ref().ok()?;
    let programs = agent.datapath.as_ref()?.get("programs")?.as_array()?;
    let is_it = |one: &&Value| one.get("link").and_then(Value::as_str) == Some(link);
    let id = programs.iter().find(is_it)?.get("id")?.as_u64()?;
    u32::try_from(id).ok()
}

fn node_links(layers: &Layers, kernel: &Kernel, found: &mut Found) {
    let between = (above(layers), "kernel");
    for (name, hook) in inspect::node_links() {
        let object = format!("link {name}");
        let Some(link) = kernel.links.iter().find(|link| link.name == name) else {
            let expected = format!("a program attached at {hook}");
            add(
                found,
                LINK_MISSING,
                between,
                object,
                (expected, "no such link"),
            );
            continue;
        };
        match (link.cgroup_id, number(layers, "node_cgroup")) {
            (Some(0) | None, _) => {
                let expected = format!("attached at {hook}");
                add(
                    found,
                    LINK_DETACHED,
                    between,
                    object.clone(),
                    (expected, "attached to nothing"),
                );
                continue;
            }
            (Some(cgroup), Some(own)) if cgroup != own => {
                let expected = format!("attached to cgroup {own}");
                add(
                    found,
                    LINK_ELSEWHERE,
                    between,
                    object.clone(),
                    (expected, format!("cgroup {cgroup}")),
                );
            }
            _ => {}
        }
        if link.attach_type != hook {
            let expected = format!("attached at {hook}");
            add(
                found,
                LINK_ELSEWHERE,
                between,
                object.clone(),
                (expected, &link.attach_type),
            );
        }
        program(link, loaded(layers, name), between, found);
    }
}

fn program(
    link: &LinkInfo,
    newest: Option<u32>,
    between: (&'static str, &'static str),
    found: &mut Found,
) {
    if let Some(newest) = newest
        && newest != link.program_id
    {
        let object = format!("link {}", link.name);
        let expected = format!("program {newest}");
        let instead = format!("program {}", link.program_id);
        add(found, PROGRAM_OLD, between, object, (expected, instead));
    }
}

fn pod_links(layers: &Layers, kernel: &Kernel, found: &mut Found) {
    let between = (above(layers), "kernel");
    let mut known: BTreeSet<String> = BTreeSet::new();
    known.extend(
        inspect::node_links()
            .iter()
            .map(|(name, _)| (*name).to_owned()),
    );
    // Without the agent the newest is the one that most likely came last: a later load has a higher id.
    let of_pods = kernel.links.iter().filter(|link| link.kind == "netns");
    let newest = loaded(layers, "sk_lookup").or_else(|| of_pods.map(|link| link.program_id).max());
    for entry in &kernel.pods {
        let Some(name) = inspect::pod_link(&entry.uid) else {
            continue;
        };
        known.extend(inspect::guard_link(&entry.uid));
        guard(layers, kernel, entry, found);
        let object = format!("link {name} of {}", layers.pod(&entry.uid).text);
        let link = kernel.links.iter().find(|link| link.name == name);
        known.insert(name);
        let Some(link) = link else {
            let expected = "a program attached at sk_lookup";
            add(
                found,
                LINK_MISSING,
                between,
                object,
                (expected, "no such link"),
            );
            continue;
        };
        let netns = layers.sockets.get(&entry.uid).and_then(|pod| pod.netns);
        match (link.netns_ino, netns) {
            (Some(0) | None, _) => add(
                found,
                LINK_DETACHED,
                between,
                object,
                ("attached at sk_lookup", "attached to nothing"),
            ),
            (Some(ino), Some((_, own))) if ino != own => add(
                found,
                LINK_ELSEWHERE,
                between,
                object,
                (
                    format!("attached to network namespace {own}"),
                    format!("network namespace {ino}"),
                ),
            ),
            _ => program(link, newest, between, found),
        }
    }
    for link in &kernel.links {
        if !known.contains(&link.name) {
            add(
                found,
                LINK_UNKNOWN,
                between,
                format!("link {}", link.name),
                ("no such link", format!("pinned, id {}", link.id)),
            );
        }
    }
}

/// What checks handshakes to a pod at the host's end of its interface, where the kernel's entry says that something
/// does.
fn guard(layers: &Layers, kernel: &Kernel, entry: &PodEntry, found: &mut Found) {
    let (Some(interface), Some(name)) = (entry.guard, inspect::guard_link(&entry.uid)) else {
        return;
    };
    let between = (above(layers), "kernel");
    let object = format!("link {name} of {}", layers.pod(&entry.uid).text);
    let expected = format!("attached to interface {interface}");
    let Some(link) = kernel.links.iter().find(|link| link.name == name) else {
        add(
            found,
            LINK_MISSING,
            between,
            object,
            (expected, "no such link"),
        );
        return;
    };
    match link.ifindex {
        Some(0) | None => {
            let instead = "attached to nothing";
            add(found, LINK_DETACHED, between, object, (expected, instead));
        }
        Some(index) if index != interface => {
            let instead = format!("interface {index}");
            add(found, LINK_ELSEWHERE, between, object, (expected, instead));
        }
        Some(_) => program(link, loaded(layers, "syn_check"), between, found),
    }
}

fn config(layers: &Layers, kernel: &Kernel, found: &mut Found) {
    for key in ["host_netns_cookie", "agent_cgroup", "kubepods_cgroup"] {
        let Some(expected) = number(layers, key) else {
            continue;
        };
        let held = kernel.config.get(key).map_or("no entry", String::as_str);
        if held != expected.to_string() {
            add(
                found,
                CONFIG_WRONG,
                ("agent", "kernel"),
                "map CONFIG",
                (format!("{key} {expected}"), held),
            );
        }
    }
}

fn maps(kernel: &Kernel, found: &mut Found) {
    for map in &kernel.maps {
        // Others have as many entries as they have room, or throw the oldest away.
        let fills = matches!(map.kind.as_str(), "hash" | "sockhash");
        let (Some(entries), true) = (map.entries, fills && map.max_entries > 0) else {
            continue;
        };
        let (entries, room) = (u64::from(entries), u64::from(map.max_entries));
        let code = if entries >= room {
            MAP_FULL
        } else if entries * 100 >= room * NEARLY_FULL {
            MAP_NEARLY_FULL
        } else {
            continue;
        };
        add(
            found,
            code,
            ("kernel", "kernel"),
            format!("map {}", map.name),
            (
                format!("less than {NEARLY_FULL} % of {room} entries"),
                format!("{entries} entries"),
            ),
        );
    }
}
