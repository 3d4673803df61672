//! What an agent knows, in a process of its own: the state and the control-plane client of `karst-node-agent`, and
//! nothing of its data plane, which needs a kernel to steer. The memory of this process is what the mesh costs an agent.

use std::{
    io::{Read as _, Write as _},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, DEFAULT_TRUST_DOMAIN, NODE_POD_TYPE};
use karst_client::{AdsConfig, ControllerConfig, DeltaAds, InitialSubscription};
use karst_node_agent::{
    enrol::task::WorkerSet,
    state::{MeshState, store::Store, workload::Locality},
    xds::Handler,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Arguments of `mesh-agent`.
#[derive(clap::Args)]
pub struct Args {
    /// The controller.
    #[arg(long)]
    controller: String,
    /// The node whose agent this is.
    #[arg(long)]
    node: String,
    /// The controller's roots.
    #[arg(long)]
    roots: PathBuf,
    /// The agent's token.
    #[arg(long)]
    token: PathBuf,
}

/// What it says when it knows all.
#[derive(Serialize, Deserialize)]
pub struct Synced {
    /// From before the connection until everything was applied.
    pub seconds: f64,
    pub workloads: usize,
    pub services: usize,
}

/// Connects, says when it knows all, and goes on until its input ends.
pub fn run(args: &Args) -> Result<()> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // Somebody else's is as good.
    let _ = provider.install_default();
    // One thread for the control plane, as in an agent.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(follow(args))
}

async fn follow(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let state = Arc::new(MeshState::default());
    let local = Locality {
        node: Arc::from(args.node.as_str()),
        cluster: Arc::from("Kubernetes"),
        ..Locality::default()
    };
    let (events, mut enrolment) = mpsc::unbounded_channel();
    let handler = Handler::new(
        (Store::new(Arc::clone(&state), local), Arc::clone(&state)),
        (
            String::new(),
            DEFAULT_TRUST_DOMAIN.to_owned(),
            "istio-system".to_owned(),
        ),
        events,
        WorkerSet::default(),
    );
    let (ads, task) = DeltaAds::new(AdsConfig {
        controller: ControllerConfig {
            address: args.controller.clone(),
            server_name: "localhost".to_owned(),
            root_cert: args.roots.clone(),
            token: args.token.clone(),
        },
        client_id: format!("karst-node-agent~{}", args.node),
        types: [ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE]
            .map(|type_url| (type_url, InitialSubscription::Everything))
            .to_vec(),
    });
    let ready = ads.ready();
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let said = async {
        ready.await;
        let (workloads, services) = state.counts();
        let synced = Synced {
            seconds: begun.elapsed().as_secs_f64(),
            workloads,
            services,
        };
        println!("{}", serde_json::to_string(&synced)?);
        std::io::stdout().flush()?;
        while enrolment.recv().await.is_some() {}
        anyhow::Ok(())
    };
    tokio::select! {
        () = task.run(handler) => {}
        said = said => said?,
        end = end => {
            end.context("waiting for the end of input")??;
        }
    }
    Ok(())
}
