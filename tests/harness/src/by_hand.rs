//! What somebody with `bpftool` does to a node's pinned maps, where nobody but the agent should write.

/// Bytes of a pod's uid in `PODS` (`karst_bpf_common::layout::Pod`).
const UID_BYTES: usize = 64;

/// An entry of `PODS` for a pod that is nowhere: two addresses, the length of the uid, the uid, no interface. Without an address both
/// are the unspecified one.
pub fn pods_value(uid: &str, v4: Option<[u8; 4]>) -> Vec<u8> {
    let mut value = vec![0; 32];
    if let Some(v4) = v4 {
        value[10..12].fill(0xff);
        value[12..16].copy_from_slice(&v4);
    }
    value.extend((uid.len() as u32).to_ne_bytes());
    value.extend(uid.as_bytes());
    // Behind the uid, the interface at which handshakes are checked: none.
    value.resize(36 + UID_BYTES + 4, 0);
    value
}

/// Arguments of `bpftool` that write an entry into the map pinned at `map`.
pub fn write_entry(map: &str, key: &[u8], value: &[u8]) -> Vec<String> {
    let mut argv = entry("update", map, key);
    argv.extend(["value", "hex"].map(str::to_owned));
    argv.extend(hex(value));
    argv
}

/// Arguments of `bpftool` that remove an entry.
pub fn remove_entry(map: &str, key: &[u8]) -> Vec<String> {
    entry("delete", map, key)
}

fn entry(action: &str, map: &str, key: &[u8]) -> Vec<String> {
    let mut argv = ["map", action, "pinned", map, "key", "hex"]
        .map(str::to_owned)
        .to_vec();
    argv.extend(hex(key));
    argv
}

fn hex(bytes: &[u8]) -> impl Iterator<Item = String> + '_ {
    bytes.iter().map(|byte| format!("{byte:02x}"))
}
