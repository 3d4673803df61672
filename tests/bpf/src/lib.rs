//! A node small enough for one test: a bridge with two pods and a stranger on it, the node's
//! cgroup and bpffs folder, and threads that act in any of those places.
//!
//! It runs no agent: tests play it, listener by listener, against the real datapath and kernel.
//! Needs root. Every [`World`] has names of its own, so tests run side by side, and removes all
//! it made when dropped, also when the test panics. Start with [`World::new`].

mod agent;
mod pair;
mod place;
pub mod raw;
mod tcp;

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use karst_datapath::netns::Netns;
use karst_datapath::{Counter, Datapath, DatapathConfig};

pub use agent::Agent;
pub use pair::{APP_PORT, Pair, VERDICT_ALLOW};
pub use place::{Cgroup, Place};
pub use tcp::{accept, connect, echo_once, refused};

/// How long anything that should happen may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long to look for what should not happen.
pub const QUIET: Duration = Duration::from_millis(300);

/// The node's own address on the bridge, which pods see as their router.
pub const NODE_V4: &str = "10.77.0.1";

/// Who lives on the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The node itself, with the bridge.
    Node,
    /// A pod.
    A,
    /// Another pod.
    B,
    /// A machine elsewhere.
    Stranger,
}

impl Host {
    const ALL: [Self; 4] = [Self::Node, Self::A, Self::B, Self::Stranger];

    fn suffix(self) -> &'static str {
        match self {
            Self::Node => "n",
            Self::A => "a",
            Self::B => "b",
            Self::Stranger => "s",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Node => 1,
            Self::A => 2,
            Self::B => 3,
            Self::Stranger => 9,
        }
    }

    /// The uid under which tests enrol it.
    pub fn uid(self) -> &'static str {
        match self {
            Self::Node => "uid-of-node",
            Self::A => "uid-of-pod-a",
            Self::B => "uid-of-pod-b",
            Self::Stranger => "uid-of-stranger",
        }
    }

    /// Its IPv4 address.
    pub fn v4(self) -> IpAddr {
        IpAddr::from([10, 77, 0, self.number()])
    }

    /// Its IPv6 address.
    pub fn v6(self) -> IpAddr {
        IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(self.number())])
    }
}

/// One node.
pub struct World {
    name: String,
    config: DatapathConfig,
}

