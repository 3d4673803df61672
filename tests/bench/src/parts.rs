//! What the labs of several benchmarks have in common.

use anyhow::Result;
use karst_harness::Lab;

/// nginx's configuration where a page of 33 bytes is enough; more connections than any load opens.
pub const NGINX: &str = "\
user root;
worker_processes 1;
worker_rlimit_nofile 16384;
daemon off;
error_log stderr;
events { worker_connections 16000; }
http {
    access_log off;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    server {
        listen 80 backlog=4096;
        location / { return 200 \"Hello from the server of Karst! \\n\"; }
    }
}
";

/// The class of Gateways that are waypoints.
pub const WAYPOINT_CLASS: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: karst-waypoint}
spec: {controllerName: karst.dev/waypoint-controller}
";

/// Gives a client enough ports for thousands of connections a second to one address.
pub fn widen_ports(lab: &Lab, client: &str) -> Result<()> {
    let argv = [
        "sysctl",
        "-q",
        "-w",
        "net.ipv4.ip_local_port_range=1024 65000",
        "net.ipv4.tcp_tw_reuse=1",
    ];
    lab.exec_ok(client, &argv).map(drop)
}

/// A namespace's Gateway and the Service in front of whatever runs for it, a pod [`waypoint_pod`].
pub fn waypoint_gateway(namespace: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: waypoint, namespace: {namespace}}}
spec:
  gatewayClassName: karst-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
---
apiVersion: v1
kind: Service
metadata: {{name: waypoint, namespace: {namespace}}}
spec:
  selector: {{gateway.networking.k8s.io/gateway-name: waypoint}}
  ports: [{{name: mesh, port: 15008, appProtocol: hbone}}]
"
    )
}

/// The pod of a waypoint, whatever its container runs.
pub fn waypoint_pod(namespace: &str, node: &str, container: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata:
  name: waypoint
  namespace: {namespace}
  labels:
    gateway.networking.k8s.io/gateway-name: waypoint
    gateway.networking.k8s.io/gateway-class-name: karst-waypoint
spec:
  nodeName: {node}
  serviceAccountName: waypoint
  containers:
{container}"
    )
}

/// The container of `karst-waypoint` with these arguments, each of a form that needs no quotes in YAML.
pub fn karst_waypoint(namespace: &str, args: &[String]) -> String {
    let command = [&["karst-waypoint".to_owned()], args].concat().join(", ");
    format!(
        "  - name: waypoint
    image: karst-waypoint
    command: [{command}]
    env:
    - {{name: KARST_GATEWAY_NAMESPACE, value: {namespace}}}
    - {{name: KARST_GATEWAY_NAME, value: waypoint}}
    - {{name: KARST_CONTROLLER, value: $(LAB_CONTROLLER)}}
    - {{name: KARST_CONTROLLER_NAME, value: $(LAB_CONTROLLER_NAME)}}
    - {{name: KARST_ROOT_CERT, value: $(LAB_ROOT_CERT)}}
    - {{name: KARST_TOKEN, value: $(LAB_TOKEN)}}
    - {{name: KARST_NODE_NAME, value: $(NODE_NAME)}}
    - {{name: KARST_POD_NAME, value: $(POD_NAME)}}
    readinessProbe: {{httpGet: {{port: 15021, path: /healthz/ready}}}}
"
    )
}
