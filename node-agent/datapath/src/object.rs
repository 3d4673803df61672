//! The embedded BPF object: which programs it holds, and how it is loaded.

use std::error::Error;
use std::fs;
use std::path::Path;

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};

use crate::api::VerifiedProgram;
use crate::map::{self, Room};
use crate::pins::failed;
use crate::sys::AttachType;
use crate::{DatapathError, btf};

/// Fields of kernel structures that the programs read, each with the global that holds its offset.
pub(crate) const FIELDS: [(&str, &str, &str); 4] = [
    ("WRITE_SEQ_OFFSET", "tcp_sock", "write_seq"),
    ("BYTES_SENT_OFFSET", "tcp_sock", "bytes_sent"),
    ("BYTES_RETRANS_OFFSET", "tcp_sock", "bytes_retrans"),
    // A sock begins with it.
    ("SOCK_FLAGS_OFFSET", "sock_common", "skc_flags"),
];

/// Empty in a build made before the programs were.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/karst.o"));

/// A program attached once per node, to the node's cgroup.
pub(crate) struct CgroupProgram {
    /// Its name in the object.
    pub(crate) name: &'static str,
    /// Its link's pin name.
    pub(crate) link: &'static str,
    pub(crate) attach_type: AttachType,
}

/// In the order of attachment: what hands addresses over is there before what captures.
pub(crate) const CGROUP_PROGRAMS: [CgroupProgram; 5] = [
    CgroupProgram {
        name: "karst_sock_ops",
        link: "sock_ops",
        attach_type: AttachType::SockOps,
    },
    CgroupProgram {
        name: "karst_peername4",
        link: "getpeername4",
        attach_type: AttachType::Peername4,
    },
    CgroupProgram {
        name: "karst_peername6",
        link: "getpeername6",
        attach_type: AttachType::Peername6,
    },
    CgroupProgram {
        name: "karst_connect4",
        link: "connect4",
        attach_type: AttachType::Connect4,
    },
    CgroupProgram {
        name: "karst_connect6",
        link: "connect6",
        attach_type: AttachType::Connect6,
    },
];

/// Attached once per enrolled pod, to the pod's network namespace.
pub(crate) const SK_LOOKUP: &str = "karst_sk_lookup";

/// What its links are called together; a pod's own is this, a dash and the pod's uid.
pub(crate) const SK_LOOKUP_LINK: &str = "sk_lookup";

/// Attached once per enrolled pod whose interface allows it, to the host's end of that.
pub(crate) const SYN_CHECK: &str = "karst_syn_check";

/// As [`SK_LOOKUP_LINK`].
pub(crate) const SYN_CHECK_LINK: &str = "syn_check";

/// Pods a verification makes room for: the verifier does not care.
const VERIFY_PODS: u32 = 16;

/// Loads the embedded object; maps pinned in `folder` are used, missing ones are made there.
pub(crate) fn load(folder: &Path, max_pods: u32) -> Result<Ebpf, DatapathError> {
    if OBJECT.is_empty() {
        return Err(DatapathError::ObjectMissing);
    }
    load_bytes(OBJECT, Some(folder), max_pods)
}

fn load_bytes(object: &[u8], folder: Option<&Path>, max_pods: u32) -> Result<Ebpf, DatapathError> {
    let offsets = btf::offsets(FIELDS.map(|(_, structure, field)| (structure, field)))?;
    let mut loader = EbpfLoader::new();
    for ((global, _, _), offset) in FIELDS.iter().zip(&offsets) {
        loader.override_global(global, offset, true);
    }
    for spec in map::ALL {
        if let Room::PerPod(_) = spec.room {
            loader.map_max_entries(spec.name, spec.max_entries(max_pods));
        }
        if let Some(folder) = folder {
            loader.map_pin_path(spec.name, folder.join(spec.name));
        }
    }
    let mut ebpf = loader.load(object).map_err(refused("object"))?;
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::SkLookup(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            other => {
                return Err(DatapathError::Load {
                    what: name.to_owned(),
                    detail: format!("unexpected program type {:?}", other.prog_type()),
                });
            }
        };
        loaded.map_err(refused(name))?;
    }
    Ok(ebpf)
}

/// Loader errors keep the kernel's explanation in their sources.
fn refused<E: Error>(what: &str) -> impl FnOnce(E) -> DatapathError {
    move |error| {
        let mut detail = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let text = inner.to_string();
            if !detail.contains(&text) {
                detail = format!("{detail}: {text}");
            }
            source = inner.source();
        }
        DatapathError::Load {
            what: what.to_owned(),
            detail,
        }
    }
}

/// A loaded program that must be in the object.
pub(crate) fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Program, DatapathError> {
    ebpf.program(name).ok_or_else(|| DatapathError::Load {
        what: name.to_owned(),
        detail: "not in the object".to_owned(),
    })
}

/// Loads every program of the object at `path` into the running kernel's verifier, attaching
/// and pinning nothing. Needs root.
///
/// # Errors
/// The file cannot be read, or the kernel refuses a program: the error holds the verifier's log.
pub fn verify_object(path: &Path) -> Result<Vec<VerifiedProgram>, DatapathError> {
    let object = fs::read(path).map_err(failed("read", path))?;
    let ebpf = load_bytes(&object, None, VERIFY_PODS)?;
    let mut programs = Vec::new();
    for (name, program) in ebpf.programs() {
        let info = program.info().map_err(refused(name))?;
        programs.push(VerifiedProgram {
            name: name.to_owned(),
            kind: kind_name(program),
            verified_instructions: info.verified_instruction_count().unwrap_or_default(),
            jited_bytes: info.size_jitted(),
        });
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

fn kind_name(program: &Program) -> &'static str {
    match program {
        Program::CgroupSockAddr(_) => "cgroup_sock_addr",
        Program::SockOps(_) => "sock_ops",
        Program::SkLookup(_) => "sk_lookup",
        Program::SchedClassifier(_) => "sched_cls",
        _ => "other",
    }
}
