//! Envoy's configuration for the job of a waypoint: HBONE in, routes, HBONE out.
//!
//! A tunnel ends at `connect_terminate`. Each of its streams goes on, inside the process, to the listener
//! `services`, which finds the service by the address that the stream asked for and routes each request.
//! A connection to the application is, again inside the process, one to a listener `originate_*`, which
//! opens a stream of a tunnel to the endpoint. All numbers of the tunnel are those of Karst, so that the
//! agents on both sides see the same peer.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use karst_tunnel::settings::{
    CLIENT_STREAMS, CONNECTION_WINDOW, HBONE_PORT, SERVER_STREAMS, STREAM_WINDOW,
};
use serde_json::{Value, json};

use super::measure::Protocol;

/// Where Envoy is asked for its counters, inside its pod.
pub const ADMIN: &str = "127.0.0.1:15000";

/// Files of the pod's certificate, in the working directory of Envoy.
pub const CERTIFICATE: &str = "certificate.pem";
/// Its key.
pub const KEY: &str = "key.pem";
/// The roots of the mesh.
pub const ROOTS: &str = "roots.pem";

/// More connections and requests at once than any load has.
const NO_LIMIT: u32 = 1_000_000;

/// What Envoy is to do.
pub struct Job {
    /// The services in front of which it stands.
    pub services: Vec<Service>,
    /// The one endpoint of all of them.
    pub server: IpAddr,
    /// Its port for each protocol.
    pub ports: [(Protocol, u16); 2],
    /// The identity that it must prove.
    pub identity: String,
    /// Which clients are taken: all whose identities begin so.
    pub clients: String,
    /// Whether every request is logged.
    pub access_log: bool,
}

/// A service.
pub struct Service {
    /// The address that clients ask for.
    pub address: SocketAddr,
    /// What is spoken.
    pub protocol: Protocol,
    /// Paths of its routes, in their order.
    pub prefixes: Vec<String>,
}

/// The number of Envoy's version.
pub fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    read_version(&said)
        .map(str::to_owned)
        .with_context(|| format!("{} --version said {said:?}", program.display()))
}

/// It stands between the commit and the kind of the build.
fn read_version(said: &str) -> Option<&str> {
    said.trim().split('/').rev().nth(3)
}

/// The whole configuration.
pub fn configuration(job: &Job) -> Value {
    let mut listeners = vec![connect_terminate(job), services(job)];
    let mut clusters = vec![inside("services", "services", &json!({})), tunnel(job)];
    for (protocol, port) in job.ports {
        let name = protocol.name();
        let originate = format!("originate_{name}");
        listeners.push(connect_originate(
            &originate,
            SocketAddr::new(job.server, port),
        ));
        clusters.push(inside(name, &originate, &http_options(protocol)));
    }
    let (host, port) = ADMIN.split_once(':').unwrap_or((ADMIN, "0"));
    json!({
        "node": {"id": "waypoint", "cluster": "waypoint"},
        "admin": {"address": address(host, port.parse().unwrap_or(0))},
        "bootstrap_extensions": [extension(
            "envoy.bootstrap.internal_listener",
            "bootstrap.internal_listener.v3.InternalListener",
            json!({}),
        )],
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

/// A named extension with its configuration of type `kind`.
fn extension(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{kind}"));
    json!({"name": name, "typed_config": config})
}

fn address(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

/// Ends tunnels.
fn connect_terminate(job: &Job) -> Value {
    // What a stream asks for is the destination of the connection that it becomes.
    let state = |key: &str, value: &str| {
        json!({
            "object_key": format!("envoy.filters.listener.original_dst.{key}"),
            "format_string": {"text_format_source": {"inline_string": value}},
            "shared_with_upstream": "ONCE",
        })
    };
    let tls = extension(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        json!({
            "common_tls_context": tls(&json!({"prefix": job.clients})),
            "require_client_certificate": true,
        }),
    );
    let manager = json!({
        "stat_prefix": "tunnel",
        "codec_type": "HTTP2",
        "generate_request_id": false,
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {
            "allow_connect": true,
            "max_concurrent_streams": SERVER_STREAMS,
            "initial_stream_window_size": STREAM_WINDOW,
            "initial_connection_window_size": CONNECTION_WINDOW,
        },
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "http_filters": [
            extension(
                "envoy.filters.http.set_filter_state",
                "filters.http.set_filter_state.v3.Config",
                json!({"on_request_headers": [
                    state("local_ip", "%REQ(:AUTHORITY)%"),
                    state("remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS%"),
                ]}),
            ),
            router(),
        ],
        "route_config": {"virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{
                "match": {"connect_matcher": {}},
                "route": {
                    "cluster": "services",
                    "timeout": "0s",
                    "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
                },
            }],
        }]},
    });
    json!({
        "name": "connect_terminate",
        "address": address("0.0.0.0", HBONE_PORT),
        "filter_chains": [{"transport_socket": tls, "filters": [http(manager)]}],
    })
}

