//! The gRPC authority against a server that answers as the controller does.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use karst_api::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use karst_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use karst_identity::{
    CertificateAuthority, CertificateManager, CertificateRequest, GrpcCa, GrpcCaConfig,
    ManagerConfig,
};
use prost_types::value::Kind;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::ca::{Leaf, TestCa, id};

/// What a request carried.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    bearer: String,
    cluster: String,
    identity: String,
    validity: i64,
}

struct Controller {
    ca: TestCa,
    seen: Arc<Mutex<Vec<Seen>>>,
}

fn text(request: &Request<IstioCertificateRequest>, name: &str) -> String {
    let value = request.metadata().get(name).unwrap();
    value.to_str().unwrap().to_owned()
}

#[tonic::async_trait]
impl IstioCertificateService for Controller {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let bearer = text(&request, "authorization");
        let metadata = request.get_ref().metadata.clone().unwrap();
        let Some(Kind::StringValue(identity)) =
            metadata.fields["ImpersonatedIdentity"].kind.clone()
        else {
            panic!("{metadata:?}");
        };
        let seen = Seen {
            cluster: text(&request, "clusterid"),
            bearer: bearer.clone(),
            identity: identity.clone(),
            validity: request.get_ref().validity_duration,
        };
        self.seen.lock().unwrap().push(seen);
        if bearer == "Bearer stale" {
            return Err(Status::unauthenticated("ca_token_expired: test"));
        }
        let leaf = Leaf::of(&identity.parse().unwrap());
        let chain = self.ca.sign_request(&request.get_ref().csr, &leaf);
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![chain, self.ca.root_pem()],
        }))
    }
}

struct Setup {
    _folder: TempDir,
    config: GrpcCaConfig,
    root_file: PathBuf,
    token_file: PathBuf,
    roots: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

async fn setup() -> Setup {
    let ca = TestCa::new();
    let roots = ca.root_pem();
    let mut leaf = Leaf::of(&id("controller"));
    leaf.uris.clear();
    leaf.dns = vec!["controller.test".into()];
    let (chain, key) = ca.sign(&leaf);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let controller = Controller {
        ca,
        seen: Arc::clone(&seen),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(chain, key));
    let server = Server::builder()
        .tls_config(tls)
        .unwrap()
        .add_service(IstioCertificateServiceServer::new(controller))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let folder = tempfile::tempdir().unwrap();
    let root_file = folder.path().join("root.pem");
    let token_file = folder.path().join("token");
    std::fs::write(&root_file, &roots).unwrap();
    std::fs::write(&token_file, "first\n").unwrap();
    let config = GrpcCaConfig {
        address,
        server_name: "controller.test".into(),
        root_file: root_file.clone(),
        token_file: token_file.clone(),
        cluster_id: "Kubernetes".into(),
        validity_seconds: 3600,
    };
    Setup {
        _folder: folder,
        config,
        root_file,
        token_file,
        roots,
        seen,
    }
}

fn request() -> CertificateRequest {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = rcgen::CertificateParams::default();
    CertificateRequest {
        id: id("me"),
        csr_pem: params.serialize_request(&key).unwrap().pem().unwrap(),
    }
}

#[tokio::test]
async fn a_certificate_comes_from_the_controller() {
    let setup = setup().await;
    let manager = CertificateManager::new(
        Arc::new(GrpcCa::new(setup.config.clone())),
        ManagerConfig::default(),
        Arc::new(()),
        tokio::runtime::Handle::current(),
    );
    let certificate = manager.fetch(&id("me")).await.unwrap();
    assert_eq!(certificate.id(), &id("me"));
    let expected = Seen {
        bearer: "Bearer first".into(),
        cluster: "Kubernetes".into(),
        identity: id("me").to_string(),
        validity: 3600,
    };
    assert_eq!(*setup.seen.lock().unwrap(), [expected]);
}

#[tokio::test]
async fn the_token_is_read_for_every_request() {
    let setup = setup().await;
    let ca = GrpcCa::new(setup.config.clone());
    std::fs::write(&setup.token_file, "stale").unwrap();
    let error = ca.sign(request()).await.unwrap_err();
    assert_eq!(error.reason(), "ca_refused");
    assert!(error.to_string().contains("ca_token_expired"), "{error}");
    std::fs::write(&setup.token_file, "second").unwrap();
    ca.sign(request()).await.unwrap();
    assert_eq!(setup.seen.lock().unwrap()[1].bearer, "Bearer second");
    std::fs::write(&setup.token_file, "").unwrap();
    assert_eq!(
        ca.sign(request()).await.unwrap_err().reason(),
        "file_unusable"
    );
    std::fs::remove_file(&setup.token_file).unwrap();
    assert_eq!(
        ca.sign(request()).await.unwrap_err().reason(),
        "file_unusable"
    );
}

#[tokio::test]
async fn only_the_pinned_root_is_trusted_and_it_may_change() {
    let setup = setup().await;
    let ca = GrpcCa::new(setup.config.clone());
    std::fs::write(&setup.root_file, TestCa::new().root_pem()).unwrap();
    let error = ca.sign(request()).await.unwrap_err();
    assert_eq!(error.reason(), "ca_unreachable");
    assert!(setup.seen.lock().unwrap().is_empty());
    std::fs::write(&setup.root_file, &setup.roots).unwrap();
    ca.sign(request()).await.unwrap();
}

#[tokio::test]
async fn another_name_than_the_configured_is_not_the_controller() {
    let mut setup = setup().await;
    setup.config.server_name = "elsewhere.test".into();
    let error = GrpcCa::new(setup.config).sign(request()).await.unwrap_err();
    assert_eq!(error.reason(), "ca_unreachable");
    assert!(setup.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_controller_that_is_away_is_unreachable() {
    let mut setup = setup().await;
    // A port that is taken but not listened at, so that nobody else opens it.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    setup.config.address = closed.local_addr().unwrap().to_string();
    let error = GrpcCa::new(setup.config).sign(request()).await.unwrap_err();
    assert_eq!(error.reason(), "ca_unreachable");
}
