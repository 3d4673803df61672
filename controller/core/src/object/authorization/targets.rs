//! What a security policy with `targetRefs` is for.

use serde_json::Value;

use crate::object::{Kind, policy::Reader};

/// Targets of one policy: the CRD's limit.
const MAX_TARGETS: usize = 16;

/// What a waypoint or gateway serves, or is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A Service of the policy's namespace.
    Service(String),
    /// A Gateway of the policy's namespace: a waypoint or a gateway.
    Gateway(String),
    /// All Gateways of a class; in the root namespace alone.
    GatewayClass(String),
    /// Something that no policy of ours can be for, as the status names it.
    Other(String),
}

/// Reads `spec.targetRefs`, or the one of `spec.targetRef`.
pub(crate) fn read(value: &Value, field: &str, reader: &mut Reader<'_>) -> Vec<Target> {
    let one = std::slice::from_ref(value);
    let items = match value {
        Value::Object(_) => one,
        _ => reader.items(value, field).unwrap_or_default(),
    };
    if items.len() > MAX_TARGETS {
        let problem = format!("has {} entries", items.len());
        reader.fault(
            field,
            problem,
            "use at most 16, in several policies if need be",
        );
    }
    let mut targets = Vec::new();
    for (index, item) in items.iter().take(MAX_TARGETS).enumerate() {
        let field = format!("{field}[{index}]");
        targets.extend(target(item, &field, reader));
    }
    targets.sort();
    targets.dedup();
    targets
}

fn target(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<Target> {
    let (mut group, mut kind, mut name) = ("", "", "");
    for (key, value) in reader.fields(value, field)? {
        let text = value.as_str().unwrap_or_default();
        match key {
            "group" => group = text,
            "kind" => kind = text,
            "name" => name = text,
            // Of another namespace no policy may say anything.
            "namespace" if text.is_empty() => {}
            other => {
                let field = format!("{field}.{other}");
                let hint =
                    "a target is named by group, kind and name, in the policy's own namespace";
                reader.fault(&field, "is not for targets", hint);
            }
        }
    }
    if name.is_empty() || kind.is_empty() {
        reader.fault(field, "has no kind or no name", "write both");
        return None;
    }
    let name = name.to_owned();
    Some(match (group, kind) {
        ("" | "core", "Service") => Target::Service(name),
        (group, "Gateway") if group == Kind::Gateway.group() => Target::Gateway(name),
        (group, "GatewayClass") if group == Kind::Gateway.group() => Target::GatewayClass(name),
        (_, other) => Target::Other(format!("{other} {name}")),
    })
}
