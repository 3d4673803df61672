//! Leader election over a Lease, and the tasks that only the leader runs.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{info, warn};

use super::{
    CallError, Cluster, FIELD_MANAGER,
    lease::{Action, DURATION, Election, PERIOD, Record, Takeover},
};

/// Name of the Lease.
const LEASE: &str = "karst-controller-leader";

/// The lease must be released within this time when the controller stops.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// Takes part in the election until it is stopped.
pub struct Candidate {
    leads: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Candidate {
    /// Starts to take part. `name` is the pod's name; chance is added, so that a restarted
    /// container is another candidate.
    pub fn start(cluster: &Cluster, name: &str) -> Self {
        let identity = format!("{name}_{:016x}", rand::random::<u64>());
        let (leading, leads) = watch::channel(false);
        let (stop, stopping) = watch::channel(false);
        let run = Run {
            api: Api::namespaced(cluster.client(), &cluster.system_namespace),
            cluster: cluster.clone(),
            election: Election::new(identity),
            leading,
            transitions: 0,
            acquired: None,
        };
        let task = tokio::spawn(run.run(stopping));
        Self { leads, stop, task }
    }

    /// Whether this replica leads.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// Stops the writers and releases the lease.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // It has limits of its own and does not panic.
        let _ = self.task.await;
    }
}

/// Runs `work` whenever this replica leads; it is dropped, wherever it is, when it does no more.
pub async fn while_leading<F: Future<Output = ()>>(
    mut leads: watch::Receiver<bool>,
    work: impl Fn() -> F,
) {
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tokio::select! {
            biased;
            lost = leads.wait_for(|leads| !*leads) => if lost.is_err() {
                return;
            },
            () = work() => {}
        }
    }
}

struct Run {
    api: Api<Lease>,
    cluster: Cluster,
    election: Election,
    leading: watch::Sender<bool>,
    transitions: i32,
    acquired: Option<Timestamp>,
}

impl Run {
    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        loop {
            // A call that hangs must not keep a leader in office.
            let until = self.election.leads_until(Instant::now());
            let round = async {
                let round = self.round();
                match until {
                    Some(until) => {
                        let _ = tokio::time::timeout_at(until.into(), round).await;
                    }
                    None => round.await,
                }
            };
            tokio::select! {
                () = round => {}
                // An error means that the owner is gone.
                _ = stopping.wait_for(|stop| *stop) => break,
            }
            self.announce();
            let next = Instant::now() + PERIOD;
            let wake = match self.election.leads_until(Instant::now()) {
                Some(until) => until.min(next),
                None => next,
            };
            tokio::select! {
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = stopping.wait_for(|stop| *stop) => break,
            }
            self.announce();
        }
        self.leading.send_replace(false);
        self.cluster.metrics().leader.set(0);
        if tokio::time::timeout(RELEASE_LIMIT, self.release())
            .await
            .is_err()
        {
            info!("leadership not released in time; it ends by itself");
        }
    }

    fn announce(&self) {
        let leads = self.election.leads_until(Instant::now()).is_some();
        let changed = self.leading.send_if_modified(|now| {
            let changed = *now != leads;
            *now = leads;
            changed
        });
        if changed {
            let identity = self.election.identity();
            self.cluster.metrics().leader.set(i64::from(leads));
            if leads {
                info!(identity, "leading");
            } else {
                warn!(reason = "leadership_lost", identity, "leading no more");
            }
        }
    }

    async fn round(&mut self) {
        if let Err(error) = self.attempt().await
            && !matches!(error, CallError::Conflict(_))
        {
            let reason = error.reason();
            info!(reason, %error, "lease not written");
        }
    }

    async fn attempt(&mut self) -> Result<(), CallError> {
        let lease = match self.cluster.call("get", self.api.get(LEASE)).await {
            Ok(lease) => Some(lease),
            Err(CallError::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        let begun = Instant::now();
        match self.election.decide(begun, lease.as_ref().map(record)) {
            Action::Wait => return Ok(()),
            Action::Create => {
                self.transitions = 0;
                self.acquired = Some(Timestamp::now());
                let lease = self.lease(None, self.election.identity());
                let params = params();
                let created = self.api.create(&params, &lease);
                self.cluster.call("create", created).await?;
            }
            Action::Write { version, takeover } => {
                let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
                self.transitions = spec.lease_transitions.unwrap_or_default();
                self.acquired = spec.acquire_time.map(|time| time.0);
                if takeover == Takeover::Yes {
                    self.transitions = self.transitions.saturating_add(1);
                    self.acquired = Some(Timestamp::now());
                }
                let lease = self.lease(Some(version), self.election.identity());
                self.replace(&lease).await?;
            }
        }
        self.election.written(begun);
        Ok(())
    }

    async fn replace(&self, lease: &Lease) -> Result<(), CallError> {
        let params = params();
        let replaced = self.api.replace(LEASE, &params, lease);
        self.cluster.call("update", replaced).await?;
        Ok(())
    }

    /// Gives the lease back, if it is ours.
    async fn release(&mut self) {
        let Ok(lease) = self.cluster.call("get", self.api.get(LEASE)).await else {
            return;
        };
        let found = record(&lease);
        if found.holder != self.election.identity() {
            return;
        }
        self.transitions = lease
            .spec
            .and_then(|spec| spec.lease_transitions)
            .unwrap_or_default();
        let released = self.lease(Some(found.version), "");
        match self.replace(&released).await {
            Ok(()) => info!("leadership released"),
            Err(error) => {
                let reason = error.reason();
                info!(reason, %error, "leadership not released; it ends by itself");
            }
        }
    }

    fn lease(&self, version: Option<String>, holder: &str) -> Lease {
        let seconds = i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX);
        Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                namespace: Some(self.cluster.system_namespace.to_string()),
                resource_version: version,
                labels: Some(super::labels()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(seconds),
                lease_transitions: Some(self.transitions),
                acquire_time: self.acquired.map(micro),
                renew_time: Some(micro(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        }
    }
}

fn params() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// The API server takes microseconds and no more.
fn micro(time: Timestamp) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time))
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    Record {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: spec.holder_identity.unwrap_or_default(),
        // What somebody wrote by hand must neither hold for ever nor end at once.
        duration: match u64::try_from(seconds) {
            Ok(seconds @ 1..=60) => Duration::from_secs(seconds),
            _ => DURATION,
        },
    }
}
