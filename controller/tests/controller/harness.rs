//! A controller process with everything it needs, and clients for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use karst_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    node::NodePod,
    security::Authorization,
    workload::{Address, TunnelProtocol, Workload, address},
};
use karst_client::{
    AdsConfig, Controller, ControllerConfig, DeltaAds, InitialSubscription, Resource,
    ResourceHandler,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::ports;

/// Everything that is to happen happens within this time, on a busy machine too.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What tokens are made with.
const ISSUER: &str = "https://kubernetes.default.svc";
const AUDIENCE: &str = "karst-ca";

/// The name that the controller's certificate has.
pub const NAME: &str = "controller.test";

/// A running controller.
pub struct Server {
    pub folder: TempDir,
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    pub port: u16,
    pub metrics_port: u16,
    signer: Signer,
}

/// Polls until `probe` gives something.
pub async fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The same, outside a runtime.
pub fn eventually_blocking<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Signs tokens.
pub struct Signer {
    key: EncodingKey,
    pub jwk: Value,
    kid: String,
}

impl Signer {
    pub fn new(kid: &str) -> Self {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let key = EncodingKey::from_ec_pem(pem.as_bytes()).unwrap();
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(kid.to_owned());
        Self {
            key,
            jwk: serde_json::to_value(jwk).unwrap(),
            kid: kid.to_owned(),
        }
    }

    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// The claims of the node agent's token on a node.
pub fn agent_claims(node: &str) -> Value {
    json!({
        "iss": ISSUER,
        "aud": [AUDIENCE],
        "sub": "system:serviceaccount:karst-system:karst-node-agent",
        "iat": now() - 1,
        "nbf": now() - 1,
        "exp": now() + 3600,
        "kubernetes.io": {
            "namespace": "karst-system",
            "serviceaccount": {"name": "karst-node-agent", "uid": "sa-uid"},
            "pod": {"name": format!("agent-{node}"), "uid": "pod-uid"},
            "node": {"name": node, "uid": "node-uid"},
        },
    })
}

/// The claims of a token of a proxy in the namespace `shop`, on a node.
pub fn proxy_claims(gateway: &str, node: &str) -> Value {
    let mut claims = agent_claims(node);
    claims["sub"] = json!(format!("system:serviceaccount:shop:{gateway}"));
    claims["kubernetes.io"]["namespace"] = json!("shop");
    claims["kubernetes.io"]["serviceaccount"]["name"] = json!(gateway);
    claims["kubernetes.io"]["pod"]["name"] = json!(format!("{gateway}-1"));
    claims
}

impl Server {
    /// Starts a controller that reads these manifests (file name, text).
    pub fn start(manifests: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        for (name, text) in manifests {
            fs::write(folder.path().join("manifests").join(name), text).unwrap();
        }
        let signer = Signer::new("key-1");
        let keys = json!({"keys": [signer.jwk]});
        fs::write(folder.path().join("jwks.json"), keys.to_string()).unwrap();
        let (port, metrics_port) = (ports::free(), ports::free());
        let (child, log) = spawn(folder.path(), port, metrics_port, &[]);
        let server = Self {
            folder,
            child,
            log,
            port,
            metrics_port,
            signer,
        };
        server.wait_ready();
        server
    }

    fn wait_ready(&self) {
        eventually_blocking("the controller is ready", || {
            self.find_log(|event| event["message"] == "ready")
        });
    }

    /// Stops with SIGTERM.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        eventually_blocking("the controller has stopped", || {
            self.child.try_wait().unwrap()
        })
    }

    /// Stops and starts again, on the same ports and folders.
    pub fn restart(&mut self) {
        assert!(self.stop().success());
        self.start_again(&[]);
    }

    /// Starts again with other arguments besides, after it has been stopped.
    pub fn start_again(&mut self, extra: &[String]) {
        let (child, log) = spawn(self.folder.path(), self.port, self.metrics_port, extra);
        self.child = child;
        self.log = log;
        self.wait_ready();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn manifest(&self, name: &str) -> PathBuf {
        self.path("manifests").join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.manifest(name), text).unwrap();
    }

    pub fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    pub fn find_log(&self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        self.log
            .lock()
            .unwrap()
            .iter()
            .find(|event| wanted(event))
            .cloned()
    }

    /// A token of the controller's issuer.
    pub fn token(&self, claims: &Value) -> String {
        self.signer.sign(claims)
    }

    /// How the agent of a node reaches the controller.
    pub fn agent(&self, node: &str) -> ControllerConfig {
        self.client(&format!("agent-{node}"), &self.token(&agent_claims(node)))
    }

    /// How the proxy of a Gateway in the namespace `shop` reaches the controller.
    pub fn proxy(&self, gateway: &str, node: &str) -> ControllerConfig {
        let token = self.token(&proxy_claims(gateway, node));
        self.client(&format!("proxy-{gateway}-{node}"), &token)
    }

    /// How a client with that token reaches the controller.
    pub fn client(&self, name: &str, token: &str) -> ControllerConfig {
        let file = self.path(&format!("{name}.token"));
        fs::write(&file, token).unwrap();
        ControllerConfig {
            address: format!("127.0.0.1:{}", self.port),
            server_name: NAME.to_owned(),
            root_cert: self.path("root.pem"),
            token: file,
        }
    }

    /// A metric's value; 0 if it has none yet.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, body) = self.get("/metrics").await;
        let line = body
            .lines()
            .find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next())
            .map_or(0.0, |value| value.parse().unwrap())
    }

    /// Asks the plain HTTP endpoint. Returns status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", self.metrics_port))
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for event in self.log() {
                eprintln!("controller: {event}");
            }
        }
    }
}

