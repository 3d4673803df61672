//! What the mesh refuses, each with its reason in the agent's access log and in its metrics,
//! or in the controller's answer and log.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use http::{Method, Request, StatusCode, Uri};
use karst_harness::{Claims, Lab, Mesh, run_in, until};
use karst_identity::{CertificateAuthority, CertificateRequest, GrpcCa, GrpcCaConfig, SpiffeId};
use karst_lab_tests::attacker::{self, Credentials, HBONE, Signer, Validity, attack};
use karst_lab_tests::scenario::port;
use karst_lab_tests::{World, wait_refused};
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

static WORLD: LazyLock<Result<World>> = LazyLock::new(|| World::up("refused", Mesh::On));

fn world() -> Result<&'static World> {
    WORLD.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// Attacks come from a pod outside of the mesh.
const ATTACKER: &str = "plain/client";
const VICTIM: &str = "mesh/server";
const VICTIM_NODE: &str = "node2";
/// An identity of the mesh, for attackers who stole a certificate.
const CLIENT_ID: &str = "spiffe://cluster.local/ns/mesh/sa/client";

fn netns(world: &World) -> Result<String> {
    world.lab.pod_netns(ATTACKER)
}

fn tunnel_port(world: &World) -> Result<SocketAddr> {
    Ok(SocketAddr::new(world.v4(VICTIM)?, HBONE))
}

/// A handshake that must fail at the server.
fn handshake_refused(
    reason: &str,
    credentials: impl FnOnce(&Lab) -> Result<Option<Credentials>>,
) -> Result<()> {
    let world = world()?;
    let credentials = credentials(&world.lab)?;
    let at = tunnel_port(world)?;
    let authority = world.at(VICTIM, port::ECHO)?;
    wait_refused(&world.lab, VICTIM_NODE, "inbound", reason, || {
        attack(&netns(world)?, async || {
            // The server's no may come with the handshake or with the first request.
            let Ok(sender) = attacker::http2(at, credentials).await else {
                return Ok(());
            };
            match attacker::connect(sender, &authority).await {
                Ok(status) => bail!("the CONNECT was answered with {status}"),
                Err(_) => Ok(()),
            }
        })
    })
    .map(drop)
}

/// A CONNECT, by a peer with a good certificate, that must be refused with 400.
fn request_refused(reason: &str, request: Request<()>) -> Result<()> {
    let world = world()?;
    let credentials = Signer::of_mesh(&world.lab)?.issue(CLIENT_ID, Validity::Now)?;
    let at = tunnel_port(world)?;
    wait_refused(&world.lab, VICTIM_NODE, "inbound", reason, || {
        attack(&netns(world)?, async || {
            let sender = attacker::http2(at, Some(credentials)).await?;
            let status = attacker::send(sender, request).await?;
            ensure!(status == StatusCode::BAD_REQUEST, "answered with {status}");
            Ok(())
        })
    })
    .map(drop)
}

fn connect_to(authority: &str) -> Result<Request<()>> {
    let uri = Uri::builder().authority(authority).build()?;
    Ok(Request::builder()
        .method(Method::CONNECT)
        .uri(uri)
        .body(())?)
}

#[test]
fn a_good_certificate_and_request_pass() -> Result<()> {
    // Without this, everything below might be refused for a reason of this test's making.
    let world = world()?;
    let credentials = Signer::of_mesh(&world.lab)?.issue(CLIENT_ID, Validity::Now)?;
    let (at, authority) = (tunnel_port(world)?, world.at(VICTIM, port::ECHO)?);
    attack(&netns(world)?, async || {
        let sender = attacker::http2(at, Some(credentials)).await?;
        let status = attacker::connect(sender, &authority).await?;
        ensure!(status == StatusCode::OK, "answered with {status}");
        Ok(())
    })
}

#[test]
fn a_client_without_certificate() -> Result<()> {
    handshake_refused("tls_no_client_certificate", |_| Ok(None))
}

