//! What a connection costs in memory while nothing happens on it: the future of
//! its task is most of it, and a careless `.await` can double it unseen.

use std::path::Path;
use std::sync::Arc;

use karst_datapath::netns::Netns;
use karst_identity::SpiffeId;
use tokio::net::{TcpListener, TcpStream};

use crate::pod::{Pod, PodSpec};
use crate::testing::context;
use crate::worker::{LocalPod, Worker};

#[tokio::test]
async fn idle_connections_are_small() {
    let spec = PodSpec {
        uid: Arc::from("u"),
        namespace: Arc::from("ns"),
        name: Arc::from("p"),
        workload_uid: Arc::from("w"),
        identity: SpiffeId::new("cluster.local", "ns", "sa").expect("id"),
        addresses: vec!["10.0.0.1".parse().expect("ip")],
        waypoints: Arc::default(),
        egress: crate::egress::Egress::default(),
    };
    let netns = Netns::open(Path::new("/proc/self/ns/net")).expect("netns");
    let worker = Worker::new(context(Arc::default(), Arc::default()));
    let local = LocalPod::new(Arc::new(Pod::new(spec, netns)), &worker);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("address");
    let stream = async || TcpStream::connect(address).await.expect("connects");
    let outbound = size_of_val(&super::outbound::serve(
        local.clone(),
        stream().await,
        address,
    ));
    let plaintext = size_of_val(&super::plaintext::serve(
        local.clone(),
        stream().await,
        address,
    ));
    let tunnel = size_of_val(&super::inbound::serve(
        local.clone(),
        stream().await,
        address,
    ));
    // Measured: 1,256, 1,064 and 3,160 bytes; the limits leave room for a new compiler.
    assert!(
        outbound <= 1400,
        "an outbound connection's task takes {outbound} bytes"
    );
    assert!(
        plaintext <= 1250,
        "a plaintext connection's task takes {plaintext} bytes"
    );
    assert!(
        tunnel <= 3600,
        "a tunnel connection's task takes {tunnel} bytes"
    );
    let live = size_of::<super::connection::Live>();
    assert!(live <= 300, "a connection's record takes {live} bytes");
}