/// Arguments for a controller in a folder.
pub fn arguments(folder: &Path, port: u16, metrics_port: u16) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--source=dir:{}", path("manifests")),
        format!("--listen=127.0.0.1:{port}"),
        format!("--metrics-listen=127.0.0.1:{metrics_port}"),
        format!("--state-dir={}", path("state")),
        format!("--root-cert-out={}", path("root.pem")),
        format!("--serving-name={NAME}"),
        format!("--token-jwks={}", path("jwks.json")),
        format!("--token-issuer={ISSUER}"),
        "--log-format=json".to_owned(),
    ]
}

pub fn command(folder: &Path, port: u16, metrics_port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karst-controller"));
    command
        .args(arguments(folder, port, metrics_port))
        .env("KARST_LOG", "info")
        .stderr(Stdio::piped());
    command
}

fn spawn(
    folder: &Path,
    port: u16,
    metrics_port: u16,
    extra: &[String],
) -> (Child, Arc<Mutex<Vec<Value>>>) {
    let mut child = command(folder, port, metrics_port)
        .args(extra)
        .spawn()
        .unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let sink = log.clone();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
            sink.lock().unwrap().push(event);
        }
    });
    (child, log)
}

/// What a client has been told.
#[derive(Default)]
pub struct Mirror {
    pub addresses: BTreeMap<String, Address>,
    pub node_pods: BTreeMap<String, NodePod>,
    pub policies: BTreeMap<String, Authorization>,
    /// Everything in the order in which it came: type, name, whether it is there.
    pub history: Vec<(String, String, bool)>,
    /// Names that are to be rejected.
    pub reject: BTreeSet<String>,
}

/// A client that mirrors what it is told.
pub struct Agent {
    pub ads: DeltaAds,
    pub mirror: Arc<Mutex<Mirror>>,
    task: tokio::task::JoinHandle<()>,
}

struct Handler(Arc<Mutex<Mirror>>);

impl ResourceHandler for Handler {
    fn apply(
        &mut self,
        type_url: &str,
        updates: Vec<Resource>,
        removed: Vec<String>,
    ) -> Vec<(String, String)> {
        let mut mirror = self.0.lock().unwrap();
        let mut rejected = Vec::new();
        for resource in updates {
            if mirror.reject.contains(&resource.name) {
                rejected.push((resource.name, "the test rejects it".to_owned()));
                continue;
            }
            let name = resource.name.clone();
            mirror
                .history
                .push((type_url.to_owned(), name.clone(), true));
            if type_url == ADDRESS_TYPE {
                let address: Address = resource.unpack(type_url).unwrap();
                assert_eq!(address.resource_name().as_deref(), Some(name.as_str()));
                mirror.addresses.insert(name, address);
            } else if type_url == AUTHORIZATION_TYPE {
                let policy = resource.unpack(type_url).unwrap();
                mirror.policies.insert(name, policy);
            } else if type_url == NODE_POD_TYPE {
                mirror
                    .node_pods
                    .insert(name, resource.unpack(type_url).unwrap());
            }
        }
        for name in removed {
            mirror
                .history
                .push((type_url.to_owned(), name.clone(), false));
            match type_url {
                AUTHORIZATION_TYPE => drop(mirror.policies.remove(&name)),
                NODE_POD_TYPE => drop(mirror.node_pods.remove(&name)),
                _ => drop(mirror.addresses.remove(&name)),
            }
        }
        rejected
    }
}