#[test]
fn a_certificate_of_a_foreign_root() -> Result<()> {
    handshake_refused("tls_unknown_issuer", |_| {
        Signer::foreign()?.issue(CLIENT_ID, Validity::Now).map(Some)
    })
}

#[test]
fn an_expired_certificate() -> Result<()> {
    handshake_refused("tls_expired", |lab| {
        Signer::of_mesh(lab)?
            .issue(CLIENT_ID, Validity::Past)
            .map(Some)
    })
}

#[test]
fn the_right_root_but_another_trust_domain() -> Result<()> {
    handshake_refused("trust_domain_mismatch", |lab| {
        Signer::of_mesh(lab)?
            .issue(
                "spiffe://elsewhere.example/ns/mesh/sa/client",
                Validity::Now,
            )
            .map(Some)
    })
}

#[test]
fn a_connect_to_another_address_than_the_pods_own() -> Result<()> {
    let world = world()?;
    for foreign in [
        world.at("plain/server", port::ECHO)?,
        "127.0.0.1:7000".to_owned(),
        world.at("mesh/near", port::ECHO)?,
    ] {
        request_refused("connect_not_own_address", connect_to(&foreign)?)
            .with_context(|| foreign)?;
    }
    Ok(())
}

#[test]
fn a_loop_to_the_agents_own_ports() -> Result<()> {
    let world = world()?;
    for own in [15001, 15006, HBONE] {
        request_refused("connect_illegal_port", connect_to(&world.at(VICTIM, own)?)?)
            .with_context(|| own)?;
    }
    Ok(())
}

#[test]
fn an_applications_call_of_the_agents_own_ports() -> Result<()> {
    let world = world()?;
    for own in [15001, 15006, HBONE] {
        let at = world.at(VICTIM, own)?;
        // The client's agent carries it; the destination's knows its own ports.
        wait_refused(
            &world.lab,
            VICTIM_NODE,
            "inbound",
            "connect_illegal_port",
            || {
                let seen = world.app("mesh/client", &["connect", &at, "--read-to-end"])?;
                ensure!(seen["ok"] == false || seen["end"] != "open", "{seen}");
                Ok(())
            },
        )
        .with_context(|| at.clone())?;
    }
    Ok(())
}

#[test]
fn a_connection_straight_to_the_capture_port() -> Result<()> {
    let world = world()?;
    wait_refused(&world.lab, "node1", "outbound", "not_captured", || {
        let seen = world.app(
            "mesh/client",
            &["connect", "127.0.0.1:15001", "--read-to-end"],
        )?;
        ensure!(seen["ok"] == false || seen["end"] != "open", "{seen}");
        Ok(())
    })
    .map(drop)
}

#[test]
fn another_method_than_connect() -> Result<()> {
    request_refused(
        "connect_bad_method",
        Request::get("http://10.0.0.1/").body(())?,
    )
}

#[test]
fn an_authority_without_port() -> Result<()> {
    request_refused("connect_bad_authority", connect_to("nonsense")?)
}

#[test]
fn an_authority_that_is_no_address() -> Result<()> {
    request_refused(
        "connect_bad_authority",
        connect_to("server.mesh.svc.cluster.local:7000")?,
    )
}

#[test]
fn headers_beyond_their_limit() -> Result<()> {
    let world = world()?;
    let mut request = connect_to(&world.at(VICTIM, port::ECHO)?)?;
    request
        .headers_mut()
        .insert("baggage", "k=v".repeat(9 << 10).parse()?);
    let credentials = Signer::of_mesh(&world.lab)?.issue(CLIENT_ID, Validity::Now)?;
    let at = tunnel_port(world)?;
    wait_refused(
        &world.lab,
        VICTIM_NODE,
        "inbound",
        "connect_headers_too_large",
        || {
            attack(&netns(world)?, async || {
                let sender = attacker::http2(at, Some(credentials)).await?;
                match attacker::send(sender, request).await {
                    Ok(status) if status.is_success() => bail!("answered with {status}"),
                    _ => Ok(()),
                }
            })
        },
    )
    .map(drop)
}

