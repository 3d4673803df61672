//! The cluster that the controller is shown: nodes, services and pods, each a record of a few bytes that is written out
//! as the API server would when somebody asks.

use std::{
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;

use super::times::Times;

/// Services of one namespace.
const SERVICES_PER_NAMESPACE: u32 = 50;

/// Zones that nodes are spread over.
const ZONES: u32 = 3;

/// Namespace of the agents.
pub const SYSTEM_NAMESPACE: &str = "karst-system";

/// Service account of the agents.
pub const AGENT_ACCOUNT: &str = "karst-node-agent";

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub nodes: u32,
    pub pods: u32,
    pub services: u32,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Made, and on no node.
    Pending,
    /// Given to a node.
    Scheduled,
    /// Runs, has an address and is ready.
    Ready,
    /// Is being deleted, and still serves.
    Draining,
}

/// A pod. Its number is its own for ever: name, uid and address are made of it.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    pub number: u32,
    pub service: u32,
    stage: Stage,
    version: u64,
}

/// What can be watched and changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    Pods,
    Slices,
    /// Objects that the controller writes itself, of all kinds.
    Written,
}

/// An event of a watch: a line of JSON.
pub type Line = bytes::Bytes;

/// The cluster.
pub struct Model {
    pub sizes: Sizes,
    pub times: Times,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By service.
    pods: Vec<Vec<Pod>>,
    watchers: Vec<(Watched, mpsc::UnboundedSender<Line>)>,
}