impl Agent {
    /// A client that follows everything.
    pub fn start(config: ControllerConfig) -> Self {
        Self::with(config, InitialSubscription::Everything)
    }

    pub fn with(config: ControllerConfig, addresses: InitialSubscription) -> Self {
        let (ads, task) = DeltaAds::new(AdsConfig {
            controller: config,
            client_id: "test".to_owned(),
            types: vec![
                (ADDRESS_TYPE, addresses),
                (AUTHORIZATION_TYPE, InitialSubscription::Everything),
                (NODE_POD_TYPE, InitialSubscription::Everything),
            ],
        });
        let mirror = Arc::new(Mutex::new(Mirror::default()));
        let task = tokio::spawn(task.run(Handler(mirror.clone())));
        Self { ads, mirror, task }
    }

    pub async fn ready(&self) {
        tokio::time::timeout(DEADLINE, self.ads.ready())
            .await
            .expect("the first state is there");
    }

    /// Waits until something can be seen in the mirror.
    pub async fn see<T>(&self, what: &str, probe: impl Fn(&Mirror) -> Option<T>) -> T {
        eventually(what, || probe(&self.mirror.lock().unwrap())).await
    }

    /// Waits until a pod's workload is reached in this way.
    pub async fn see_tunnel(&self, uid: &str, protocol: TunnelProtocol) {
        self.see(&format!("{uid} is {protocol:?}"), |mirror| {
            (mirror.workload(uid)?.tunnel_protocol() == protocol).then_some(())
        })
        .await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mirror {
    pub fn workload(&self, uid: &str) -> Option<&Workload> {
        match self.addresses.get(uid)?.r#type.as_ref()? {
            address::Type::Workload(workload) => Some(workload),
            address::Type::Service(_) => None,
        }
    }
}

/// A bare stream, for what a well-behaved client never does.
pub struct Raw {
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
}

impl Raw {
    pub async fn open(config: &ControllerConfig) -> Result<Self, tonic::Status> {
        let controller = Controller::connect(config).await.unwrap();
        let (requests, queue) = mpsc::channel(16);
        let request = controller
            .request(ReceiverStream::new(queue))
            .await
            .unwrap();
        let responses = controller
            .discovery()
            .delta_aggregated_resources(request)
            .await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
        })
    }

    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub async fn receive(&mut self) -> Result<DeltaDiscoveryResponse, tonic::Status> {
        let message = tokio::time::timeout(DEADLINE, self.responses.message());
        let message = message.await.expect("a response comes in time")?;
        Ok(message.expect("the stream is open"))
    }

    /// Subscribes to everything of a type. Returns the first response.
    pub async fn subscribe(&mut self, type_url: &str) -> DeltaDiscoveryResponse {
        self.send(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            ..Default::default()
        })
        .await;
        self.receive().await.unwrap()
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        })
        .await;
    }
}

/// Names of a response's resources.
pub fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

pub const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

pub const NAMESPACE_AMBIENT: &str = "apiVersion: v1\nkind: Namespace\n\
    metadata: {name: shop, labels: {karst.dev/dataplane-mode: ambient}}\n";

pub const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n";

pub const SERVICE_NAME: &str = "shop/web.shop.svc.cluster.local";

/// A ready pod with the service account `web` in the namespace `shop`.
pub fn pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: shop, uid: uid-{name}, labels: {{app: web}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: web, containers: [{{name: c}}]}}\n\
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}

/// A waypoint in the namespace `shop`.
pub fn waypoint(name: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: {name}, namespace: shop, uid: uid-{name}, generation: 1}}\n\
         spec: {{gatewayClassName: karst-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n"
    )
}

/// A proxy of a waypoint in the namespace `shop`.
pub fn proxy_pod(gateway: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {gateway}-1, namespace: shop, uid: uid-{gateway}-1, labels: {{\
         gateway.networking.k8s.io/gateway-name: {gateway}, \
         gateway.networking.k8s.io/gateway-class-name: karst-waypoint}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {gateway}, containers: [{{name: c}}]}}\n\
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}

/// Resource name of a pod's workload.
pub fn workload(name: &str) -> String {
    format!("Kubernetes//Pod/shop/{name}")
}
