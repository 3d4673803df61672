//! Stand-ins for the kernel and the certificate authority, for unit tests.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use karst_client::{AdsConfig, ControllerConfig, DeltaAds};
use karst_datapath::{
    Counter, DatapathError, EnrolledPod, Loaded, MapFill, Original, PodAttachment, ProgramRuns,
};
use karst_identity::{CertificateStatus, IdentityError, SpiffeId, WorkloadCertificate};
use karst_process::tap::Tap;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;

use crate::access_log::AccessLog;
use crate::config::AccessLogFormat;
use crate::context::{Certificates, Context, Kernel};
use crate::enrol::registry::Registry;
use crate::enrol::task::{EnrolmentTask, Event, WorkerSet};
use crate::enrol::{Enrolment, PodTable};
use crate::metrics::Metrics;
use crate::state::MeshState;

/// A kernel that remembers who is enrolled and can be told to fail.
#[derive(Debug, Default)]
pub struct FakeKernel {
    pub pods: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    pub failing: Mutex<bool>,
    /// How often an agent said that the kernel is its own.
    pub claims: AtomicUsize,
}

impl FakeKernel {
    pub fn uids(&self) -> Vec<String> {
        self.pods.lock().expect("lock").keys().cloned().collect()
    }

    pub fn put(&self, uid: &str) {
        self.pods
            .lock()
            .expect("lock")
            .insert(uid.to_owned(), Vec::new());
    }

    pub fn clear(&self) {
        self.pods.lock().expect("lock").clear();
    }

    pub fn fail(&self, failing: bool) {
        *self.failing.lock().expect("lock") = failing;
    }

    fn check(&self) -> Result<(), DatapathError> {
        if *self.failing.lock().expect("lock") {
            Err(DatapathError::ObjectMissing)
        } else {
            Ok(())
        }
    }
}

impl Kernel for FakeKernel {
    fn enrol(&self, pod: &PodAttachment<'_>) -> Result<(), DatapathError> {
        self.check()?;
        self.pods
            .lock()
            .expect("lock")
            .insert(pod.uid.to_owned(), pod.addresses.to_vec());
        Ok(())
    }

    fn unenrol(&self, uid: &str) -> Result<(), DatapathError> {
        self.check()?;
        self.pods.lock().expect("lock").remove(uid);
        Ok(())
    }

    fn enrolled(&self) -> Result<Vec<EnrolledPod>, DatapathError> {
        let pods = self.pods.lock().expect("lock");
        let one = |(uid, addresses): (&String, &Vec<IpAddr>)| EnrolledPod {
            uid: uid.clone(),
            netns_cookie: 1,
            addresses: addresses.clone(),
            guarded: false,
        };
        Ok(pods.iter().map(one).collect())
    }

    fn claim(&self) -> Result<(), DatapathError> {
        self.check()?;
        self.claims.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn original(&self, _: BorrowedFd<'_>) -> Result<Option<Original>, DatapathError> {
        Ok(None)
    }

    fn set_source(&self, _: BorrowedFd<'_>, _: SocketAddr) -> Result<(), DatapathError> {
        Ok(())
    }

    fn program_runs(&self) -> Result<Vec<ProgramRuns>, DatapathError> {
        Ok(vec![ProgramRuns {
            program: "connect4".to_owned(),
            count: 4,
            nanoseconds: 2_000_000_000,
        }])
    }

    fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        Ok(vec![Counter {
            reason: "captured",
            value: 3,
        }])
    }

    fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError> {
        Ok(vec![MapFill {
            map: "PODS",
            entries: 1,
            max_entries: 10,
        }])
    }

    fn loaded(&self) -> Result<Loaded, DatapathError> {
        Err(DatapathError::NotOpen)
    }
}

/// Certificates that exist once they are said to.
#[derive(Debug, Default)]
pub struct FakeCertificates {
    pub issued: Mutex<HashSet<SpiffeId>>,
    pub wanted: Mutex<HashSet<SpiffeId>>,
}

impl FakeCertificates {
    pub fn issue(&self, id: &SpiffeId) {
        self.issued.lock().expect("lock").insert(id.clone());
    }
}

impl Certificates for FakeCertificates {
    fn get(&self, _: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        None
    }

    fn has(&self, id: &SpiffeId) -> bool {
        self.issued.lock().expect("lock").contains(id)
    }

    fn want(&self, id: &SpiffeId) -> Result<(), IdentityError> {
        self.wanted.lock().expect("lock").insert(id.clone());
        Ok(())
    }

    fn forget(&self, id: &SpiffeId) {
        self.wanted.lock().expect("lock").remove(id);
    }

    fn list(&self) -> Vec<CertificateStatus> {
        Vec::new()
    }
}

/// A context over the stand-ins.
pub fn context(kernel: Arc<FakeKernel>, certificates: Arc<FakeCertificates>) -> Arc<Context> {
    Arc::new(Context {
        state: Arc::new(MeshState::default()),
        kernel,
        certificates,
        metrics: Arc::new(Metrics::default()),
        access_log: AccessLog::start(AccessLogFormat::Off).expect("access log"),
        tap: Tap::new(vec![("node", "test".to_owned())]),
        reachable: Default::default(),
        resource: Default::default(),
    })
}

/// A running enrolment task over the stand-ins, without pods' workers and with a controller that
/// is never called.
pub struct FakeEnrolment {
    /// Where its registry is; gone with this.
    pub dir: TempDir,
    pub events: mpsc::UnboundedSender<Event>,
    pub pods: watch::Receiver<Arc<PodTable>>,
    pub ads: DeltaAds,
    pub kernel: Arc<FakeKernel>,
    pub certificates: Arc<FakeCertificates>,
}

impl FakeEnrolment {
    /// Starts it on the current `LocalSet`. No registration waits longer than `patience`.
    pub fn start(patience: Duration) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let (kernel, certificates) = (
            Arc::<FakeKernel>::default(),
            Arc::<FakeCertificates>::default(),
        );
        let enrolment = Enrolment::new(
            Arc::<FakeKernel>::clone(&kernel),
            Arc::<FakeCertificates>::clone(&certificates),
            WorkerSet::default(),
            Registry::open(dir.path()).expect("registry"),
        )
        .expect("enrolment");
        let nowhere = ControllerConfig {
            address: "none".to_owned(),
            server_name: "none".to_owned(),
            root_cert: dir.path().join("none"),
            token: dir.path().join("none"),
        };
        let (ads, _task) = DeltaAds::new(AdsConfig {
            controller: nowhere,
            client_id: "test".to_owned(),
            types: Vec::new(),
        });
        let (events, received) = mpsc::unbounded_channel();
        let (table, pods) = watch::channel(Arc::new(PodTable::default()));
        let (_, issued) = watch::channel(0);
        let task = EnrolmentTask::new(enrolment, received, issued, table, ads.clone());
        spawn_local(task.waiting_for(patience).run());
        Self {
            dir,
            events,
            pods,
            ads,
            kernel,
            certificates,
        }
    }
}