#[test]
fn malformed_http2() -> Result<()> {
    let world = world()?;
    let at = tunnel_port(world)?;
    let signer = Signer::of_mesh(&world.lab)?;
    // Not HTTP/2 at all; a frame longer than allowed; a frame on a stream that cannot be.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let oversized = [&preface[..], b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"].concat();
    let impossible = [&preface[..], b"\x00\x00\x01\x00\x00\x00\x00\x00\x02x"].concat();
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        oversized,
        impossible,
    ] {
        let credentials = signer.issue(CLIENT_ID, Validity::Now)?;
        wait_refused(
            &world.lab,
            VICTIM_NODE,
            "inbound",
            "http2_protocol_error",
            || {
                attack(&netns(world)?, async || {
                    let mut stream = attacker::tls(at, Some(credentials)).await?;
                    stream.write_all(&garbage).await?;
                    let limit = Duration::from_secs(10);
                    let mut rest = Vec::new();
                    // An error is an end as good as any.
                    let _ = attacker::soon("closing", limit, stream.read_to_end(&mut rest)).await?;
                    Ok(())
                })
            },
        )?;
    }
    Ok(())
}

#[test]
fn bytes_that_are_no_tls() -> Result<()> {
    let world = world()?;
    let at = tunnel_port(world)?;
    wait_refused(
        &world.lab,
        VICTIM_NODE,
        "inbound",
        "tls_handshake_failed",
        || {
            attack(&netns(world)?, async || {
                let mut stream = tokio::net::TcpStream::connect(at).await?;
                stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
                let mut rest = Vec::new();
                let _ = attacker::soon(
                    "closing",
                    Duration::from_secs(10),
                    stream.read_to_end(&mut rest),
                )
                .await?;
                Ok(())
            })
        },
    )
    .map(drop)
}

#[test]
fn a_handshake_that_takes_its_time() -> Result<()> {
    let world = world()?;
    let at = tunnel_port(world)?;
    wait_refused(
        &world.lab,
        VICTIM_NODE,
        "inbound",
        "tls_handshake_timeout",
        || {
            run_in(&netns(world)?, || {
                let started = Instant::now();
                let mut silent = TcpStream::connect(at)?;
                silent.set_read_timeout(Some(Duration::from_secs(30)))?;
                // It ends by the server's will; a reset is as good as an end.
                let _ = silent.read(&mut [0]);
                let took = started.elapsed();
                ensure!(
                    took > Duration::from_secs(2),
                    "closed after {took:?}: for another reason"
                );
                ensure!(took < Duration::from_secs(20), "held for {took:?}");
                Ok(())
            })
        },
    )
    .map(drop)
}

