//! The node's side of enrolment, started together: the CNI socket, the plugin's place on the
//! node, and the search for pods that run already.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use karst_cni::PLUGIN_TYPE;
use karst_datapath::netns::Netns;
use karst_process::http_server::serve_root;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;

use crate::cni::install::{self, CniInstall, InstallStatus};
use crate::cni::server::{self, CniServer, HostPaths, MAX_CALLS};
use crate::config::RuntimeConfig;
use crate::discover;
use crate::discover::scan::NodeView;
use crate::enrol::attach::Missing;
use crate::enrol::task::Event;
use crate::metrics::cni::CniMetrics;

/// How the plugin's place is looked after, if it is.
pub fn install_status(config: &RuntimeConfig) -> Option<Arc<InstallStatus>> {
    config
        .cni_dirs
        .is_some()
        .then(|| Arc::new(InstallStatus::pending()))
}

/// What the parts need from the rest of the agent.
pub struct Links {
    /// The enrolment.
    pub events: mpsc::UnboundedSender<Event>,
    /// Pods without a sandbox.
    pub missing: watch::Receiver<Arc<Vec<Missing>>>,
    /// Counters of the plugin's calls.
    pub metrics: Arc<CniMetrics>,
    /// From [`install_status`].
    pub install: Option<Arc<InstallStatus>>,
    /// The cgroup above the node's pods.
    pub kubepods: PathBuf,
}

/// Starts what the configuration asks for.
///
/// # Errors
/// The socket cannot be opened, or our own namespace not be read.
pub fn start(config: &RuntimeConfig, links: Links) -> io::Result<()> {
    if let Some(path) = &config.cni_socket {
        let server = Arc::new(CniServer {
            enrolment: links.events.clone(),
            paths: HostPaths {
                proc: config.host_proc.clone(),
                netns_dir: config.netns_dir.clone(),
            },
            metrics: links.metrics,
        });
        let listener = server::listen(path)?;
        let handler = move |request| Arc::clone(&server).handle(request);
        spawn_local(serve_root(listener, handler, MAX_CALLS));
        // Only now: an entry without a socket behind it fails every new pod of the node.
        if let (Some((bin_dir, conf_dir)), Some(status)) = (&config.cni_dirs, links.install) {
            let own = std::env::current_exe()?;
            let install = CniInstall {
                source: own.with_file_name(PLUGIN_TYPE),
                bin_dir: bin_dir.clone(),
                conf_dir: conf_dir.clone(),
                entry: install::entry(path),
            };
            spawn_local(install::keep(install, status));
        }
    }
    if config.discover_pods {
        let view = NodeView {
            proc: config.host_proc.clone(),
            netns_dir: config.netns_dir.clone(),
            kubepods: links.kubepods,
            host_netns: Netns::current()?.id(),
        };
        spawn_local(discover::run(view, links.missing, links.events));
    }
    Ok(())
}
