//! Whom to ask: this machine's kernel and agent, a waypoint, or a node through the API server.

use std::path::{Path, PathBuf};

use karst_datapath::inspect as pins;
use serde_json::Value;

use super::object::Object;
use super::remote::{self, Target};
use crate::admin::Source;
use crate::args::{Inspect, NodeArgs};
use crate::failure::Failure;
use crate::kernel;

/// Where an answer comes from.
pub enum Place {
    /// This machine.
    Local(Local),
    /// A waypoint's admin server.
    Waypoint(Source),
    /// A node, through the API server.
    Remote(remote::Node),
}

/// A node whose pins are on this machine.
pub struct Local {
    root: PathBuf,
    node: Option<String>,
    socket: Option<PathBuf>,
}

impl Local {
    /// The node of this name; else the one that the environment names, as it does in the agent's container.
    pub fn new(args: &NodeArgs, node: Option<String>) -> Self {
        Self {
            root: args.bpffs_root.clone(),
            node: node.or_else(|| std::env::var("KARST_NODE_NAME").ok()),
            socket: args.admin_socket.clone(),
        }
    }

    /// The directory with the pins of the nodes, and the node's name.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn pins(&self) -> Result<(&Path, String), Failure> {
        let node = kernel::node(&self.root, self.node.as_deref())?;
        Ok((&self.root, node))
    }

    /// The agent's admin socket.
    ///
    /// # Errors
    /// There is no node, or several.
    pub fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let (_, node) = self.pins()?;
        let folder = Path::new("/run/karst").join(node);
        Ok(folder.join("admin").join("agent.sock"))
    }
}

impl Place {
    /// Whom the arguments name for an object.
    ///
    /// # Errors
    /// Nobody there has such objects, or the cluster cannot be asked.
    pub fn find(args: &Inspect, object: &Object) -> Result<Self, Failure> {
        if let Some(address) = args.waypoint_address {
            return match object.of_waypoint {
                true => Ok(Self::Waypoint(Source::Waypoint(address.to_string()))),
                false => Err(not_of(object, "waypoint", "ask its node: --node")),
            };
        }
        if let Some(pod) = &args.place.pod {
            return match remote::target(args.kubernetes(), pod, object.of_waypoint)? {
                Target::Waypoint(forward) => Ok(Self::Waypoint(Source::Forward(forward))),
                Target::Node(node) => Self::of_node(args, object, node),
            };
        }
        match &args.place.node {
            Some(node) => Self::of_node(args, object, node.clone()),
            None => Self::Local(Local::new(&args.place, None)).checked(object),
        }
    }

    fn of_node(args: &Inspect, object: &Object, node: String) -> Result<Self, Failure> {
        let place = match is_here(&args.place, &node) {
            true => Self::Local(Local::new(&args.place, Some(node))),
            false => Self::Remote(remote::Node::new(args.kubernetes().clone(), node)),
        };
        place.checked(object)
    }

    fn checked(self, object: &Object) -> Result<Self, Failure> {
        if object.of_node {
            return Ok(self);
        }
        let hint =
            "name a waypoint: --pod NAMESPACE/POD, or --waypoint-address inside of its namespace";
        Err(not_of(object, "node", hint))
    }

    /// This machine.
    ///
    /// # Errors
    /// It is another place.
    pub fn here(&self) -> Result<&Local, Failure> {
        match self {
            Self::Local(local) => Ok(local),
            _ => Err(Failure::unsupported(
                "only a node has what is in its kernel",
            )),
        }
    }

    /// Whether a waypoint answers.
    pub fn is_waypoint(&self) -> bool {
        matches!(self, Self::Waypoint(_))
    }

    /// A page of the agent or the waypoint.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub fn page(&self, path: &str) -> Result<Value, Failure> {
        match self {
            Self::Local(local) => Source::Agent(local.socket()?).page(path),
            Self::Waypoint(waypoint) => waypoint.page(path),
            Self::Remote(_) => Err(Failure::unsupported("a node is asked by its own command")),
        }
    }

    /// A page that is a list.
    ///
    /// # Errors
    /// As [`Self::page`], and it is none.
    pub fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        match self.page(path)? {
            Value::Array(items) => Ok(items),
            _ => Err(Failure::failed("json", format!("{path} is no list"))),
        }
    }
}

/// Whether a node is on this machine: its pins are, or its agent's socket is named.
pub fn is_here(args: &NodeArgs, node: &str) -> bool {
    let here = pins::nodes(&args.bpffs_root).unwrap_or_default();
    args.admin_socket.is_some() || here.iter().any(|one| one == node)
}

fn not_of(object: &Object, place: &str, hint: &str) -> Failure {
    Failure::unsupported(format!("a {place} has no {}: {hint}", object.name))
}
