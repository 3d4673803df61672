//! The way to a Kubernetes cluster: client, kinds of objects, and errors that name the object.

pub mod kinds;
pub mod nodes;
pub mod removal;
pub mod scrape;

use std::future::Future;
use std::time::Duration;

use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::args::Kubernetes;
use crate::failure::Failure;

/// Karst's own namespace.
pub const SYSTEM_NAMESPACE: &str = "karst-system";

/// The field manager of everything that this command applies.
pub const FIELD_MANAGER: &str = "karst";

/// Label by which Karst's objects are found, whoever installed them.
pub const PART_OF: &str = "app.kubernetes.io/part-of=karst";

/// Label that says who installed an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Who makes objects of Karst: this command, the controller, and `kubectl apply` of the rendered manifests.
/// What Helm installed is Helm's to remove.
const MAKERS: [&str; 3] = [FIELD_MANAGER, "karst-controller", "kubectl"];

/// Longest wait for the API server to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Longest wait for one answer; lists of a large cluster take seconds.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// Largest text that is read through the API server's proxy.
const MAX_PROXY_BYTES: usize = 16 << 20;

/// Runs a command that talks to a cluster.
///
/// # Errors
/// The command's own failure, or no runtime.
pub fn run<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed("runtime", e.to_string()))?
        .block_on(future)
}

/// A client for the cluster that the arguments name.
///
/// # Errors
/// There is no usable kubeconfig.
pub async fn client(args: &Kubernetes) -> Result<Client, Failure> {
    let refused = |why: String| {
        Failure::failed(
            "kubeconfig",
            format!("no way to a cluster: {why} (see --kubeconfig and --context)"),
        )
    };
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    let config = match &args.kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file)
                .map_err(|e| refused(format!("{}: {}", file.display(), chain(&e))))?;
            Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|e| refused(format!("{}: {}", file.display(), chain(&e))))
        }
        None if args.context.is_some() => Config::from_kubeconfig(&options)
            .await
            .map_err(|e| refused(chain(&e))),
        None => Config::infer().await.map_err(|e| refused(chain(&e))),
    };
    let mut config = config?;
    config.connect_timeout = Some(CONNECT_LIMIT);
    config.read_timeout = Some(READ_LIMIT);
    // Otherwise a 503, which a closed port of a pod is behind the API server's proxy, takes three minutes.
    config.default_retry = false;
    Client::try_from(config).map_err(|e| refused(chain(&e)))
}

/// An error of the API, with what was being done and on what, and the fields that it names.
pub fn failure(doing: &str, error: &kube::Error) -> Failure {
    let kube::Error::Api(status) = error else {
        return Failure::failed("cluster_unreachable", format!("{doing}: {}", chain(error)));
    };
    let mut message = format!("{doing}: {}", status.message);
    let causes = status.details.iter().flat_map(|details| &details.causes);
    for cause in causes.filter(|cause| !status.message.contains(&cause.message)) {
        message.push_str(&format!("\n  {}: {}", cause.field, cause.message));
    }
    let hint = match status.code {
        401 => "\n  the kubeconfig's user is not known to the cluster",
        403 => "\n  `karst check --pre` lists what your user may not do",
        _ => "",
    };
    message.push_str(hint);
    let reason = if status.reason.is_empty() {
        format!("http_{}", status.code)
    } else {
        snake(&status.reason)
    };
    Failure::failed(reason, message)
}

/// Whether the API says that there is no such object, or no such kind of object.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether an object is one of Karst's own: it is part of Karst, and one of its makers made it. The first alone
/// anybody may say of an object of theirs, such as a role that goes with Karst.
pub fn is_ours(metadata: &ObjectMeta) -> bool {
    let label = |key: &str| metadata.labels.as_ref()?.get(key).map(String::as_str);
    let part = PART_OF.split_once('=');
    part.is_some_and(|(key, value)| label(key) == Some(value))
        && label(MANAGED_BY).is_some_and(|maker| MAKERS.contains(&maker))
}