impl Model {
    /// A cluster whose pods all run. `replaced`: how many more pods there may be in all.
    pub fn new(sizes: Sizes, replaced: u32) -> Self {
        let mut pods = vec![Vec::new(); sizes.services as usize];
        for number in 0..sizes.pods {
            let service = number % sizes.services;
            pods[service as usize].push(Pod {
                number,
                service,
                stage: Stage::Ready,
                version: 1,
            });
        }
        Self {
            sizes,
            times: Times::new(sizes.pods + replaced),
            state: Mutex::new(State {
                version: 1,
                pods,
                watchers: Vec::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All pods as they are, the version of that state, and the events from then on.
    pub fn follow(&self, what: Watched) -> (Vec<Pod>, u64, mpsc::UnboundedReceiver<Line>) {
        let (sender, events) = mpsc::unbounded_channel();
        let mut state = self.state();
        state.watchers.push((what, sender));
        let pods = state.pods.iter().flatten().copied().collect();
        (pods, state.version, events)
    }

    /// The next version of an object.
    pub fn next_version(&self) -> u64 {
        let mut state = self.state();
        state.version += 1;
        state.version
    }

    /// Tells those who watch.
    pub fn tell(&self, what: Watched, line: String) {
        let mut state = self.state();
        state.tell(what, line.into());
    }

    /// Makes a pod of a service, and gives it to a node.
    pub fn create(&self, number: u32, service: u32) {
        let mut state = self.state();
        let mut pod = Pod {
            number,
            service,
            stage: Stage::Pending,
            version: state.bump(),
        };
        let added = self.pod_event("ADDED", &pod);
        state.tell(Watched::Pods, added);
        (pod.stage, pod.version) = (Stage::Scheduled, state.bump());
        let scheduled = self.pod_event("MODIFIED", &pod);
        state.pods[service as usize].push(pod);
        state.tell(Watched::Pods, scheduled);
    }

    /// A pod is ready to serve, or begins to end.
    pub fn set_stage(&self, number: u32, service: u32, stage: Stage) {
        let mut state = self.state();
        let version = state.bump();
        let pods = &mut state.pods[service as usize];
        let Some(pod) = pods.iter_mut().find(|pod| pod.number == number) else {
            return;
        };
        (pod.stage, pod.version) = (stage, version);
        let event = self.pod_event("MODIFIED", pod);
        let at = self.times.now();
        match stage {
            Stage::Ready => self.times.ready(number, at),
            Stage::Draining => self.times.drained(number, at),
            Stage::Pending | Stage::Scheduled => {}
        }
        state.tell(Watched::Pods, event);
        self.slice_changed(&mut state, service);
    }

    /// A pod is gone.
    pub fn delete(&self, number: u32, service: u32) {
        let mut state = self.state();
        let version = state.bump();
        let pods = &mut state.pods[service as usize];
        let Some(at) = pods.iter().position(|pod| pod.number == number) else {
            return;
        };
        let mut pod = pods.remove(at);
        pod.version = version;
        let event = self.pod_event("DELETED", &pod);
        self.times.deleted(number, self.times.now());
        state.tell(Watched::Pods, event);
        self.slice_changed(&mut state, service);
    }

    /// The oldest pod of a service that serves.
    pub fn oldest(&self, service: u32) -> Option<u32> {
        let state = self.state();
        let mut pods = state.pods.get(service as usize)?.iter();
        pods.find(|pod| pod.stage == Stage::Ready)
            .map(|pod| pod.number)
    }

    fn slice_changed(&self, state: &mut State, service: u32) {
        let version = state.bump();
        let slice = self.slice(service, &state.pods[service as usize], version);
        state.tell(Watched::Slices, event("MODIFIED", &slice).into());
    }

    fn pod_event(&self, what: &str, pod: &Pod) -> Line {
        event(what, &self.pod(pod)).into()
    }

    /// Names of the namespaces with services, and of the system's.
    pub fn namespaces(&self) -> impl Iterator<Item = String> {
        let count = self.sizes.services.div_ceil(SERVICES_PER_NAMESPACE);
        (0..count)
            .map(|number| format!("team-{number:03}"))
            .chain([SYSTEM_NAMESPACE.to_owned()])
    }

    fn namespace_of(service: u32) -> String {
        format!("team-{:03}", service / SERVICES_PER_NAMESPACE)
    }

    fn node_of(&self, number: u32) -> u32 {
        // Spreads the pods of a service over the nodes.
        number.wrapping_mul(2_654_435_761) % self.sizes.nodes
    }

    /// A Namespace whose pods are in the mesh.
    pub fn namespace(name: &str) -> String {
        let label = if name == SYSTEM_NAMESPACE {
            ""
        } else {
            r#""karst.dev/dataplane-mode":"ambient","#
        };
        format!(
            r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}","uid":"ns-{name}","resourceVersion":"1","labels":{{{label}"kubernetes.io/metadata.name":"{name}"}}}},"spec":{{"finalizers":["kubernetes"]}},"status":{{"phase":"Active"}}}}"#
        )
    }

    /// A Node.
    pub fn node(number: u32) -> String {
        let zone = number % ZONES;
        format!(
            r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{name}","uid":"node-{number}","resourceVersion":"1","labels":{{"kubernetes.io/hostname":"{name}","kubernetes.io/os":"linux","topology.kubernetes.io/region":"region-1","topology.kubernetes.io/zone":"region-1-{zone}"}}}},"spec":{{"podCIDR":"10.0.0.0/24"}},"status":{{"addresses":[{{"type":"InternalIP","address":"{ip}"}}],"nodeInfo":{{"kubeletVersion":"v1.33.0"}}}}}}"#,
            name = node_name(number),
            ip = node_ip(number),
        )
    }

    /// A Service.
    pub fn service(number: u32) -> String {
        let namespace = Self::namespace_of(number);
        let (high, low) = (number / 250, number % 250 + 1);
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"svc-{number:05}","namespace":"{namespace}","uid":"svc-{number}","resourceVersion":"1","labels":{{"app":"svc-{number:05}"}},"managedFields":{SERVICE_FIELDS}}},"spec":{{"type":"ClusterIP","clusterIP":"10.96.{high}.{low}","clusterIPs":["10.96.{high}.{low}"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","selector":{{"app":"svc-{number:05}"}},"sessionAffinity":"None","internalTrafficPolicy":"Cluster","ports":[{{"name":"http","protocol":"TCP","port":80,"targetPort":8080}},{{"name":"grpc","protocol":"TCP","port":9090,"targetPort":9090}}]}},"status":{{"loadBalancer":{{}}}}}}"#
        )
    }

    /// The ServiceAccount of a service's pods.
    pub fn account(number: u32) -> String {
        let namespace = Self::namespace_of(number);
        format!(
            r#"{{"apiVersion":"v1","kind":"ServiceAccount","metadata":{{"name":"svc-{number:05}","namespace":"{namespace}","uid":"sa-{number}","resourceVersion":"1"}}}}"#
        )
    }

    /// The agent's pod of a node.
    pub fn agent(number: u32) -> String {
        let (node, ip) = (node_name(number), node_ip(number));
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"agent-{node}","namespace":"{SYSTEM_NAMESPACE}","uid":"agent-{node}","resourceVersion":"1","labels":{{"app":"karst-node-agent"}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"DaemonSet","name":"karst-node-agent","uid":"ds","controller":true}}]}},"spec":{{"nodeName":"{node}","serviceAccountName":"{AGENT_ACCOUNT}","hostNetwork":true,"containers":[{{"name":"agent","image":"karst"}}]}},"status":{{"phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}],"hostIP":"{ip}","conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
        )
    }