/// Finds the service and routes requests.
fn services(job: &Job) -> Value {
    let chains: Vec<Value> = job
        .services
        .iter()
        .map(|service| chain(service, job.access_log))
        .collect();
    json!({
        "name": "services",
        "internal_listener": {},
        "listener_filters": [extension(
            "envoy.filters.listener.original_dst",
            "filters.listener.original_dst.v3.OriginalDst",
            json!({}),
        )],
        "filter_chains": chains,
    })
}

fn chain(service: &Service, access_log: bool) -> Value {
    let routes: Vec<Value> = service
        .prefixes
        .iter()
        .map(|prefix| {
            let matched = if prefix == "/" {
                json!({"prefix": prefix})
            } else {
                json!({"path_separated_prefix": prefix})
            };
            json!({"match": matched, "route": {
                "cluster": service.protocol.name(),
                "timeout": "0s",
                // What no application has seen is sent again, as our waypoint does.
                "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2},
            }})
        })
        .collect();
    let mut manager = json!({
        "stat_prefix": "service",
        "codec_type": "AUTO",
        "use_remote_address": true,
        "normalize_path": true,
        "http_filters": [router()],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    });
    if access_log {
        manager["access_log"] = json!([extension(
            "envoy.access_loggers.file",
            "access_loggers.file.v3.FileAccessLog",
            json!({"path": "/dev/stdout"}),
        )]);
    }
    json!({
        "filter_chain_match": {
            "prefix_ranges": [{"address_prefix": service.address.ip(), "prefix_len": 32}],
            "destination_port": service.address.port(),
        },
        "filters": [http(manager)],
    })
}

fn http(manager: Value) -> Value {
    extension(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        manager,
    )
}

fn router() -> Value {
    extension(
        "envoy.filters.http.router",
        "filters.http.router.v3.Router",
        json!({}),
    )
}

/// Makes of a connection a stream that asks the endpoint's agent for `server`.
fn connect_originate(name: &str, server: SocketAddr) -> Value {
    let proxy = json!({
        "stat_prefix": name,
        "cluster": "tunnel",
        "tunneling_config": {"hostname": server.to_string()},
    });
    json!({
        "name": name,
        "internal_listener": {},
        "filter_chains": [{"filters": [extension(
            "envoy.filters.network.tcp_proxy",
            "filters.network.tcp_proxy.v3.TcpProxy",
            proxy,
        )]}],
    })
}

/// A cluster of which the endpoint is a listener of this same process.
fn inside(name: &str, listener: &str, options: &Value) -> Value {
    let socket = extension(
        "envoy.transport_sockets.internal_upstream",
        "transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        json!({"transport_socket": extension(
            "envoy.transport_sockets.raw_buffer",
            "transport_sockets.raw_buffer.v3.RawBuffer",
            json!({}),
        )}),
    );
    let mut cluster = cluster(
        name,
        &json!({"envoy_internal_address": {"server_listener_name": listener}}),
    );
    cluster["transport_socket"] = socket;
    if options
        .as_object()
        .is_some_and(|options| !options.is_empty())
    {
        cluster["typed_extension_protocol_options"] = protocol_options(options);
    }
    cluster
}

