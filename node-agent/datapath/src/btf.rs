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

/// Byte offsets of fields of the running kernel's structures: each a structure and a member of it.
pub(crate) fn offsets<const N: usize>(
    fields: [(&str, &str); N],
) -> Result<[u64; N], DatapathError> {
    of_kernel(|blob| {
        let mut offsets = [0; N];
        for (offset, (structure, member)) in offsets.iter_mut().zip(fields) {
            *offset = member_offset(blob, structure, member)?;
        }
        Ok(offsets)
    })
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

/// Byte offset of a byte-aligned member of a structure, of unnamed structures and unions in it too.
fn member_offset(blob: &[u8], structure: &str, member: &str) -> Result<u64, String> {
    let btf = Btf::parse(blob)?;
    let mut at = 0;
    while at < btf.types.len() {
        let name = word(btf.types, at)?;
        let (kind, count) = btf.kind(at)?;
        if kind == KIND_STRUCT && btf.name(name) == Some(structure.as_bytes()) {
            let found = btf.find_member(at, member.as_bytes(), NESTED)?;
            return found.ok_or_else(|| format!("no member {member}"));
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

/// Unnamed structures in one another that are looked into.
const NESTED: u32 = 3;

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

    /// Kind of the type at `at`, and how many parts it has.
    fn kind(&self, at: usize) -> Result<(u32, usize), String> {
        let info = word(self.types, at + 4)?;
        Ok((info >> 24 & 0x1f, (info & 0xffff) as usize))
    }

    /// Where the type with this number is. They are numbered from 1, in their order.
    fn place(&self, id: u32) -> Result<usize, String> {
        let mut at = 0;
        for _ in 1..id {
            let (kind, count) = self.kind(at)?;
            at += TYPE + trailing_bytes(kind, count);
        }
        Ok(at)
    }

    /// In the structure or union at `at`, and `depth` levels of unnamed ones in it.
    fn find_member(&self, at: usize, wanted: &[u8], depth: u32) -> Result<Option<u64>, String> {
        let (kind, count) = self.kind(at)?;
        if !matches!(kind, KIND_STRUCT | KIND_UNION) {
            return Ok(None);
        }
        let bitfields = word(self.types, at + 4)? >> 31 == 1;
        for index in 0..count {
            let member = at + TYPE + 12 * index;
            let name = self.name(word(self.types, member)?);
            let offset = word(self.types, member + 8)?;
            let bits = if bitfields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            if name == Some(wanted) {
                return match bits % 8 {
                    0 => Ok(Some(u64::from(bits / 8))),
                    _ => Err("the member is a bit field".into()),
                };
            }
            if name == Some(b"") && depth > 0 {
                let inside = self.place(word(self.types, member + 4)?)?;
                if let Some(offset) = self.find_member(inside, wanted, depth - 1)? {
                    return Ok(Some(u64::from(bits / 8) + offset));
                }
            }
        }
        Ok(None)
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

    /// A blob with an int, an enum with two values, `struct pair { int first; int second; }`, a function `mode`, and
    /// `struct trio { int first; union { int second; int third; }; }` with its union behind it.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0pair\0first\0second\0mode\0trio\0third\0";
        let mut types: Vec<u32> = vec![1, KIND_INT << 24, 4, 32];
        types.extend([23, KIND_ENUM << 24 | 2, 4, 10, 0, 16, 1]);
        types.extend([5, KIND_STRUCT << 24 | 2, 8, 10, 1, 0, 16, 1, 32]);
        types.extend([23, KIND_FUNC << 24, 0]);
        types.extend([28, KIND_STRUCT << 24 | 2, 8, 10, 1, 0, 0, 6, 32]);
        types.extend([0, KIND_UNION << 24 | 2, 4, 16, 1, 0, 33, 1, 0]);
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
        assert_eq!(member_offset(&sample(), "trio", "second"), Ok(4));
        assert_eq!(member_offset(&sample(), "trio", "third"), Ok(4));
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
            member_offset(&sample(), "quartet", "first"),
            Err("no struct quartet".into())
        );
    }

    #[test]
    fn any_truncation_is_an_error_and_no_panic() {
        let blob = sample();
        for length in 0..blob.len() {
            for structure in ["pair", "trio"] {
                let _ = member_offset(&blob[..length], structure, "second").unwrap_err();
            }
        }
    }

    #[test]
    fn the_running_kernel_has_the_fields() {
        let fields = crate::object::FIELDS.map(|(_, structure, member)| (structure, member));
        for offset in offsets(fields).unwrap() {
            assert!(offset > 0 && offset.is_multiple_of(4), "{offset}");
        }
    }
}