    /// A Pod, with all that a Deployment's pod has and the mesh does not read.
    pub fn pod(&self, pod: &Pod) -> String {
        let service = pod.service;
        let namespace = Self::namespace_of(service);
        let (name, version) = (pod_name(pod.number, service), pod.version);
        let deleted = match pod.stage {
            Stage::Draining => {
                r#""deletionTimestamp":"2026-01-01T00:00:30Z","deletionGracePeriodSeconds":30,"#
            }
            _ => "",
        };
        let node = match pod.stage {
            Stage::Pending => String::new(),
            _ => format!(r#""nodeName":"{}","#, node_name(self.node_of(pod.number))),
        };
        let status = match pod.stage {
            Stage::Pending => r#"{"phase":"Pending","qosClass":"Burstable"}"#.to_owned(),
            Stage::Scheduled => r#"{"phase":"Pending","conditions":[{"lastProbeTime":null,"lastTransitionTime":"2026-01-01T00:00:00Z","status":"True","type":"PodScheduled"}],"qosClass":"Burstable"}"#.to_owned(),
            Stage::Ready | Stage::Draining => {
                let ip = pod_ip(pod.number);
                let host = node_ip(self.node_of(pod.number));
                format!(r#"{{"phase":"Running","conditions":{CONDITIONS},"hostIP":"{host}","hostIPs":[{{"ip":"{host}"}}],"podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}],"startTime":"2026-01-01T00:00:00Z","containerStatuses":{CONTAINER_STATUSES},"qosClass":"Burstable"}}"#)
            }
        };
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","generateName":"svc-{service:05}-7d9f8b6c5-","namespace":"{namespace}","uid":"{uid}","resourceVersion":"{version}","creationTimestamp":"2026-01-01T00:00:00Z",{deleted}"labels":{{"app":"svc-{service:05}","app.kubernetes.io/name":"svc-{service:05}","app.kubernetes.io/version":"1.4.2","pod-template-hash":"7d9f8b6c5"}},"annotations":{{"prometheus.io/scrape":"true","prometheus.io/port":"9100"}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"svc-{service:05}-7d9f8b6c5","uid":"rs-{service}","controller":true,"blockOwnerDeletion":true}}],"managedFields":{POD_FIELDS}}},"spec":{{{node}"serviceAccountName":"svc-{service:05}","serviceAccount":"svc-{service:05}","containers":{CONTAINERS},"volumes":{VOLUMES},"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","securityContext":{{}},"schedulerName":"default-scheduler","tolerations":{TOLERATIONS},"priority":0,"enableServiceLinks":true,"preemptionPolicy":"PreemptLowerPriority"}},"status":{status}}}"#,
            uid = pod_uid(pod.number),
        )
    }

    /// The EndpointSlice of a service.
    pub fn slice(&self, service: u32, pods: &[Pod], version: u64) -> String {
        let namespace = Self::namespace_of(service);
        let mut endpoints = String::new();
        let addressed = |pod: &&Pod| matches!(pod.stage, Stage::Ready | Stage::Draining);
        for pod in pods.iter().filter(addressed) {
            let comma = if endpoints.is_empty() { "" } else { "," };
            let ready = pod.stage == Stage::Ready;
            let node = self.node_of(pod.number);
            let _ = write!(
                endpoints,
                r#"{comma}{{"addresses":["{ip}"],"conditions":{{"ready":{ready},"serving":true,"terminating":{}}},"nodeName":"{}","targetRef":{{"kind":"Pod","name":"{}","namespace":"{namespace}","uid":"{}"}},"zone":"region-1-{}"}}"#,
                !ready,
                node_name(node),
                pod_name(pod.number, service),
                pod_uid(pod.number),
                node % ZONES,
                ip = pod_ip(pod.number),
            );
        }
        format!(
            r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4","metadata":{{"name":"svc-{service:05}-x7k2p","generateName":"svc-{service:05}-","namespace":"{namespace}","uid":"eps-{service}","resourceVersion":"{version}","labels":{{"app":"svc-{service:05}","endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"svc-{service:05}"}},"ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"svc-{service:05}","uid":"svc-{service}","controller":true,"blockOwnerDeletion":true}}]}},"endpoints":[{endpoints}],"ports":[{{"name":"http","port":8080,"protocol":"TCP"}},{{"name":"grpc","port":9090,"protocol":"TCP"}}]}}"#
        )
    }
}

