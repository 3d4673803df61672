//! The sandboxes registered on this node, on disk so that they survive a
//! restart of the agent. A record counts only as long as its network namespace
//! is the very one it was made for.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karst_datapath::netns::{Netns, NetnsId};
use serde::{Deserialize, Serialize};

/// Longest pod uid, in bytes: a Kubernetes uid has 36.
const MAX_UID_BYTES: usize = 64;

/// Longest container id, in bytes: containerd's and CRI-O's have 64.
const MAX_CONTAINER_ID_BYTES: usize = 256;

/// Why a sandbox could not be recorded or forgotten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The request itself is unusable.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The network namespace cannot be opened.
    #[error("network namespace {path}: {source}")]
    Netns {
        /// Its path.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The record cannot be read, written or deleted.
    #[error("{action} {path}: {source}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl RegistryError {
    /// The stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "sandbox_invalid",
            Self::Netns { .. } => "netns_unusable",
            Self::File { .. } => "state_dir_unusable",
        }
    }
}

/// What a caller registers: the body of `PUT /v1/sandboxes/{uid}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its addresses: one or two, of different families.
    pub addresses: Vec<IpAddr>,
    /// The container runtime's id of it, where known.
    #[serde(default)]
    pub container_id: Option<String>,
    /// Which namespace it must be, where the caller has looked: the path may lead to another one
    /// by the time it is opened.
    #[serde(skip)]
    pub expected: Option<NetnsId>,
}

/// A registered sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Kubernetes uid of the pod.
    pub pod_uid: Arc<str>,
    /// Pod namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Which namespace that was.
    pub netns_id: NetnsId,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// The container runtime's id of it; a pod can have one sandbox after the other, and the end
    /// of the first may be told after the beginning of the second.
    pub container_id: Option<Arc<str>>,
}

/// A sandbox on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pod_uid: String,
    namespace: String,
    name: String,
    netns: PathBuf,
    netns_dev: u64,
    netns_ino: u64,
    addresses: Vec<IpAddr>,
    #[serde(default)]
    container_id: Option<String>,
    /// Inode numbers repeat after a reboot.
    boot_id: String,
}

impl Sandbox {
    /// Checks a registration and opens its namespace to learn which one it is.
    ///
    /// # Errors
    /// Names the field that cannot be used.
    pub fn new(pod_uid: &str, registration: Registration) -> Result<Self, RegistryError> {
        let invalid = |field, problem: &str| RegistryError::Invalid {
            field,
            problem: problem.to_owned(),
        };
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if !(1..=MAX_UID_BYTES).contains(&pod_uid.len()) || !pod_uid.chars().all(good) {
            return Err(invalid("pod_uid", "is not a Kubernetes uid"));
        }
        for (field, value) in [
            ("namespace", &registration.namespace),
            ("name", &registration.name),
        ] {
            if value.is_empty() || value.len() > 253 {
                return Err(invalid(field, "is empty or too long"));
            }
        }
        if !registration.netns.is_absolute() {
            return Err(invalid("netns", "is not an absolute path"));
        }
        let addresses: Vec<_> = registration
            .addresses
            .iter()
            .map(IpAddr::to_canonical)
            .collect();
        match addresses.as_slice() {
            [_] => {}
            [a, b] if a.is_ipv4() != b.is_ipv4() => {}
            _ => return Err(invalid("addresses", "are not one, or one of each family")),
        }
        let unusable = |ip: &IpAddr| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
        if addresses.iter().any(unusable) {
            return Err(invalid("addresses", "are not those of a pod"));
        }
        let id = registration.container_id.as_ref();
        if id.is_some_and(|id| !(1..=MAX_CONTAINER_ID_BYTES).contains(&id.len())) {
            return Err(invalid("container_id", "is empty or too long"));
        }
        let netns = Netns::open(&registration.netns).map_err(|source| RegistryError::Netns {
            path: registration.netns.clone(),
            source,
        })?;
        if registration.expected.is_some_and(|id| id != netns.id()) {
            let text = "it is another namespace now";
            return Err(RegistryError::Netns {
                path: registration.netns,
                source: io::Error::new(io::ErrorKind::InvalidInput, text),
            });
        }
        Ok(Self {
            pod_uid: Arc::from(pod_uid),
            namespace: Arc::from(registration.namespace),
            name: Arc::from(registration.name),
            netns: registration.netns,
            netns_id: netns.id(),
            addresses,
            container_id: registration.container_id.map(Arc::from),
        })
    }
}

