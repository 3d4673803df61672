//! Walks a map of sockets' storage, which the kernel opens to a program alone: a BPF iterator
//! (Linux 5.9) is called with every socket that has storage in the map, and what it writes is read
//! from a file (<https://docs.kernel.org/bpf/bpf_iterators.html>).
//!
//! The program is so small that it is written here in instructions: it needs no compiler, and
//! inspection works with any agent or none. Nothing stays loaded when the walk is over.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use super::{bpf, owned, raw};

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const ITER_CREATE: libc::c_int = 33;

/// `BPF_PROG_TYPE_TRACING` and `BPF_TRACE_ITER`.
const TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;

/// Helpers (linux/bpf.h).
const GET_SOCKET_COOKIE: i32 = 46;
const SEQ_WRITE: i32 = 127;

/// Bytes of a socket's cookie, which goes before each value.
pub(crate) const COOKIE: usize = 8;

/// Most bytes read: storage of a million sockets, which is more than a node has ports for.
const MAX_BYTES: u64 = 32 << 20;

/// Room for what the verifier has to say.
const LOG_BYTES: usize = 16 << 10;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: if cfg!(target_endian = "little") {
            from << 4 | to
        } else {
            to << 4 | from
        },
        offset,
        immediate,
    }
}

const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

const fn number(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

/// `to = *(u64 *)(from + offset)`.
const fn load(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x79, to, from, offset, 0)
}

const fn skip_if_zero(register: u8, instructions: i16) -> Instruction {
    instruction(0x15, register, 0, instructions, 0)
}

const fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

/// Writes the socket's cookie and `value_size` bytes of its storage. The context is `struct
/// bpf_iter__bpf_sk_storage_map`: meta, map, socket, value; the last two are null at the end.
const fn program(value_size: i32) -> [Instruction; 20] {
    [
        copy(6, 1),
        load(7, 6, 24),
        skip_if_zero(7, 15),
        load(1, 6, 16),
        skip_if_zero(1, 13),
        call(GET_SOCKET_COOKIE),
        // Onto the stack, eight bytes below its end.
        instruction(0x7b, 10, 0, -8, 0),
        // The file is the first member of meta.
        load(1, 6, 0),
        load(8, 1, 0),
        copy(1, 8),
        copy(2, 10),
        instruction(0x07, 2, 0, 0, -8),
        number(3, COOKIE as i32),
        call(SEQ_WRITE),
        copy(1, 8),
        copy(2, 7),
        number(3, value_size),
        call(SEQ_WRITE),
        number(0, 0),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// `BPF_PROG_LOAD`, up to the field that says which iterator it is for.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    attach_type: u32,
    btf: u32,
    function_record: u32,
    functions: u64,
    function_count: u32,
    line_record: u32,
    lines: u64,
    line_count: u32,
    attach_btf_id: u32,
}

/// `BPF_LINK_CREATE` with what iterators need.
#[repr(C)]
#[derive(Clone, Copy)]
struct IterLinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_length: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct IterAttr {
    link: u32,
    flags: u32,
}

/// Cookie and value of every socket with storage in `map`, one behind the other. `iterator` is the
/// BTF id of `bpf_iter_bpf_sk_storage_map` in the running kernel.
pub(crate) fn socket_storage(
    map: BorrowedFd<'_>,
    value_size: u32,
    iterator: u32,
) -> io::Result<Vec<u8>> {
    let program = load_program(value_size, iterator)?;
    let info = raw(map);
    let mut attr = IterLinkAttr {
        program: raw(program.as_fd()),
        target: 0,
        attach_type: TRACE_ITER,
        flags: 0,
        info: std::ptr::from_ref(&info) as u64,
        info_length: size_of::<u32>() as u32,
        padding: 0,
    };
    // SAFETY: `info` is live, and its length is given.
    let link: OwnedFd = unsafe { bpf(LINK_CREATE, &mut attr) }.map(owned)?;
    let mut attr = IterAttr {
        link: raw(link.as_fd()),
        flags: 0,
    };
    // SAFETY: the structure holds no pointers.
    let walk = unsafe { bpf(ITER_CREATE, &mut attr) }.map(owned)?;
    let mut bytes = Vec::new();
    // SAFETY: the descriptor is ours, and given away here.
    let file = unsafe { File::from_raw_fd(walk.into_raw_fd()) };
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn load_program(value_size: u32, iterator: u32) -> io::Result<OwnedFd> {
    let size = i32::try_from(value_size).map_err(io::Error::other)?;
    let instructions = program(size);
    let mut log = vec![0u8; LOG_BYTES];
    let mut name = [0; 16];
    name[..15].copy_from_slice(b"karst_inspect_s");
    let mut attr = LoadAttr {
        kind: TRACING,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        // What the helpers ask for; the programs that ship declare it too.
        licence: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: 0,
        name,
        device: 0,
        attach_type: TRACE_ITER,
        btf: 0,
        function_record: 0,
        functions: 0,
        function_count: 0,
        line_record: 0,
        lines: 0,
        line_count: 0,
        attach_btf_id: iterator,
    };
    // SAFETY: instructions, licence and log are live and of the sizes given.
    let loaded = unsafe { bpf(PROG_LOAD, &mut attr) };
    loaded.map(owned).map_err(|error| {
        let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
        let said = String::from_utf8_lossy(said);
        match said
            .lines()
            .rev()
            .find(|line| !line.starts_with("processed"))
        {
            Some(line) => io::Error::new(error.kind(), format!("{error}: {line}")),
            None => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{Instruction, LoadAttr, program};

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(std::mem::offset_of!(LoadAttr, attach_type), 68);
        assert_eq!(std::mem::offset_of!(LoadAttr, attach_btf_id), 108);
    }

    #[test]
    fn jumps_lead_to_the_end() {
        let program = program(24);
        for (at, jump) in program.iter().enumerate().filter(|(_, i)| i.code == 0x15) {
            assert_eq!(at as i16 + 1 + jump.offset, 18);
        }
        assert_eq!(program[18].code, 0xb7);
    }
}