impl World {
    /// Makes namespaces, links and cgroups.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ke-{}-{number}", std::process::id());
        let node_cgroup = place::own_cgroup()?.join(&name);
        let bpffs_root = Path::new("/sys/fs/bpf").join(&name);
        let world = Self {
            config: DatapathConfig {
                node_name: "node-1.test".to_owned(),
                agent_cgroup: node_cgroup.join("karst-agent"),
                kubepods_cgroup: node_cgroup.join("kubepods"),
                bpffs_root,
                node_cgroup,
                max_pods: 4,
            },
            name,
        };
        // From here on dropping it cleans up what the next steps made, however far they came.
        place::make_cgroups(&world.config.node_cgroup)?;
        world.make_network()?;
        Ok(world)
    }

    fn make_network(&self) -> Result<()> {
        for host in Host::ALL {
            let netns = self.netns_name(host);
            ip(&["netns", "add", &netns])?;
            ip(&["-n", &netns, "link", "set", "lo", "up"])?;
        }
        let node = self.netns_name(Host::Node);
        ip(&["-n", &node, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &node, "link", "set", "br0", "up"])?;
        Self::add_addresses(&node, "br0", Host::Node)?;
        for host in [Host::A, Host::B, Host::Stranger] {
            let netns = self.netns_name(host);
            let port = format!("v{}", host.suffix());
            ip(&[
                "-n", &node, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
                &netns,
            ])?;
            ip(&["-n", &node, "link", "set", &port, "master", "br0", "up"])?;
            Self::add_addresses(&netns, "eth0", host)?;
            ip(&["-n", &netns, "link", "set", "eth0", "up"])?;
            ip(&["-n", &netns, "route", "add", "default", "via", NODE_V4])?;
        }
        Ok(())
    }

    fn add_addresses(netns: &str, device: &str, host: Host) -> Result<()> {
        let v4 = format!("{}/24", host.v4());
        let v6 = format!("{}/64", host.v6());
        ip(&["-n", netns, "addr", "add", &v4, "dev", device])?;
        ip(&["-n", netns, "addr", "add", &v6, "dev", device, "nodad"])
    }

    fn netns_name(&self, host: Host) -> String {
        format!("{}{}", self.name, host.suffix())
    }

    /// The namespace of `host`.
    pub fn netns(&self, host: Host) -> Result<Netns> {
        let path = Path::new("/run/netns").join(self.netns_name(host));
        Netns::open(&path).with_context(|| format!("open {}", path.display()))
    }

    /// Deletes the namespace of `host`, as when a pod ends.
    pub fn delete_netns(&self, host: Host) -> Result<()> {
        ip(&["netns", "del", &self.netns_name(host)])
    }

    /// Makes the namespace of `host` anew, without links.
    pub fn remake_netns(&self, host: Host) -> Result<()> {
        let netns = self.netns_name(host);
        ip(&["netns", "add", &netns])?;
        ip(&["-n", &netns, "link", "set", "lo", "up"])
    }

    /// Gives `host`, whose namespace was made anew, its addresses on an interface that leads nowhere.
    pub fn add_bridge(&self, host: Host) -> Result<()> {
        let netns = self.netns_name(host);
        ip(&["-n", &netns, "link", "add", "eth0", "type", "bridge"])?;
        Self::add_addresses(&netns, "eth0", host)
    }

    /// Gives it its addresses on a veth that ends in the namespace of `other` instead.
    pub fn link_elsewhere(&self, host: Host, other: Host) -> Result<()> {
        let (netns, peer) = (self.netns_name(host), self.netns_name(other));
        ip(&["-n", &netns, "link", "del", "eth0"])?;
        ip(&[
            "-n", &netns, "link", "add", "eth0", "type", "veth", "peer", "name", "there", "netns",
            &peer,
        ])?;
        Self::add_addresses(&netns, "eth0", host)
    }

    /// Gives `host` one more address.
    pub fn add_address(&self, host: Host, address: IpAddr) -> Result<()> {
        let address = format!("{address}/32");
        ip(&[
            "-n",
            &self.netns_name(host),
            "addr",
            "add",
            &address,
            "dev",
            "eth0",
        ])
    }

    /// Takes the link of `host` down at the bridge: what is sent to it gets lost.
    pub fn cut_off(&self, host: Host) -> Result<()> {
        let port = format!("v{}", host.suffix());
        // The neighbour stays known, so that packets leave and are lost, as on a real wire.
        let node = self.netns_name(Host::Node);
        let neighbour = host.v4().to_string();
        let hardware = "02:00:00:00:00:01";
        ip(&[
            "-n", &node, "neigh", "replace", &neighbour, "lladdr", hardware, "dev", "br0",
        ])?;
        ip(&["-n", &node, "link", "set", &port, "down"])
    }

    /// Undoes [`World::cut_off`].
    pub fn rejoin(&self, host: Host) -> Result<()> {
        let node = self.netns_name(Host::Node);
        let port = format!("v{}", host.suffix());
        ip(&["-n", &node, "link", "set", &port, "up"])
    }

    /// Gives both addresses of `victim`, which should be cut off, to `thief`, and makes everybody ask again who
    /// has them.
    pub fn take_over(&self, thief: Host, victim: Host) -> Result<()> {
        let netns = self.netns_name(thief);
        let (v4, v6) = (
            format!("{}/32", victim.v4()),
            format!("{}/128", victim.v6()),
        );
        ip(&["-n", &netns, "addr", "add", &v4, "dev", "eth0"])?;
        ip(&["-n", &netns, "addr", "add", &v6, "dev", "eth0", "nodad"])?;
        for host in [Host::A, Host::B, Host::Stranger] {
            ip(&["-n", &self.netns_name(host), "neigh", "flush", "all"])?;
        }
        Ok(())
    }

    /// The hardware address of a pod's interface.
    pub fn hardware_address(&self, host: Host) -> Result<[u8; 6]> {
        let netns = self.netns_name(host);
        let output = Command::new("ip")
            .args(["-n", &netns, "-o", "link", "show", "eth0"])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let address = text.split("link/ether ").nth(1);
        let address = address.and_then(|rest| rest.split(' ').next());
        let octets = address.context("no hardware address")?.split(':');
        let octets: Vec<u8> = octets
            .map(|octet| u8::from_str_radix(octet, 16))
            .collect::<Result<_, _>>()?;
        octets.try_into().map_err(|_| anyhow!("not six octets"))
    }

    /// Sets a kernel parameter of `host`'s namespace, such as `net/ipv4/tcp_syncookies`.
    pub fn set_parameter(&self, host: Host, parameter: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(parameter);
        let set = self.app(host)?.run(|| fs::write(&path, value))?;
        set.with_context(|| format!("set {parameter}"))
    }

    /// Detaches the check of handshakes at the host's end of a pod's interface.
    pub fn detach_guard(&self, host: Host) -> Result<()> {
        let pin = format!("syn_check-{}", host.uid());
        Ok(fs::remove_file(self.node_pins().join("links").join(pin))?)
    }

    /// Takes the node's address from it and gives it to `host`; `peer` is on the wire again.
    pub fn hand_over_node_address(&self, host: Host, peer: Host) -> Result<()> {
        let node = self.netns_name(Host::Node);
        let address = format!("{NODE_V4}/24");
        ip(&["-n", &node, "addr", "del", &address, "dev", "br0"])?;
        ip(&[
            "-n",
            &node,
            "link",
            "set",
            &format!("v{}", peer.suffix()),
            "up",
        ])?;
        self.add_address(host, Host::Node.v4())
    }

    /// Deletes the node's cgroups and makes them again.
    pub fn remake_cgroups(&self) -> Result<()> {
        place::remove_cgroups(&self.config.node_cgroup);
        place::make_cgroups(&self.config.node_cgroup)
    }

    /// How many pods can be enrolled; before the datapath is first opened.
    pub fn set_max_pods(&mut self, max_pods: u32) {
        self.config.max_pods = max_pods;
    }

    /// Where the pins are.
    pub fn node_pins(&self) -> PathBuf {
        let folder = self.config.node_name.replace('.', ":");
        self.config.bpffs_root.join(folder)
    }

    /// Where the datapath of this node lives.
    pub fn config(&self) -> &DatapathConfig {
        &self.config
    }

    /// Opens the datapath as the agent does: in the node's namespace.
    pub fn open(&self) -> Result<Datapath> {
        let config = self.config.clone();
        Ok(self.run(Host::Node, Cgroup::Agent, move || Datapath::open(&config))??)
    }

    /// Runs `f` on a thread of its own in `host`'s namespace and in `cgroup` below the node's.
    pub fn run<T: Send>(
        &self,
        host: Host,
        cgroup: Cgroup,
        f: impl FnOnce() -> T + Send,
    ) -> Result<T> {
        self.place(host, cgroup)?.run(f)
    }

    /// A place to run in more than once.
    pub fn place(&self, host: Host, cgroup: Cgroup) -> Result<Place> {
        Ok(Place::new(self.netns(host)?, cgroup.path(&self.config)))
    }

    /// The place of the application in a pod, of the stranger, or of a process of the node.
    pub fn app(&self, host: Host) -> Result<Place> {
        let cgroup = match host {
            Host::Node => Cgroup::Host,
            Host::A => Cgroup::PodA,
            Host::B => Cgroup::PodB,
            Host::Stranger => Cgroup::Elsewhere,
        };
        self.place(host, cgroup)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Every step, whatever became of the others; what was never made cannot be removed.
        let _ = Datapath::remove_all(&self.config);
        let _ = fs::remove_dir(&self.config.bpffs_root);
        for host in Host::ALL {
            let _ = ip(&["netns", "del", &self.netns_name(host)]);
        }
        place::remove_cgroups(&self.config.node_cgroup);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = match Command::new("ip").args(arguments).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("the `ip` command of iproute2 is missing")
        }
        output => output?,
    };
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// The value of one counter.
pub fn counter(datapath: &Datapath, reason: &str) -> Result<u64> {
    let counters = datapath.counters()?;
    let found = counters.iter().find(|counter| counter.reason == reason);
    found
        .map(|Counter { value, .. }| *value)
        .with_context(|| format!("no counter {reason}"))
}

/// Entries of one map.
pub fn entries(datapath: &Datapath, map: &str) -> Result<u32> {
    let fills = datapath.map_fill()?;
    let found = fills.iter().find(|fill| fill.map == map);
    found
        .map(|fill| fill.entries)
        .with_context(|| format!("no map {map}"))
}

/// Asks again until `probe` says yes.
pub fn eventually(what: &str, mut probe: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !probe()? {
        ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
    Ok(())
}

/// All the folders and namespaces of a world, to show that none is left.
pub fn leftovers(config: &DatapathConfig) -> Vec<PathBuf> {
    let folders = [&config.bpffs_root, &config.node_cgroup];
    folders
        .into_iter()
        .filter(|path| path.exists())
        .cloned()
        .collect()
}