/// Asks the controller for a certificate with a token of this test's making.
fn certificate(claims: &Claims, identity: &str) -> Result<()> {
    let lab = &world()?.lab;
    let dir = lab.dir().join("control");
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let token = dir.join(format!("token-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::write(&token, lab.sign_token(claims)?)?;
    let authority = GrpcCa::new(GrpcCaConfig {
        address: "172.30.0.250:15012".to_owned(),
        server_name: "karst-controller.karst-system.svc".to_owned(),
        root_file: lab.root_certificate(),
        token_file: token,
        cluster_id: "Kubernetes".to_owned(),
        validity_seconds: 3600,
    });
    let csr_pem = CertificateParams::default()
        .serialize_request(&KeyPair::generate()?)?
        .pem()?;
    let request = CertificateRequest {
        id: SpiffeId::parse(identity)?,
        csr_pem,
    };
    attack(&format!("karst-{}-control", lab.name()), async || {
        Ok(authority.sign(request).await.map(drop)?)
    })
}

fn claims_of(node: &str) -> Result<Claims> {
    let lab = &world()?.lab;
    let object = fs::read_to_string(lab.manifests_dir().join(format!("node.{node}.json")))?;
    let object: serde_json::Value = serde_json::from_str(&object)?;
    Ok(Claims::agent(
        node,
        object["metadata"]["uid"].as_str().context("no uid")?,
    ))
}

/// A request that the authority must refuse, with the reason in its answer and in its log.
fn certificate_refused(claims: &Claims, identity: &str, reason: &str) -> Result<()> {
    let Err(error) = certificate(claims, identity) else {
        bail!("a certificate was issued")
    };
    let said = format!("{error:#}");
    ensure!(said.contains(reason), "the answer is {said:?}");
    until("the controller's log", Duration::from_secs(10), || {
        let log = world()?.lab.controller_log()?;
        ensure!(
            log.lines().any(|line| line.contains(reason)),
            "{reason} is not in the log"
        );
        Ok(())
    })
}

#[test]
fn a_certificate_for_the_callers_own_node_is_issued() -> Result<()> {
    certificate(&claims_of("node1")?, CLIENT_ID)
}

#[test]
fn a_certificate_for_an_identity_of_another_node() -> Result<()> {
    certificate_refused(&claims_of("node2")?, CLIENT_ID, "ca_identity_not_on_node")
}

#[test]
fn a_certificate_for_a_pod_outside_of_the_mesh() -> Result<()> {
    certificate_refused(
        &claims_of("node1")?,
        "spiffe://cluster.local/ns/plain/sa/client",
        "ca_identity_not_in_mesh",
    )
}

#[test]
fn a_certificate_of_another_trust_domain() -> Result<()> {
    certificate_refused(
        &claims_of("node1")?,
        "spiffe://elsewhere.example/ns/mesh/sa/client",
        "ca_wrong_trust_domain",
    )
}

#[test]
fn a_certificate_for_a_caller_that_is_no_agent() -> Result<()> {
    let claims = Claims {
        namespace: "mesh".to_owned(),
        account: "client".to_owned(),
        ..claims_of("node1")?
    };
    certificate_refused(&claims, CLIENT_ID, "ca_not_node_agent")
}

#[test]
fn a_certificate_for_an_expired_or_misdirected_token() -> Result<()> {
    let expired = Claims {
        seconds_left: -3600,
        ..claims_of("node1")?
    };
    let misdirected = Claims {
        audience: "somebody-else".to_owned(),
        ..claims_of("node1")?
    };
    for claims in [expired, misdirected] {
        let Err(error) = certificate(&claims, CLIENT_ID) else {
            bail!("a certificate was issued to {claims:?}")
        };
        ensure!(
            format!("{error:#}")
                .to_lowercase()
                .contains("unauthenticated"),
            "{error:#}"
        );
    }
    Ok(())
}

#[test]
fn a_garbage_manifest_spoils_nothing_else() -> Result<()> {
    let world = World::up("garbage", Mesh::On)?;
    let lab = &world.lab;
    let garbage = "apiVersion: v1\nkind: Service\nmetadata: {name: broken, namespace: mesh}\n\
                   spec: {ports: [{port: 70000}], selector: {app: server}}\n---\n\
                   apiVersion: v1\nkind: Namespace\nmetadata: {name: fine}\n";
    fs::write(lab.manifests_dir().join("garbage.yaml"), garbage)?;
    until(
        "the controller's complaint",
        Duration::from_secs(20),
        || {
            let log = lab.controller_log()?;
            let told = log.lines().any(|line| {
                line.contains("garbage.yaml") && line.contains("broken") && line.contains("port")
            });
            ensure!(told, "no line names file, object and field");
            Ok(())
        },
    )?;
    // The others still apply, those of the same file and those that come later.
    lab.label_namespace("plain", karst_lab_tests::AMBIENT)?;
    lab.wait_enrolled("plain/client")?;
    world
        .app_ok("plain/client", &["http", "server.mesh:80"])
        .map(drop)
}
