//! An API server for one client: the lists, watches and small writes that a controller with `--source kube` makes, over
//! plain HTTP. What it does not know it answers as a server without that kind does: with nothing.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc::{self, error::SendError},
};
use tokio_stream::wrappers::ReceiverStream;

use super::model::{AGENT_ACCOUNT, Model, SYSTEM_NAMESPACE, Watched, bookmark, event};

/// A watch without events is told where it is this often; the client gives one up that is silent for 100 seconds.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);

/// Bytes of a list that are sent in one piece.
const PIECE_BYTES: usize = 256 * 1024;

/// Pieces that may wait for the client.
const PIECES: usize = 4;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// The server; it ends with its runtime.
#[derive(Clone)]
pub struct Server {
    model: Arc<Model>,
    /// What the client has written, by path.
    written: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl Server {
    /// Starts to serve; returns where.
    pub async fn start(model: Arc<Model>) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("listening as the API server")?;
        let address = listener.local_addr()?;
        let server = Self {
            model,
            written: Arc::default(),
        };
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| server.clone().answer(request));
                    // The client may go at any time.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(tcp), service)
                        .await;
                });
            }
        });
        Ok(address)
    }

    fn written(&self) -> MutexGuard<'_, BTreeMap<String, Value>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Answer, hyper::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default();
        Ok(match parts.method {
            Method::GET if query.contains("watch=true") => self.watch(&path, query),
            Method::GET if path == "/apis" => {
                json_answer(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}))
            }
            Method::GET => self.get(&path),
            Method::POST if path.ends_with("/tokenreviews") => json_answer(&reviewed(body)),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                self.write(&format!("{path}/{name}"), body)
            }
            Method::PUT | Method::PATCH => self.write(&path, body),
            _ => refusal(StatusCode::METHOD_NOT_ALLOWED),
        })
    }

    /// One object, or a list of those that the client wrote.
    fn get(&self, path: &str) -> Answer {
        let written = self.written();
        if let Some(object) = written.get(path) {
            return json_answer(object);
        }
        // NAMESPACE/KIND/NAME is an object, NAMESPACE/KIND a list.
        let namespaced = path.split_once("/namespaces/").map(|(_, rest)| rest);
        if namespaced.is_some_and(|rest| rest.matches('/').count() == 2) {
            return refusal(StatusCode::NOT_FOUND);
        }
        let last = path.rsplit('/').next().unwrap_or_default();
        let items: Vec<&Value> = written
            .range(format!("{path}/")..)
            .take_while(|(key, _)| key.starts_with(&format!("{path}/")))
            .map(|(_, object)| object)
            .collect();
        json_answer(&json!({
            "kind": format!("{last}List"), "apiVersion": "v1",
            "metadata": {"resourceVersion": "1"}, "items": items,
        }))
    }

    fn write(&self, path: &str, mut object: Value) -> Answer {
        let version = self.model.next_version();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        object["metadata"]["uid"] = json!(format!("written-{path}"));
        if let Some((_, namespaced)) = path.split_once("/namespaces/")
            && let Some((namespace, _)) = namespaced.split_once('/')
        {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let known = self.written().insert(path.to_owned(), object.clone());
        if object["kind"] == "ConfigMap" {
            let what = if known.is_some() { "MODIFIED" } else { "ADDED" };
            self.model
                .tell(Watched::Written, event(what, &object.to_string()));
        }
        json_answer(&object)
    }

    /// A list as a stream, and what happens from then on.
    fn watch(&self, path: &str, query: &str) -> Answer {
        if !query.contains("sendInitialEvents=true") {
            // The histories of watches are not kept: the client starts again with a list.
            return refusal(StatusCode::GONE);
        }
        let collection = path.rsplit('/').next().unwrap_or_default().to_owned();
        let (sender, pieces) = mpsc::channel(PIECES);
        let stream = Watch {
            server: self.clone(),
            group: group(path),
            is_of_roots: query.contains("metadata.name%3D") || query.contains("metadata.name="),
            collection,
            sender,
        };
        tokio::spawn(async move {
            // It ends when the client has gone.
            let _ = stream.run().await;
        });
        let body = StreamBody::new(ReceiverStream::new(pieces));
        Response::new(http_body_util::BodyExt::boxed(body))
    }
}