/// All registered sandboxes, in memory and on disk.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    boot_id: String,
    sandboxes: BTreeMap<Arc<str>, Sandbox>,
}

impl Registry {
    /// Reads the records below `state_dir`; drops those whose namespace is gone
    /// or another one.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(state_dir: &Path) -> Result<Self, RegistryError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(path)
            .map_err(file("read", path))?
            .trim()
            .to_owned();
        Self::open_with(state_dir, boot_id)
    }

    fn open_with(state_dir: &Path, boot_id: String) -> Result<Self, RegistryError> {
        let dir = state_dir.join("sandboxes");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(file("create", &dir))?;
        let mut registry = Self {
            dir,
            boot_id,
            sandboxes: BTreeMap::new(),
        };
        let entries = fs::read_dir(&registry.dir).map_err(file("read", &registry.dir))?;
        for entry in entries {
            let path = entry.map_err(file("read", &registry.dir))?.path();
            match registry.load(&path) {
                Ok(sandbox) => {
                    registry
                        .sandboxes
                        .insert(Arc::clone(&sandbox.pod_uid), sandbox);
                }
                Err(error) => {
                    tracing::info!(%error, path = %path.display(), "registered sandbox dropped");
                    fs::remove_file(&path).map_err(file("delete", &path))?;
                }
            }
        }
        Ok(registry)
    }

    fn load(&self, path: &Path) -> Result<Sandbox, RegistryError> {
        let invalid = |field, problem: String| RegistryError::Invalid { field, problem };
        let bytes = fs::read(path).map_err(file("read", path))?;
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|e| invalid("record", e.to_string()))?;
        if record.boot_id != self.boot_id {
            return Err(invalid("boot_id", "is that of an earlier boot".to_owned()));
        }
        if self.path(&record.pod_uid) != path {
            return Err(invalid(
                "pod_uid",
                "is not that of the file's name".to_owned(),
            ));
        }
        let registration = Registration {
            namespace: record.namespace,
            name: record.name,
            netns: record.netns,
            addresses: record.addresses,
            container_id: record.container_id,
            expected: Some(NetnsId {
                dev: record.netns_dev,
                ino: record.netns_ino,
            }),
        };
        Sandbox::new(&record.pod_uid, registration)
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.dir.join(format!("{uid}.json"))
    }

    /// Records a sandbox, on disk first.
    ///
    /// # Errors
    /// It cannot be written; then nothing has changed.
    pub fn put(&mut self, sandbox: Sandbox) -> Result<(), RegistryError> {
        if self.sandboxes.get(&sandbox.pod_uid) == Some(&sandbox) {
            return Ok(());
        }
        let record = Record {
            pod_uid: sandbox.pod_uid.to_string(),
            namespace: sandbox.namespace.to_string(),
            name: sandbox.name.to_string(),
            netns: sandbox.netns.clone(),
            netns_dev: sandbox.netns_id.dev,
            netns_ino: sandbox.netns_id.ino,
            addresses: sandbox.addresses.clone(),
            container_id: sandbox.container_id.as_deref().map(str::to_owned),
            boot_id: self.boot_id.clone(),
        };
        let path = self.path(&sandbox.pod_uid);
        let bytes = serde_json::to_vec(&record).map_err(|e| RegistryError::Invalid {
            field: "record",
            problem: e.to_string(),
        })?;
        write_atomically(&path, &bytes).map_err(file("write", &path))?;
        self.sandboxes.insert(Arc::clone(&sandbox.pod_uid), sandbox);
        Ok(())
    }

    /// Forgets a sandbox; one that is not there is no error.
    ///
    /// # Errors
    /// Its record cannot be deleted; it is forgotten in memory all the same.
    pub fn remove(&mut self, uid: &str) -> Result<(), RegistryError> {
        if self.sandboxes.remove(uid).is_none() {
            return Ok(());
        }
        let path = self.path(uid);
        fs::remove_file(&path).map_err(file("delete", &path))
    }

    /// The sandbox of a pod.
    pub fn get(&self, uid: &str) -> Option<&Sandbox> {
        self.sandboxes.get(uid)
    }

    /// All sandboxes, by uid.
    pub fn iter(&self) -> impl Iterator<Item = &Sandbox> {
        self.sandboxes.values()
    }

    /// Uids of all sandboxes.
    pub fn uids(&self) -> impl Iterator<Item = Arc<str>> {
        self.sandboxes.keys().cloned()
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    move |source| RegistryError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A reader sees the old or the new content, also after a crash.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use karst_datapath::netns::{Netns, NetnsId};

    use super::{Registration, Registry, Sandbox};

    fn registration(addresses: &[&str]) -> Registration {
        Registration {
            namespace: "ns".to_owned(),
            name: "pod".to_owned(),
            netns: PathBuf::from("/proc/self/ns/net"),
            addresses: addresses
                .iter()
                .map(|a| a.parse().expect("address"))
                .collect(),
            container_id: Some("c-1".to_owned()),
            expected: None,
        }
    }

    fn open(dir: &tempfile::TempDir, boot: &str) -> Registry {
        Registry::open_with(dir.path(), boot.to_owned()).expect("opens")
    }

    #[test]
    fn survives_a_restart_but_not_a_reboot() {
        let dir = tempfile::tempdir().expect("dir");
        let sandbox = Sandbox::new("uid-1", registration(&["10.0.0.1", "fd00::1"])).expect("valid");
        open(&dir, "boot-a").put(sandbox.clone()).expect("written");
        assert_eq!(open(&dir, "boot-a").get("uid-1"), Some(&sandbox));
        assert!(open(&dir, "boot-b").get("uid-1").is_none());
        assert!(
            open(&dir, "boot-a").get("uid-1").is_none(),
            "dropped for good"
        );
    }

    #[test]
    fn another_namespace_under_the_same_path_is_dropped() {
        let dir = tempfile::tempdir().expect("dir");
        let mut sandbox = Sandbox::new("uid-1", registration(&["10.0.0.1"])).expect("valid");
        sandbox.netns_id.ino += 1;
        open(&dir, "boot").put(sandbox).expect("written");
        assert!(open(&dir, "boot").get("uid-1").is_none());
    }

    #[test]
    fn only_the_namespace_that_was_looked_at_is_registered() {
        let own = Netns::open(Path::new("/proc/self/ns/net")).expect("netns");
        let other = NetnsId {
            ino: own.id().ino + 1,
            ..own.id()
        };
        for (expected, taken) in [(None, true), (Some(own.id()), true), (Some(other), false)] {
            let registration = Registration {
                expected,
                ..registration(&["10.0.0.1"])
            };
            let outcome = Sandbox::new("uid-1", registration);
            assert_eq!(outcome.is_ok(), taken, "{outcome:?}");
        }
    }

    #[test]
    fn half_written_and_foreign_files_are_dropped() {
        let dir = tempfile::tempdir().expect("dir");
        open(&dir, "boot");
        let path = dir.path().join("sandboxes").join("uid-1.json");
        std::fs::write(&path, b"{\"pod_uid\":").expect("written");
        assert_eq!(open(&dir, "boot").uids().count(), 0);
        assert!(!path.exists());
    }

    #[test]
    fn removal_is_idempotent() {
        let dir = tempfile::tempdir().expect("dir");
        let mut registry = open(&dir, "boot");
        registry
            .put(Sandbox::new("u", registration(&["10.0.0.1"])).expect("valid"))
            .expect("put");
        registry.remove("u").expect("removed");
        registry.remove("u").expect("removed again");
        assert!(open(&dir, "boot").get("u").is_none());
    }

    #[test]
    fn bad_registrations_name_the_field() {
        let field = |uid: &str, r| match Sandbox::new(uid, r) {
            Err(super::RegistryError::Invalid { field, .. }) => field,
            Err(super::RegistryError::Netns { .. }) => "netns",
            other => panic!("{other:?}"),
        };
        let good = || registration(&["10.0.0.1"]);
        assert_eq!(field("../etc", good()), "pod_uid");
        assert_eq!(field("", good()), "pod_uid");
        assert_eq!(
            field(
                "u",
                Registration {
                    name: String::new(),
                    ..good()
                }
            ),
            "name"
        );
        assert_eq!(
            field(
                "u",
                Registration {
                    netns: PathBuf::from("x"),
                    ..good()
                }
            ),
            "netns"
        );
        assert_eq!(
            field(
                "u",
                Registration {
                    netns: PathBuf::from("/nowhere"),
                    ..good()
                }
            ),
            "netns"
        );
        assert_eq!(
            field(
                "u",
                Registration {
                    netns: PathBuf::from("/dev/null"),
                    ..good()
                }
            ),
            "netns"
        );
        for addresses in [
            &[][..],
            &["10.0.0.1", "10.0.0.2"],
            &["127.0.0.1"],
            &["::ffff:10.0.0.1", "10.0.0.1"],
        ] {
            assert_eq!(
                field("u", registration(addresses)),
                "addresses",
                "{addresses:?}"
            );
        }
    }
}