impl State {
    fn bump(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn tell(&mut self, what: Watched, line: Line) {
        self.watchers
            .retain(|(watched, sender)| *watched != what || sender.send(line.clone()).is_ok());
    }
}

/// A line of a watch.
pub fn event(what: &str, object: &str) -> String {
    format!("{{\"type\":\"{what}\",\"object\":{object}}}\n")
}

/// The end of a list that is a watch.
pub fn bookmark(api_version: &str, kind: &str, version: u64, ends_list: bool) -> String {
    let annotations = match ends_list {
        true => r#","annotations":{"k8s.io/initial-events-end":"true"}"#,
        false => "",
    };
    event(
        "BOOKMARK",
        &format!(
            r#"{{"apiVersion":"{api_version}","kind":"{kind}","metadata":{{"resourceVersion":"{version}"{annotations}}}}}"#
        ),
    )
}

/// Name of a node.
pub fn node_name(number: u32) -> String {
    format!("node-{number:04}")
}

/// Uid of the agent's pod of a node.
pub fn agent_uid(node: u32) -> String {
    format!("agent-{}", node_name(node))
}

fn node_ip(number: u32) -> String {
    format!("172.16.{}.{}", number / 250, number % 250 + 1)
}

fn pod_name(number: u32, service: u32) -> String {
    format!("svc-{service:05}-7d9f8b6c5-{number:07}")
}

fn pod_uid(number: u32) -> String {
    format!("6f1c7a52-90d4-4c1b-8e33-{number:012x}")
}

/// 10.128.0.0/9: eight million addresses, so that none is used twice.
fn pod_ip(number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!("10.{}.{b}.{c}", 128 + u32::from(a))
}

/// Number of the pod with a resource's name, if it is one's.
pub fn number_of(resource: &[u8]) -> Option<u32> {
    let digits = resource.rsplit(|byte| *byte == b'-').next()?;
    if digits.len() != 7 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = |sum: u32, digit: &u8| sum * 10 + u32::from(digit - b'0');
    Some(digits.iter().fold(0, value))
}

const CONTAINERS: &str = r#"[{"name":"app","image":"registry.example/team/app:1.4.2","imagePullPolicy":"IfNotPresent","ports":[{"name":"http","containerPort":8080,"protocol":"TCP"},{"name":"grpc","containerPort":9090,"protocol":"TCP"}],"env":[{"name":"LOG_LEVEL","value":"info"},{"name":"POD_IP","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"status.podIP"}}},{"name":"DATABASE_URL","valueFrom":{"secretKeyRef":{"name":"database","key":"url"}}}],"resources":{"limits":{"memory":"512Mi"},"requests":{"cpu":"100m","memory":"256Mi"}},"readinessProbe":{"httpGet":{"path":"/ready","port":8080,"scheme":"HTTP"},"periodSeconds":10,"timeoutSeconds":1,"successThreshold":1,"failureThreshold":3},"livenessProbe":{"httpGet":{"path":"/live","port":8080,"scheme":"HTTP"},"periodSeconds":10,"timeoutSeconds":1,"successThreshold":1,"failureThreshold":3},"volumeMounts":[{"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount","name":"kube-api-access-x7k2p","readOnly":true}],"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}]"#;

const VOLUMES: &str = r#"[{"name":"kube-api-access-x7k2p","projected":{"defaultMode":420,"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},{"configMap":{"items":[{"key":"ca.crt","path":"ca.crt"}],"name":"kube-root-ca.crt"}},{"downwardAPI":{"items":[{"fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"},"path":"namespace"}]}}]}}]"#;

const TOLERATIONS: &str = r#"[{"effect":"NoExecute","key":"node.kubernetes.io/not-ready","operator":"Exists","tolerationSeconds":300},{"effect":"NoExecute","key":"node.kubernetes.io/unreachable","operator":"Exists","tolerationSeconds":300}]"#;

const CONDITIONS: &str = r#"[{"lastProbeTime":null,"lastTransitionTime":"2026-01-01T00:00:01Z","status":"True","type":"PodReadyToStartContainers"},{"lastProbeTime":null,"lastTransitionTime":"2026-01-01T00:00:00Z","status":"True","type":"Initialized"},{"lastProbeTime":null,"lastTransitionTime":"2026-01-01T00:00:02Z","status":"True","type":"Ready"},{"lastProbeTime":null,"lastTransitionTime":"2026-01-01T00:00:02Z","status":"True","type":"ContainersReady"},{"lastProbeTime":null,"lastTransitionTime":"2026-01-01T00:00:00Z","status":"True","type":"PodScheduled"}]"#;

const CONTAINER_STATUSES: &str = r#"[{"containerID":"containerd://5f0c3c2f4b0e9d4b5f0c3c2f4b0e9d4b5f0c3c2f4b0e9d4b5f0c3c2f4b0e9d4b","image":"registry.example/team/app:1.4.2","imageID":"registry.example/team/app@sha256:0f0c3c2f4b0e9d4b5f0c3c2f4b0e9d4b5f0c3c2f4b0e9d4b5f0c3c2f4b0e9d4b","lastState":{},"name":"app","ready":true,"restartCount":0,"started":true,"state":{"running":{"startedAt":"2026-01-01T00:00:01Z"}}}]"#;

const POD_FIELDS: &str = r#"[{"apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:prometheus.io/port":{},"f:prometheus.io/scrape":{}},"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:app.kubernetes.io/name":{},"f:app.kubernetes.io/version":{},"f:pod-template-hash":{}},"f:ownerReferences":{".":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"app\"}":{".":{},"f:env":{},"f:image":{},"f:imagePullPolicy":{},"f:livenessProbe":{},"f:name":{},"f:ports":{},"f:readinessProbe":{},"f:resources":{}}},"f:dnsPolicy":{},"f:enableServiceLinks":{},"f:restartPolicy":{},"f:schedulerName":{},"f:securityContext":{},"f:serviceAccount":{},"f:serviceAccountName":{},"f:terminationGracePeriodSeconds":{}}},"manager":"kube-controller-manager","operation":"Update","time":"2026-01-01T00:00:00Z"},{"apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:status":{"f:conditions":{"k:{\"type\":\"ContainersReady\"}":{},"k:{\"type\":\"Initialized\"}":{},"k:{\"type\":\"Ready\"}":{}},"f:containerStatuses":{},"f:hostIP":{},"f:phase":{},"f:podIP":{},"f:podIPs":{},"f:startTime":{}}},"manager":"kubelet","operation":"Update","subresource":"status","time":"2026-01-01T00:00:02Z"}]"#;

const SERVICE_FIELDS: &str = r#"[{"apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:internalTrafficPolicy":{},"f:ports":{},"f:selector":{},"f:sessionAffinity":{},"f:type":{}}},"manager":"kubectl","operation":"Apply","time":"2026-01-01T00:00:00Z"}]"#;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn model() -> Model {
        let sizes = Sizes {
            nodes: 3,
            pods: 8,
            services: 4,
        };
        Model::new(sizes, 10)
    }

    #[test]
    fn all_objects_are_json_of_their_kind() {
        let model = model();
        let (pods, version, _events) = model.follow(Watched::Pods);
        assert_eq!((pods.len(), version), (8, 1));
        let mut texts = vec![
            (Model::namespace("team-000"), "Namespace"),
            (Model::node(2), "Node"),
            (Model::service(3), "Service"),
            (Model::account(3), "ServiceAccount"),
            (Model::agent(1), "Pod"),
            (model.slice(0, &pods, 7), "EndpointSlice"),
        ];
        for stage in [
            Stage::Pending,
            Stage::Scheduled,
            Stage::Ready,
            Stage::Draining,
        ] {
            let pod = Pod { stage, ..pods[0] };
            texts.push((model.pod(&pod), "Pod"));
        }
        for (text, kind) in texts {
            let value: Value = serde_json::from_str(&text).expect(&text);
            assert_eq!(value["kind"], kind);
        }
    }

    #[test]
    fn a_pod_is_replaced_step_by_step() {
        let model = model();
        let (_, _, mut pods) = model.follow(Watched::Pods);
        let (_, _, mut slices) = model.follow(Watched::Slices);
        assert_eq!(model.oldest(1), Some(1));
        model.create(8, 1);
        model.set_stage(8, 1, Stage::Ready);
        model.set_stage(1, 1, Stage::Draining);
        assert_eq!(model.oldest(1), Some(5));
        model.delete(1, 1);
        let mut seen = Vec::new();
        while let Ok(line) = pods.try_recv() {
            let value: Value = serde_json::from_slice(&line).unwrap();
            let name = value["object"]["metadata"]["name"].as_str().unwrap();
            let number = number_of(name.as_bytes()).unwrap();
            seen.push(format!("{} {number}", value["type"].as_str().unwrap()));
        }
        assert_eq!(
            seen,
            [
                "ADDED 8",
                "MODIFIED 8",
                "MODIFIED 8",
                "MODIFIED 1",
                "DELETED 1"
            ]
        );
        let mut last = Value::Null;
        while let Ok(line) = slices.try_recv() {
            last = serde_json::from_slice(&line).unwrap();
        }
        assert_eq!(last["object"]["endpoints"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn numbers_are_read_from_names_of_pods_only() {
        let name = format!("Kubernetes//Pod/team-000/{}", pod_name(42, 7));
        assert_eq!(number_of(name.as_bytes()), Some(42));
        assert_eq!(
            number_of(b"team-000/svc-00007.team-000.svc.cluster.local"),
            None
        );
        assert_eq!(number_of(b"x-123"), None);
    }
}