/// Whether the caller may not do it.
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// An error and everything below it, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

/// `AlreadyExists` as `already_exists`.
fn snake(reason: &str) -> String {
    let mut out = String::new();
    for c in reason.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// The answer to a GET of `path`, and the server's clock when it was made.
pub struct Answer {
    /// The status code.
    pub status: http::StatusCode,
    /// The body.
    pub text: String,
    /// The `Date` header.
    pub date: Option<Timestamp>,
}

/// GETs a path of the API server, whatever it answers.
///
/// # Errors
/// The server is not reached, or says more than can be read.
pub async fn get(client: &Client, path: &str) -> Result<Answer, Failure> {
    let doing = format!("GET {path}");
    let request = http::Request::get(path)
        .body(kube::client::Body::empty())
        .map_err(|e| Failure::failed("request", format!("{doing}: {e}")))?;
    let response = client
        .send(request)
        .await
        .map_err(|e| failure(&doing, &e))?;
    let status = response.status();
    let date = response.headers().get(http::header::DATE);
    let date = date
        .and_then(|value| value.to_str().ok())
        .and_then(parse_date);
    let body = http_body_util::Limited::new(response.into_body(), MAX_PROXY_BYTES)
        .collect()
        .await
        .map_err(|e| Failure::failed("cluster_unreachable", format!("{doing}: {e}")))?;
    Ok(Answer {
        status,
        text: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        date,
    })
}

/// The form that HTTP gives to dates, `Sun, 06 Nov 1994 08:49:37 GMT`.
fn parse_date(text: &str) -> Option<Timestamp> {
    let zoned = k8s_openapi::jiff::fmt::rfc2822::parse(text).ok()?;
    Some(zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use kube::core::response::{Status, StatusCause, StatusDetails};

    use std::time::Duration;

    use super::{client, failure, get, parse_date, snake};
    use crate::args::Kubernetes;
    use crate::testing::{ApiServer, kubeconfig};

    #[test]
    fn dates_of_servers_are_read() {
        let date = parse_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("reads");
        assert_eq!(date.as_second(), 784_111_777);
        assert!(parse_date("yesterday").is_none());
    }

    #[test]
    fn failures_name_the_object_and_the_field() {
        let mut status =
            Status::failure("Deployment.apps \"x\" is invalid", "Invalid").with_code(422);
        status.details = Some(StatusDetails {
            causes: vec![StatusCause {
                reason: "FieldValueInvalid".to_owned(),
                message: "must be positive".to_owned(),
                field: "spec.replicas".to_owned(),
            }],
            name: "x".to_owned(),
            group: "apps".to_owned(),
            kind: "Deployment".to_owned(),
            uid: String::new(),
            retry_after_seconds: 0,
        });
        let failure = failure("applying Deployment x", &kube::Error::Api(status.boxed()));
        assert_eq!(failure.reason, "invalid");
        assert!(
            failure
                .message
                .starts_with("applying Deployment x: Deployment.apps")
        );
        assert!(failure.message.contains("spec.replicas: must be positive"));
    }

    #[tokio::test]
    async fn what_cannot_be_reached_through_the_server_is_said_at_once() {
        let (server, url) = ApiServer::start_at().await;
        server.document("/closed", serde_json::json!({"code": 503}));
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("config");
        std::fs::write(&file, kubeconfig(&url)).expect("writes");
        let args = Kubernetes {
            kubeconfig: Some(file),
            context: None,
        };
        let client = client(&args).await.expect("client");
        let asked = tokio::time::timeout(Duration::from_secs(5), get(&client, "/closed"));
        let answer = asked.await.expect("at once").expect("an answer");
        assert_eq!(answer.status, 503);
    }

    #[test]
    fn reasons_are_labels() {
        assert_eq!(snake("AlreadyExists"), "already_exists");
    }
}