struct Watch {
    server: Server,
    group: String,
    collection: String,
    /// Of the ConfigMaps that the controller itself writes, and no others.
    is_of_roots: bool,
    sender: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
}

type Sent = Result<(), SendError<Result<Frame<Bytes>, Infallible>>>;

impl Watch {
    async fn run(&self) -> Sent {
        let model = self.server.model.clone();
        let what = match self.collection.as_str() {
            "pods" => Watched::Pods,
            "endpointslices" => Watched::Slices,
            _ => Watched::Written,
        };
        let (pods, version, mut events) = model.follow(what);
        let services = 0..model.sizes.services;
        let nodes = 0..model.sizes.nodes;
        match self.collection.as_str() {
            "pods" => {
                let agents = nodes.map(Model::agent);
                let pods = pods.iter().map(|pod| model.pod(pod));
                self.list(agents.chain(pods)).await?;
            }
            "endpointslices" => {
                let mut by_service = vec![Vec::new(); model.sizes.services as usize];
                for pod in pods {
                    by_service[pod.service as usize].push(pod);
                }
                let slices = (0..).zip(&by_service);
                self.list(slices.map(|(service, pods)| model.slice(service, pods, version)))
                    .await?;
            }
            "namespaces" => {
                let all = model.namespaces();
                self.list(all.map(|name| Model::namespace(&name))).await?;
            }
            "nodes" => self.list(nodes.map(Model::node)).await?,
            "services" => self.list(services.map(Model::service)).await?,
            "serviceaccounts" => self.list(services.map(Model::account)).await?,
            "configmaps" if self.is_of_roots => {
                let maps: Vec<String> = {
                    let written = self.server.written();
                    let maps = written.values().filter(|one| one["kind"] == "ConfigMap");
                    maps.map(Value::to_string).collect()
                };
                self.list(maps.into_iter()).await?;
            }
            _ => {}
        }
        self.bookmark(version, true).await?;
        let follows =
            what != Watched::Written || (self.is_of_roots && self.collection == "configmaps");
        loop {
            match tokio::time::timeout(BOOKMARK_EVERY, events.recv()).await {
                Ok(Some(line)) if follows => self.send(line).await?,
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(_) => self.bookmark(model.next_version(), false).await?,
            }
        }
    }

    async fn list(&self, objects: impl Iterator<Item = String>) -> Sent {
        let mut piece = String::new();
        for object in objects {
            piece.push_str(&event("ADDED", &object));
            if piece.len() >= PIECE_BYTES {
                self.send(std::mem::take(&mut piece).into()).await?;
            }
        }
        self.send(piece.into()).await
    }

    async fn bookmark(&self, version: u64, ends_list: bool) -> Sent {
        let kind = match self.collection.as_str() {
            "pods" => "Pod",
            "endpointslices" => "EndpointSlice",
            _ => "Any",
        };
        self.send(bookmark(&self.group, kind, version, ends_list).into())
            .await
    }

    async fn send(&self, piece: Bytes) -> Sent {
        self.sender.send(Ok(Frame::data(piece))).await
    }
}

/// `apiVersion` of what is under a path.
fn group(path: &str) -> String {
    let mut parts = path.trim_start_matches('/').split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("apis"), Some(group), Some(version)) => format!("{group}/{version}"),
        _ => "v1".to_owned(),
    }
}

fn json_answer(value: &Value) -> Answer {
    let text = Bytes::from(value.to_string());
    Response::new(http_body_util::Full::new(text).boxed())
}

fn refusal(code: StatusCode) -> Answer {
    let mut answer = json_answer(&json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": code.to_string(), "reason": "Bench", "code": code.as_u16(),
    }));
    *answer.status_mut() = code;
    answer
}

/// The review of a token that names the node of an agent, as [`super::subscribers::token`] makes them.
fn reviewed(mut review: Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let node = token.rsplit('.').next().unwrap_or_default().to_owned();
    review["status"] = json!({
        "authenticated": true,
        "audiences": review["spec"]["audiences"],
        "user": {
            "username": format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{AGENT_ACCOUNT}"),
            "extra": {
                "authentication.kubernetes.io/node-name": [node],
                "authentication.kubernetes.io/pod-name": [format!("agent-{node}")],
                "authentication.kubernetes.io/pod-uid": [format!("agent-{node}")],
            },
        },
    });
    review
}