/// Tunnels to the endpoint's agent.
fn tunnel(job: &Job) -> Value {
    let mut cluster = cluster("tunnel", &address(&job.server.to_string(), HBONE_PORT));
    cluster["typed_extension_protocol_options"] = protocol_options(&json!({
        "explicit_http_config": {"http2_protocol_options": {
            "max_concurrent_streams": CLIENT_STREAMS,
            "initial_stream_window_size": STREAM_WINDOW,
            "initial_connection_window_size": CONNECTION_WINDOW,
        }},
    }));
    cluster["transport_socket"] = extension(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.UpstreamTlsContext",
        json!({"common_tls_context": tls(&json!({"exact": job.identity}))}),
    );
    cluster
}

fn cluster(name: &str, endpoint: &Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}],
        },
        "circuit_breakers": {"thresholds": [{
            "max_connections": NO_LIMIT,
            "max_pending_requests": NO_LIMIT,
            "max_requests": NO_LIMIT,
        }]},
    })
}

fn http_options(protocol: Protocol) -> Value {
    let options = match protocol {
        Protocol::Http1 => json!({"http_protocol_options": {}}),
        // Below what servers let a client open, which Envoy learns too late for a burst of requests.
        Protocol::Http2 => {
            json!({"http2_protocol_options": {"max_concurrent_streams": CLIENT_STREAMS}})
        }
    };
    json!({"explicit_http_config": options})
}

fn protocol_options(options: &Value) -> Value {
    let mut options = options.clone();
    options["@type"] =
        json!("type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions");
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options})
}

/// TLS 1.3 with the pod's certificate towards peers whose identity matches, as between agents.
fn tls(identity: &Value) -> Value {
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["X25519MLKEM768", "X25519"],
        },
        "tls_certificates": [{
            "certificate_chain": {"filename": CERTIFICATE},
            "private_key": {"filename": KEY},
        }],
        "validation_context": {
            "trusted_ca": {"filename": ROOTS},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": identity}],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job {
            services: vec![Service {
                address: "10.0.0.1:80".parse().unwrap(),
                protocol: Protocol::Http2,
                prefixes: vec!["/a".to_owned(), "/b".to_owned()],
            }],
            server: "10.0.0.2".parse().unwrap(),
            ports: [(Protocol::Http1, 8080), (Protocol::Http2, 8081)],
            identity: "spiffe://td/ns/n/sa/server".to_owned(),
            clients: "spiffe://td/".to_owned(),
            access_log: true,
        }
    }

    #[test]
    fn the_version_is_read() {
        assert_eq!(
            read_version("envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL\n"),
            Some("1.40.0")
        );
        assert_eq!(read_version("envoy"), None);
    }

    #[test]
    fn everything_that_is_named_is_there() {
        let config = configuration(&job());
        let resources = &config["static_resources"];
        let names = |kind: &str| -> Vec<String> {
            let all = resources[kind].as_array().unwrap();
            all.iter()
                .map(|one| one["name"].as_str().unwrap().to_owned())
                .collect()
        };
        let (listeners, clusters) = (names("listeners"), names("clusters"));
        let mut text = config.to_string();
        for (key, known) in [
            ("\"cluster\":\"", &clusters),
            ("\"server_listener_name\":\"", &listeners),
        ] {
            let named: Vec<&str> = text
                .split(key)
                .skip(1)
                .filter_map(|rest| rest.split('"').next())
                .collect();
            assert!(!named.is_empty());
            for name in named {
                assert!(
                    name == "waypoint" || known.iter().any(|known| known == name),
                    "{key}{name}"
                );
            }
        }
        text.retain(|c| !c.is_whitespace());
        assert!(text.contains(r#""hostname":"10.0.0.2:8081""#), "{text}");
    }

    #[test]
    fn only_the_endpoints_identity_is_taken_for_it() {
        let config = configuration(&job());
        let tls = &config["static_resources"]["clusters"][1]["transport_socket"]["typed_config"];
        let names =
            &tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"];
        assert_eq!(names[0]["matcher"]["exact"], "spiffe://td/ns/n/sa/server");
    }

    #[test]
    fn the_access_log_can_be_left_out() {
        let with = configuration(&job()).to_string();
        let without = configuration(&Job {
            access_log: false,
            ..job()
        });
        assert!(with.contains("access_log"));
        assert!(!without.to_string().contains("access_log"));
    }
}
