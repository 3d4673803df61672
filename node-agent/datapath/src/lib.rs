//! The eBPF datapath of one node: loads the programs, keeps them attached by pinned links, and
//! tells the kernel which pods are enrolled.
//!
//! It knows nothing of identities, policy or tunnels, and it makes no listeners: the agent makes
//! them inside the pod's namespace ([`netns::Netns::run`]) and hands them in. It is the only
//! crate that depends on aya. Start with [`Datapath::open`], then [`Datapath::enrol`]; the hooks
//! and maps are tabled in `ebpf/README.md`.
#![expect(
    unsafe_code,
    reason = "bpf(2), setns(2) and received descriptors have no safe wrapper; every other crate forbids it"
)]

mod api;
mod btf;
mod cgroup;
mod direct;
mod error;
mod flow_events;
mod guard;
pub mod inspect;
mod links;
mod logs;
mod map;
pub mod memory;
pub mod netns;
mod node;
mod object;
pub mod passing;
mod pins;
mod pods;
mod runs;
pub mod sock_diag;
mod sockets;
mod sys;

pub use api::{
    Counter, DatapathConfig, EnrolledPod, Loaded, LoadedProgram, MapFill, PodAttachment,
    VerifiedProgram,
};
pub use direct::LocalEndpoints;
pub use error::DatapathError;
pub use flow_events::FlowEvents;
pub use karst_bpf_common::LAYOUT_VERSION;
pub use node::Datapath;
pub use object::verify_object;
pub use runs::ProgramRuns;
pub use sockets::Original;
