//! Reads one thing out of the kernel's type information: where a field sits in a structure.
//!
//! Rust BPF programs cannot be relocated by the loader (no CO-RE), and aya keeps its BTF reader
//! to itself. Format: <https://docs.kernel.org/bpf/btf.html>.

use std::fs;
use std::path::Path;

use crate::DatapathError;

/// Where the kernel publishes its types (CONFIG_DEBUG_INFO_BTF).
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Bytes of the header we read, and of the fixed part of a type.
const HEADER: usize = 24;
const TYPE: usize = 12;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// Byte offset of `write_seq` in the running kernel's `struct tcp_sock`.
pub(crate) fn write_seq_offset() -> Result<u64, DatapathError> {
    of_kernel(|blob| member_offset(blob, "tcp_sock", "write_seq"))
}

/// Number of a function in the running kernel's types.
pub(crate) fn function_id(name: &str) -> Result<u32, DatapathError> {
    of_kernel(|blob| function(blob, name))
}

fn of_kernel<T>(read: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, DatapathError> {
    let path = Path::new(KERNEL_BTF);
    let blob = fs::read(path).map_err(|source| DatapathError::Path {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    read(&blob).map_err(|detail| DatapathError::Btf {
        path: path.to_owned(),
        detail,
    })
}

/// Byte offset of a direct, byte-aligned member of a structure.
fn member_offset(blob: &[u8], structure: &str, member: &str) -> Result<u64, String> {
    let btf = Btf::parse(blob)?;
    let mut at = 0;
    while at < btf.types.len() {
        let name = word(btf.types, at)?;
        let info = word(btf.types, at + 4)?;
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == KIND_STRUCT && btf.name(name) == Some(structure.as_bytes()) {
            let bitfields = info >> 31 == 1;
            return btf.find_member(at + TYPE, count, member.as_bytes(), bitfields);
        }
        at += TYPE + trailing_bytes(kind, count);
    }
    Err(format!("no struct {structure}"))
}

/// Number of a function. Types are numbered from 1, in their order.
fn function(blob: &[u8], function: &str) -> Result<u32, String> {
    let btf = Btf::parse(blob)?;
    let (mut at, mut id) = (0, 1);
    while at < btf.types.len() {
        let name = word(btf.types, at)?;
        let info = word(btf.types, at + 4)?;
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == KIND_FUNC && btf.name(name) == Some(function.as_bytes()) {
            return Ok(id);
        }
        at += TYPE + trailing_bytes(kind, count);
        id += 1;
    }
    Err(format!("no function {function}"))
}

/// Bytes after the fixed part of a type.
fn trailing_bytes(kind: u32, count: usize) -> usize {
    match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
        _ => 0,
    }
}

struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    fn parse(blob: &'a [u8]) -> Result<Self, String> {
        let header = blob.get(..HEADER).ok_or("shorter than a header")?;
        if header[..2] != MAGIC.to_ne_bytes() {
            return Err("wrong magic number".into());
        }
        let start = word(header, 4)? as usize;
        let section = |offset: usize, length: usize| {
            let from = start.checked_add(word(header, offset)? as usize);
            let length = word(header, length)? as usize;
            from.and_then(|from| blob.get(from..from.checked_add(length)?))
                .ok_or_else(|| String::from("a section lies outside the file"))
        };
        Ok(Self {
            types: section(8, 12)?,
            strings: section(16, 20)?,
        })
    }

    fn name(&self, offset: u32) -> Option<&'a [u8]> {
        let tail = self.strings.get(offset as usize..)?;
        tail.split(|byte| *byte == 0).next()
    }

    fn find_member(
        &self,
        members: usize,
        count: usize,
        wanted: &[u8],
        bitfields: bool,
    ) -> Result<u64, String> {
        for index in 0..count {
            let at = members + 12 * index;
            if self.name(word(self.types, at)?) == Some(wanted) {
                let offset = word(self.types, at + 8)?;
                let bits = if bitfields {
                    offset & 0x00ff_ffff
                } else {
                    offset
                };
                return if bits % 8 == 0 {
                    Ok(u64::from(bits / 8))
                } else {
                    Err("the member is a bit field".into())
                };
            }
        }
        Err(format!("no member {}", String::from_utf8_lossy(wanted)))
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, String> {
    bytes
        .get(at..at + 4)
        .and_then(|four| four.try_into().ok())
        .map(u32::from_ne_bytes)
        .ok_or_else(|| "truncated".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob with an int, an enum with two values, `struct pair { int first; int second; }`, and a function `mode`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0pair\0first\0second\0mode\0";
        let mut types: Vec<u32> = vec![1, KIND_INT << 24, 4, 32];
        types.extend([23, KIND_ENUM << 24 | 2, 4, 10, 0, 16, 1]);
        types.extend([5, KIND_STRUCT << 24 | 2, 8, 10, 1, 0, 16, 1, 32]);
        types.extend([23, KIND_FUNC << 24, 0]);
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut blob = MAGIC.to_ne_bytes().to_vec();
        blob.extend([1, 0]);
        for word in [HEADER, 0, types.len(), types.len(), strings.len()] {
            blob.extend((word as u32).to_ne_bytes());
        }
        blob.extend(types);
        blob.extend(strings);
        blob
    }

    #[test]
    fn finds_members_behind_other_types() {
        assert_eq!(member_offset(&sample(), "pair", "first"), Ok(0));
        assert_eq!(member_offset(&sample(), "pair", "second"), Ok(4));
    }

    #[test]
    fn finds_functions_by_their_place() {
        assert_eq!(function(&sample(), "mode"), Ok(4));
        let missing = function(&sample(), "pair");
        assert_eq!(missing, Err("no function pair".into()));
    }

    #[test]
    fn names_what_is_missing() {
        assert_eq!(
            member_offset(&sample(), "pair", "third"),
            Err("no member third".into())
        );
        assert_eq!(
            member_offset(&sample(), "trio", "first"),
            Err("no struct trio".into())
        );
    }

    #[test]
    fn any_truncation_is_an_error_and_no_panic() {
        let blob = sample();
        for length in 0..blob.len() {
            let _ = member_offset(&blob[..length], "pair", "second").unwrap_err();
        }
    }

    #[test]
    fn the_running_kernel_has_the_field() {
        let offset = write_seq_offset().unwrap();
        assert!(offset > 0 && offset.is_multiple_of(4), "{offset}");
    }
}
