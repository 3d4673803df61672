//! A stand-in for an API server: objects by path, and what was asked for. It knows nothing of kinds,
//! owners of fields or admission; what deletion leaves is gone after it was seen once more.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What a controller would do with an object that was written.
pub type Controller = fn(&mut Value);

#[derive(Default)]
struct State {
    /// Objects, by path.
    objects: BTreeMap<String, Value>,
    /// Other documents, by path.
    documents: BTreeMap<String, Value>,
    /// Method and path of every request but reading ones.
    writes: Vec<String>,
    controller: Option<Controller>,
    version: u64,
}

/// The server; it ends with the runtime.
#[derive(Clone, Default)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
}

impl ApiServer {
    /// Starts it.
    pub async fn start() -> (Self, Client) {
        let (server, url) = Self::start_at().await;
        let url = url.parse().expect("address");
        let client = Client::try_from(Config::new(url)).expect("client");
        (server, client)
    }

    /// Starts it; returns its URL.
    pub async fn start_at() -> (Self, String) {
        let server = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let served = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = served.clone();
                let service = service_fn(move |request| answer(server.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        (server, format!("http://{address}"))
    }

    /// Puts an object at a path.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state();
        state.version += 1;
        let name = path.rsplit('/').next().unwrap_or_default();
        let namespace = path
            .split_once("/namespaces/")
            .and_then(|(_, rest)| rest.split_once('/'))
            .map(|(namespace, _)| namespace);
        let version = state.version.to_string();
        let own = json!({"metadata": {"name": name, "namespace": namespace, "uid": version, "resourceVersion": version}});
        merge(&mut object, &own);
        state.objects.insert(path.to_owned(), object);
    }

    /// Has a document read at a path.
    pub fn document(&self, path: &str, document: Value) {
        self.state().documents.insert(path.to_owned(), document);
    }

    /// Has `controller` see every object that is applied.
    pub fn control(&self, controller: Controller) {
        self.state().controller = Some(controller);
    }

    /// The object at a path.
    pub fn object(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// Method and path of everything that was written.
    pub fn writes(&self) -> Vec<String> {
        self.state().writes.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(
    server: ApiServer,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("body").to_bytes();
    let path = parts.uri.path().to_owned();
    let (status, value) = if parts.method == Method::GET {
        read(&mut server.state(), &path, parts.uri.query().unwrap_or(""))
    } else {
        let body = serde_json::from_slice(&body).unwrap_or_default();
        write(&mut server.state(), &parts.method, &path, &body)
    };
    let mut response = Response::new(Full::from(value.to_string()));
    *response.status_mut() = status;
    Ok(response)
}

fn read(state: &mut State, path: &str, query: &str) -> (StatusCode, Value) {
    if let Some(document) = state.documents.get(path) {
        return match document.get("code").and_then(Value::as_u64) {
            Some(503) => (StatusCode::SERVICE_UNAVAILABLE, document.clone()),
            _ => (StatusCode::OK, document.clone()),
        };
    }
    if let Some(prefix) = collection(path) {
        let paths: Vec<String> = state
            .objects
            .iter()
            .filter(|(path, object)| prefix(path) && selected(object, query))
            .map(|(path, _)| path.clone())
            .collect();
        let items: Vec<Value> = paths.iter().filter_map(|path| see(state, path)).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items});
        return (StatusCode::OK, list);
    }
    see(state, path).map_or_else(|| not_found(path), |object| (StatusCode::OK, object))
}

/// An object as it is read; one that is being deleted is gone afterwards.
fn see(state: &mut State, path: &str) -> Option<Value> {
    let object = state.objects.get(path).cloned()?;
    if object["metadata"]["deletionTimestamp"].is_string() {
        state.objects.remove(path);
    }
    Some(object)
}

fn write(state: &mut State, method: &Method, path: &str, body: &Value) -> (StatusCode, Value) {
    state.writes.push(format!("{method} {path}"));
    if *method == Method::DELETE {
        let Some(object) = state.objects.get_mut(path) else {
            return not_found(path);
        };
        let ending = json!({"metadata": {"deletionTimestamp": "2026-11-22T01:00:00Z"}});
        merge(object, &ending);
        return (StatusCode::OK, object.clone());
    }
    state.version += 1;
    let version = state.version.to_string();
    let mut object = state
        .objects
        .get(path)
        .cloned()
        .unwrap_or_else(|| json!({"metadata": {"uid": version, "generation": 1}}));
    merge(&mut object, body);
    merge(
        &mut object,
        &json!({"metadata": {"resourceVersion": version}}),
    );
    if let Some(controller) = state.controller {
        controller(&mut object);
    }
    state.objects.insert(path.to_owned(), object.clone());
    (StatusCode::OK, object)
}

/// What tells the objects of a collection, if the path is one.
fn collection(path: &str) -> Option<impl Fn(&str) -> bool> {
    let skipped = if path.starts_with("/api/") { 3 } else { 4 };
    let parts: Vec<&str> = path.split('/').skip(skipped).collect();
    let group = path.split('/').take(skipped).collect::<Vec<_>>().join("/");
    let (prefix, suffix) = match *parts.as_slice() {
        [plural] => (group.clone(), plural.to_owned()),
        ["namespaces", namespace, plural] => {
            (format!("{group}/namespaces/{namespace}"), plural.to_owned())
        }
        _ => return None,
    };
    let everywhere = parts.len() == 1;
    Some(move |object: &str| {
        let Some((folder, _name)) = object.rsplit_once('/') else {
            return false;
        };
        folder == format!("{prefix}/{suffix}")
            || everywhere
                && folder.starts_with(&format!("{prefix}/namespaces/"))
                && folder.ends_with(&format!("/{suffix}"))
    })
}

/// Whether the selectors in a query take the object.
fn selected(object: &Value, query: &str) -> bool {
    let query = query.replace("%3D", "=").replace("%2F", "/");
    let query = query.replace("%2C", ",").replace("%21", "!");
    let metadata = &object["metadata"];
    let holds = |of: &Value, term: &str| match term.split_once("!=") {
        Some((key, value)) => of[key] != value,
        None => term
            .split_once('=')
            .map_or(!of[term].is_null(), |(key, value)| of[key] == value),
    };
    query.split('&').all(|part| {
        let (name, terms) = part.split_once('=').unwrap_or((part, ""));
        match name {
            "labelSelector" => terms
                .split(',')
                .all(|term| holds(&metadata["labels"], term)),
            "fieldSelector" => terms
                .split(',')
                .filter_map(|term| term.strip_prefix("metadata."))
                .all(|term| holds(metadata, term)),
            _ => true,
        }
    })
}

fn not_found(path: &str) -> (StatusCode, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
        "message": format!("{path} is not there"), "code": 404});
    (StatusCode::NOT_FOUND, status)
}

fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(key);
                } else {
                    merge(base.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// A kubeconfig for a server at `url`.
pub fn kubeconfig(url: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    })
    .to_string()
}
